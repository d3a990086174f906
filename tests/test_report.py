"""report.html: it is self-contained, escapes all text, and sorts, filters and shows details in a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pefttools.bench import report
from pefttools.bench.plots import front

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
        "smallest_difference": 0.02, "methods": methods, "comparisons": [pair], "verdict": "take lora",
    }  # fmt: skip
    summary = {
        "suite": "test", "description": EVIL, "digest": "0", "seeds": [0, 1], "learning_rates": 3,
        "trials": {"all": 4, "done": 4}, "problems": [problem, {**problem, "name": "two"}],
        "versions": {"torch": "2"}, "hardware": {"device": "cpu", "threads": 2},
    }  # fmt: skip
    rows = {
        "ids": ["0", "1", "2"], "references": ["a", "b", "a"], "texts": [EVIL, "second", "third"],
        "methods": {"lora": ["a", "b", "b"], "full": ["a", "a", "b"], "bitfit": ["b", "b", "b"]},
        "classes": {m: {"a": {"f1": 0.5}, "b": {"f1": 0.75}} for m in ("lora", "full", "bitfit")},
    }  # fmt: skip
    return report.page(summary, {"one": rows, "two": rows})


def test_page_loads_nothing_from_the_network(page: str) -> None:
    assert set(re.findall(r"https?://[^\"'\s)]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|script)[^>]+(src|href)=\"(?!data:)", page)


def test_texts_are_escaped(page: str) -> None:
    assert EVIL not in page
    assert page.count("</script>") == 2
    assert "\u2028" not in page


def test_pareto_front_has_only_points_that_none_beats() -> None:
    points = [(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6), (4, 0.7)]
    assert front(points) == [(1, 0.5), (3, 0.7)]
    assert front(points, lower_is_better=True) == [(1, 0.5), (2, 0.4)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, page: str) -> Iterator[Any]:
    """The page in Debian's Chromium, without a window."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    file: Path = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page, "utf-8")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    driver.get(file.as_uri())
    yield driver
    log = driver.get_log("browser")
    driver.quit()
    assert log == []


def methods_shown(browser: Any) -> list[str]:
    cells = browser.find_elements("css selector", "#methods tbody tr td:first-child")
    return [cell.text for cell in cells]


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
    assert len(browser.find_elements("css selector", "#pareto .faded")) == 1
    field.clear()
    field.send_keys(" ")
    assert len(methods_shown(browser)) == 4


def test_points_show_a_tooltip(browser: Any) -> None:
    from selenium.webdriver import ActionChains

    point = browser.find_element("css selector", "#pareto [data-method=lora] circle")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed()
    assert "accuracy 0.9500" in tip.text


def test_clicked_row_shows_its_command(browser: Any) -> None:
    browser.find_element("css selector", "#methods tr[data-method=lora]").click()
    details = browser.find_element("id", "details").text
    assert "pefttools train x strategy=lora seed=0" in details
    assert "2.000 before, 2.500 after" in details
    browser.find_element("css selector", "#methods tr[data-method=lora]").click()


def test_cost_rows_and_problem_can_be_selected(browser: Any) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", "cost")).select_by_value("seconds")
    assert "training seconds" in browser.find_element("id", "pareto").text
    assert browser.find_element("id", "counted").text == "2 of 3 test rows"
    Select(browser.find_element("id", "which")).select_by_value("that all predict wrongly")
    assert browser.find_element("id", "counted").text == "1 of 3 test rows"
    browser.find_element("xpath", "//nav//button[text()='two']").click()
    assert browser.find_element("css selector", "nav button[aria-pressed=true]").text == "two"


@pytest.mark.slow
def test_page_fits_a_phone(browser: Any) -> None:
    browser.set_window_size(500, 900)  # headless Chromium allows no narrower window
    width = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert width <= 0
    browser.set_window_size(1280, 1600)
