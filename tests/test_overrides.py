"""Overrides: texts are taken literally; new data drops the settings that belong to the old data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_rows, train_tiny, write_rows

from pefttools import cli
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.errors import UserError
from pefttools.optimizers import optimizers
from pefttools.recipe import recipes
from pefttools.recipe.overrides import get
from pefttools.regularizers import regularizers
from pefttools.strategies import strategies
from pefttools.tasks import tasks


def loaded(file: Path | str, *overrides: str) -> dict[str, Any]:
    return recipes.load(str(file), overrides).recipe.as_dict()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's recipe with settings about its data file."""
    values = {
        "description": "my letters",
        "base": {"source": str(tmp_path / "base"), "dropout": 0.0},
        "data": {
            "train": {
                "source": str(tmp_path / "old.csv"),
                "header": ["words", "kind"],
                "quotes": False,
                "last_rows": 9,
            },
            "test": str(tmp_path / "test.csv"),
            "columns": {"text": "words", "label": "kind"},
            "labels": {"0": "no", "1": "yes"},
            "validation_share": 0.2,
            "train_rows": 50,
        },
        "task": {"name": "text_classification", "labels": ["yes", "no"], "max_length": 32},
        "strategy": "lora",
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.parametrize(
    "text",
    ["#1 String", "no", "007", "1e5", "null", "2024-01-01", "12:30", "a: b", "[x", "{y}", "1_000", "'a'", " b "],
)
def test_text_override_is_taken_literally(text: str) -> None:
    values = loaded("spam-lora", f"data.columns.text={text}", f"data.labels.0={text}")
    assert values["data"]["columns"]["text"] == text
    assert values["data"]["labels"]["0"] == text
    assert values["data"]["columns"]["label"] == "spam"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.train.header=[007, no, 1e5, a b]", ["007", "no", "1e5", "a b"]),
        ("data.labels={0: no, 1: on, 2: 2024-01-01}", {"0": "no", "1": "on", "2": "2024-01-01"}),
        ("task.labels=[0, no, null x]", ["0", "no", "null x"]),
        ("data.train.pattern=null", None),
        ("data.train.pattern=(?P<text>.+): #(?P<label>[0-9])", "(?P<text>.+): #(?P<label>[0-9])"),
        ("data.train.header=null", None),
        ("description=null", "null"),
        ("data.train={source: 007.csv, header: [no, 1.0]}", ["no", "1.0"]),
        ("data.bins={edges: [0, 1e1], names: [no, null, 1_0]}", ["no", None, "1_0"]),
        ("train.feature_cache=off", "off"),
        ("regularizers=[l2]", "l2"),
        ("strategy={name: lora, rank: 4}", 4),
        ("base.dropout=null", None),
    ],
)
def test_overrides_with_lists_mappings_and_nulls(override: str, value: Any) -> None:
    key = override.partition("=")[0]
    key = {"data.train": "data.train.header", "data.bins": "data.bins.names", "strategy": "strategy.rank"}.get(key, key)
    found = get(loaded("question-type-lora", override), key)
    assert value in found if key == "regularizers" else found == value


def test_prompts_and_paths_need_no_quoting() -> None:
    prompt = "{text} # why: {{no}}"
    values = loaded("sentiment-smollm2-zeroshot", f"task.prompt={prompt}", "data.train=1: #2.csv")
    assert values["task"]["prompt"] == prompt
    assert values["data"]["train"]["source"].endswith("/1: #2.csv")
    assert values["task"]["verbalizers"] == {}


def test_numbers_and_booleans_are_parsed() -> None:
    values = loaded("question-type-lora", "train.epochs=1e0", "task.multi_label=yes", "seed=3", "strategy.rank=0x10")
    assert (values["train"]["epochs"], values["task"]["multi_label"], values["seed"]) == (1.0, True, 3)
    assert values["strategy"]["rank"] == 16
    with pytest.raises(UserError, match=r"train\.epochs"):
        loaded("question-type-lora", "train.epochs=no")


