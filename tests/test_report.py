"""report.html: it is self-contained, escapes all text, and sorts, filters and shows details in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browsed, on_phone, prefer, wait_until

from pefttools.bench import charts, report

EVIL = "</script><script>document.title = 'broken'</script> & <b>bold</b> \u2028 ü"


def row(method: str, mean: float, tier: int, trainable: int, **more: Any) -> dict[str, Any]:
    return {
        "method": method, "labels": {"strategies": method}, "tier": tier, "status": "done", "reason": "",
        "curve": [{"learning_rate": rate, "score": mean - 0.1 * i} for i, rate in enumerate((1e-4, 1e-3, 1e-2))],
        "command": f"pefttools train x strategy={method}", "commands": [f"pefttools train x strategy={method} seed=0"],
        "failures": [], "learning_rate": 1e-3, "seeds": [0, 1], "scores": [mean - 0.01, mean + 0.01], "mean": mean,
        "low": mean - 0.03, "high": mean + 0.03, "validation": mean, "params":
        {"total": 10**6, "trainable": trainable, "adapter": trainable - 10, "head": 10}, "merges": True,
        "adapter_bytes": 4 * trainable, "seconds": 10.0 * tier, "tokens_per_second": 1000.0, "peak_bytes": 2**30,
        "moved": 0.01, "moved_blocks": [0.1, 0.2], "effective_rank": 4.0, "no_forgetting": None,
        "forgetting": {"before": 2.0, "after": 2.5}, **more,
    }  # fmt: skip


def failed(method: str) -> dict[str, Any]:
    return {
        "method": method, "labels": {"strategies": method}, "tier": None, "status": "failed", "reason": EVIL,
        "curve": [], "command": "pefttools train x", "commands": [], "failures": [EVIL],
    }  # fmt: skip


def pooled(method: str, mean: float, gap: float, **more: Any) -> dict[str, Any]:
    return {
        "method": method, "tier": 1, "mean": mean, "gap": gap, "gap_low": gap - 0.02, "gap_high": gap + 0.02,
        "by_set": {"one": mean, "two": mean, "three": mean}, "trainable": 5000, "seconds": 10.0, "peak_bytes": 2**30,
        "forgetting": None, **more,
    }  # fmt: skip


POOL = {
    "name": "", "sets": ["one", "two", "three"], "metrics": ["accuracy"], "left_out": {"four": EVIL}, "margin": 0.01,
    "smallest_difference": 0.012, "smallest_on_these": 0.008, "is_coarse": True, "recommended": "full", "shown": [],
    "verdict": "full has the best mean", "comparisons": [],
    "methods": [pooled("full", 0.93, 0.0, gap_low=None, gap_high=None), pooled("lora", 0.92, -0.01)],
}  # fmt: skip


@pytest.fixture(scope="module")
def page() -> str:
    methods = [row("lora", 0.95, 1, 5000), row("full", 0.96, 1, 900_000), row("bitfit", 0.80, 2, 200), failed("bad")]
    pair = {
        "first": "lora", "second": "full", "difference": -0.01, "low": -0.03, "high": 0.01, "p": 0.3, "p_holm": 0.6,
        "mcnemar": 0.5, "differs": False,
    }  # fmt: skip
    problem = {
        "name": "one", "metric": "accuracy", "lower_is_better": False, "measured_on": "test",
        "rows": {"train": 9, "validation": 3, "test": 3}, "before": 0.3, "majority": 0.4, "unit": "row",
        "smallest_difference": 0.02, "margin": 0.01, "is_coarse": False, "recommended": "lora",
        "methods": methods, "comparisons": [pair], "verdict": "take lora",
    }  # fmt: skip
    summary = {
        "suite": "test", "description": EVIL, "digest": "0", "seeds": [0, 1], "learning_rates": 3,
        "trials": {"all": 4, "done": 4}, "problems": [problem, {**problem, "name": "two"}],
        "versions": {"torch": "2"}, "hardware": {"device": "cpu", "threads": 2}, "pools": [POOL],
    }  # fmt: skip
    rows = {
        "ids": ["0", "1", "2"], "references": ["a", "b", "a"], "texts": [EVIL, "second", "third"],
        "methods": {"lora": ["a", "b", "b"], "full": ["a", "a", "b"], "bitfit": ["b", "b", "b"]},
        "classes": {m: {"a": {"f1": 0.5}, "b": {"f1": 0.75}} for m in ("lora", "full", "bitfit")},
    }  # fmt: skip
    return report.page(summary, {"one": rows, "two": rows})


def test_no_element_loads_from_the_network(page: str) -> None:
    outside = re.sub(r"(<script[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)  # Vega has addresses as texts
    assert outside.count("<script") == 3
    assert "://" not in outside
    assert not re.search(r"<[^>]+ (src|href)=\"(?!data:)", outside)
    assert "url(" not in outside
    assert "@import" not in outside


def test_texts_are_escaped(page: str) -> None:
    assert EVIL not in page
    assert page.count("</script>") == 3
    assert "\u2028" not in re.sub(r"<script type=.module.>.*?</script>", "", page, flags=re.DOTALL)


def test_page_without_a_pool_or_scores_has_no_charts() -> None:
    problem = {
        "name": "one", "metric": None, "lower_is_better": False, "methods": [failed("bad")], "comparisons": [],
    }  # fmt: skip
    specs = charts.specs({"pools": [], "problems": [problem]})
    assert specs["pools"] == []
    assert specs["problems"] == [{"costs": {}, "rates": None}]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, page: str) -> Iterator[Any]:
    """The page in a browser."""
    file: Path = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page, "utf-8")
    with browsed(file, num_charts=3) as driver:
        yield driver


def points(browser: Any, method: str = "") -> list[Any]:
    """The points of the chart by cost."""
    found = browser.find_elements("css selector", "#pareto .points_marks path")
    return [point for point in found if point.get_attribute("aria-label").startswith(method)]


def opacities(browser: Any) -> dict[str, float]:
    found = points(browser)
    return {p.get_attribute("aria-label").split(":")[0]: float(p.get_attribute("opacity") or 1) for p in found}


def methods_shown(browser: Any) -> list[str]:
    return [row.get_attribute("data-method") for row in browser.find_elements("css selector", "#methods tbody tr")]


def test_the_table_sorts(browser: Any) -> None:
    assert methods_shown(browser)[-2:] == ["bitfit", "bad"]
    browser.find_element("xpath", "//table[@id='methods']//button[text()='trained']").click()
    assert methods_shown(browser) == ["full", "lora", "bitfit", "bad"]
    browser.find_element("xpath", "//table[@id='methods']//button[text()='trained']").click()
    assert methods_shown(browser) == ["bitfit", "lora", "full", "bad"]


def test_the_table_filters(browser: Any) -> None:
    field = browser.find_element("id", "filter")
    field.send_keys("tier:1")
    assert sorted(methods_shown(browser)) == ["full", "lora"]
    wait_until(lambda: opacities(browser) == {"lora": 1.0, "full": 1.0, "bitfit": 0.1})
    field.clear()
    field.send_keys(" ")
    assert len(methods_shown(browser)) == 4


def test_points_show_a_tooltip_and_select_their_method(browser: Any) -> None:
    from selenium.webdriver import ActionChains

    (point,) = points(browser, "lora")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert "accuracy 0.9500" in tip.text
    assert "95% interval 0.9200 to 0.9800" in tip.text
    assert "trained parameters 5,000" in tip.text
    ActionChains(browser).click().perform()
    assert browser.find_element("css selector", "#details h3").text == "lora"
    wait_until(lambda: opacities(browser) == {"lora": 1.0, "full": 0.25, "bitfit": 0.25})
    browser.find_element("css selector", "#pareto-legend [aria-pressed=true]").click()
    assert browser.find_element("id", "details").text == ""


def test_methods_have_the_same_colour_on_all_charts(browser: Any) -> None:
    colours = {
        method: {
            path.get_attribute("fill")
            for chart in ("pool-chart", "pareto", "rates")
            for path in browser.find_elements("css selector", f"#{chart} path[aria-label^='{method}']")
        }
        for method in ("lora", "full")
    }
    assert all(len(found) == 1 for found in colours.values())
    assert colours["lora"] != colours["full"]


def test_charts_follow_dark_mode(browser: Any) -> None:
    def title_colour() -> str | None:
        return browser.find_element("css selector", "#pareto .role-axis-title text").get_attribute("fill")

    for scheme, colour in (("dark", "#e6e8eb"), ("light", "#1c1e21")):
        prefer(browser, scheme)
        wait_until(lambda colour=colour: title_colour() == colour)


def test_pool_opens_the_page(browser: Any) -> None:
    section = browser.find_element("id", "over-sets").text
    assert "full has the best mean." in section
    assert "1.2 points for new sets, 0.8 points on these" in section
    assert "left out: four " in section
    rows = browser.find_elements("css selector", "#pool tbody tr")
    assert [row.get_attribute("data-method") for row in rows] == ["full", "lora"]
    assert "−3.00 to +1.00" in rows[1].text
    assert len(browser.find_elements("css selector", "#pool .tier.coarse")) == 1  # not that of the recommended method
    browser.find_element("xpath", "//table[@id='pool']//button[text()='points from best']").click()
    browser.find_element("xpath", "//table[@id='pool']//button[text()='points from best']").click()
    first = browser.find_element("css selector", "#pool tbody tr")
    assert first.get_attribute("data-method") == "lora"


def test_clicked_row_shows_its_command(browser: Any) -> None:
    browser.find_element("css selector", "#methods tr[data-method=lora]").click()
    details = browser.find_element("id", "details").text
    assert "pefttools train x strategy=lora seed=0" in details
    assert "2.000 before, 2.500 after" in details
    browser.find_element("css selector", "#methods tr[data-method=lora]").click()


def test_cost_rows_and_problem_can_be_selected(browser: Any) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", "cost")).select_by_value("seconds")
    wait_until(lambda: "training seconds" in browser.find_element("id", "pareto").text)
    assert browser.find_element("id", "counted").text == "2 of 3 test rows"
    Select(browser.find_element("id", "which")).select_by_value("that all predict wrongly")
    assert browser.find_element("id", "counted").text == "1 of 3 test rows"
    browser.find_element("xpath", "//nav//button[text()='two']").click()
    assert browser.find_element("css selector", "nav button[aria-pressed=true]").text == "two"


def test_page_fits_a_phone(browser: Any) -> None:
    with on_phone(browser):
        chart = browser.find_element("css selector", "#pareto svg")
        wait_until(lambda: 300 < chart.size["width"] <= 400)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 420
    wait_until(lambda: chart.size["width"] > 1000)