def test_texts_in_a_recipe_file_are_taken_literally(mine: Path) -> None:
    text = mine.read_text().replace("'0': 'no'", "0: no").replace("'1': 'yes'", "007: 1_000")
    mine.write_text(text.replace("- words", "- 2024-01-01").replace("- kind", "- 12:30"))
    values = loaded(mine)
    assert values["data"]["labels"] == {"0": "no", "007": "1_000"}
    assert values["data"]["train"]["header"] == ["2024-01-01", "12:30"]
    mine.write_text(text + "description: again\n")
    with pytest.raises(UserError, match="'description' is set twice"):
        loaded(mine)


def test_new_data_drops_the_data_settings_of_a_packaged_recipe() -> None:
    for override in ("data.train=my.jsonl", "data.train.source=my.jsonl", "data.train={source: my.jsonl}"):
        resolved = recipes.load("gsm8k-smollm2-lora", [override, "task.max_new_tokens=9"])
        values = resolved.recipe.as_dict()
        data, task = values["data"], values["task"]
        assert data["train"] == {**data["train"], "config": None, "split": None, "last_rows": None}
        assert (data["train_rows"], data["validation_share"], data["test"], data["columns"]) == (None, 0.1, None, {})
        assert (task["answer_pattern"], task["generate_rows"], task["max_new_tokens"]) == (None, 64, 9)
        assert (values["description"], values["name"]) == ("", "my-lora")
        assert (values["train"]["epochs"], values["train"]["batch_size"]) == (2.0, 16)
        (note,) = resolved.notes
        assert "data.train_rows (500)" in note
        assert "data.validation_share (0.012)" in note
        assert "max_new_tokens" not in note
        assert resolved.origins["data.train_rows"] == "default, instead of the recipe's 500"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("dialogue-smollm2-lora", ["task.system", "data.test_share"]),
        ("en-es-t5", ["task.prefix", "task.max_target_length"]),
        ("sentiment-smollm2-zeroshot", ["task.prompt", "task.verbalizers", "data.bins"]),
        ("question-type-lora", ["task.max_length", "data.train.last_rows", "data.train.pattern"]),
        ("swag-lora", ["task.label_is", "data.train_rows"]),
    ],
)
def test_new_data_drops_task_settings_about_the_old_data(name: str, keys: list[str], tmp_path: Path) -> None:
    plain = loaded(name)
    cls = tasks.get(plain["task"]["name"])
    for key in keys:
        setting = key.rpartition(".")[2]
        defaults = cls if key.startswith("task.") else DataSettings
        fields = FileSettings.model_fields if "train." in key else defaults.model_fields
        default = json.loads(json.dumps(fields[setting].default))
        assert get(plain, key) != default
        assert get(loaded(name, "data.train=my.csv"), key) == default
    explicit = loaded(name, "data.train=my.csv", *(f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in
                      ((k, get(plain, k)) for k in keys if k.startswith("task."))))  # fmt: skip
    assert all(get(explicit, k) == get(plain, k) for k in keys if k.startswith("task."))


def test_copy_of_a_packaged_recipe_keeps_only_changed_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["show", "gsm8k-smollm2-lora"]) == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(capsys.readouterr().out)
    assert loaded(copy)["data"]["train_rows"] == 500
    assert loaded(copy, "data.train=my.jsonl")["data"]["train_rows"] is None
    copy.write_text(copy.read_text().replace("train_rows: 500", "train_rows: 70"))
    resolved = recipes.load(str(copy), ["data.train=my.jsonl"])
    assert (resolved.recipe.data.train_rows, resolved.recipe.data.validation_share) == (70, 0.1)


def test_new_data_keeps_the_settings_of_a_users_recipe(mine: Path, tmp_path: Path) -> None:
    before = loaded(mine)
    resolved = recipes.load(str(mine), [f"data.train={tmp_path / 'new.csv'}"])
    after = resolved.recipe.as_dict()
    assert after["data"]["train"] == {
        **before["data"]["train"], "source": str(tmp_path / "new.csv"), "last_rows": None
    }  # fmt: skip
    assert {k: v for k, v in after["data"].items() if k != "train"} == {
        k: v for k, v in before["data"].items() if k != "train"
    }
    assert after["task"] == before["task"]
    assert (after["name"], after["description"]) == ("mine", "my letters")
    (note,) = resolved.notes
    assert "data.train_rows=50" in note
    assert "data.columns=" in note
    other = loaded(mine, f"data.train={tmp_path / 'new.jsonl'}")
    assert other["data"]["train"]["header"] is None
    assert other["data"]["columns"] == before["data"]["columns"]


@pytest.mark.slow
def test_recipe_of_a_run_keeps_columns_and_refits_labels_on_new_data(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"words": r["text"], "kind": r["label"]} for r in make_rows(90, labels=("fruit", "tool"))]
    new = write_rows(tmp_path / "new.jsonl", rows)
    run, _ = train_tiny(
        finished_run / "recipe.yaml", tmp_path / "first", f"data.train={new}",
        "data.columns={text: words, label: kind}", "data.labels.fruit=no", "train.epochs=0.2",
    )  # fmt: skip
    first = loaded(run / "recipe.yaml")
    assert first["task"]["labels"] == ["no", "tool"]
    rows = [{"words": r["text"], "kind": r["label"]} for r in make_rows(90, seed=1)]
    newer = write_rows(tmp_path / "newer.jsonl", rows)
    again, _ = train_tiny(run / "recipe.yaml", tmp_path / "again", f"data.train={newer}", "train.epochs=0.2")
    second = loaded(again / "recipe.yaml")
    assert second["task"]["labels"] == ["colour", "no", "tool"]
    assert second["data"]["columns"] == {"text": "words", "label": "kind"}
    assert recipes.load(str(run / "recipe.yaml")).recipe.digest == recipes.load(str(run / "recipe.yaml")).recipe.digest


def test_dropped_settings_are_reported_in_one_line(
    mine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    assert cli.run(["train", "gsm8k-smollm2-lora", f"data.train={tmp_path}/no.jsonl", "base=./no", "--out", out]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "data.train_rows (500)" in line]
    assert len(lines) == 1
    assert not Path(out).exists()


def test_suite_passes_texts_on_literally(tmp_path: Path) -> None:
    from pefttools.bench import suite

    file = tmp_path / "mine.yaml"
    file.write_text("recipe: spam-lora\naxes: {strategies: [lora]}\nseeds: [0]\n")
    loaded_suite = suite.load(str(file), ["data.labels.0=no", "data.columns.text=#1 String", "train.epochs=2"])
    recipe = loaded_suite.cells()[0].recipe(0)
    assert (recipe.data.labels["0"], recipe.data.columns["text"], recipe.train.epochs) == ("no", "#1 String", 2.0)


@pytest.mark.parametrize(
    ("name", "override", "takes"),
    [
        ("spam-lora", "task.threshold=0.3", "task.multi_label=true"),
        ("spam-lora", "task.label_separator=;", "task.multi_label=true"),
        ("spam-lora", "strategy.loftq_steps=3", "strategy.init=loftq"),
        ("stsb-lora", "data.test_share=0.3", "no data.test"),
    ],
)
def test_override_without_effect_is_refused(name: str, override: str, takes: str) -> None:
    with pytest.raises(UserError, match=f"has no effect: it needs {takes}"):
        loaded(name, override)


def test_recipe_setting_without_effect_is_reported(mine: Path) -> None:
    resolved = recipes.load(str(mine), ["data.validation=val.csv"])
    assert any("data.validation_share=0.2 has no effect" in note for note in resolved.notes)


@pytest.mark.parametrize("registry", [tasks, strategies, regularizers, optimizers])
def test_only_with_names_settings_and_holds_at_the_defaults(registry: Any) -> None:
    for name in registry.names():
        cls = registry.get(name)
        assert set(cls.only_with) <= set(cls.model_fields), name
        if cls.only_with:
            assert cls().ignored() == {}
