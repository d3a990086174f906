"""The stored rows of a run: scored again even if the data file changed, and recognised in other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Listener, make_rows, train_tiny, write_recipe, write_rows

from pefttools.data.rows import Splits, content_hash
from pefttools.errors import UserError
from pefttools.inference.scoring import evaluate_run
from pefttools.tasks.causal_lm import CausalLM
from pefttools.training.own_rows import own_rows
from pefttools.training.run import Run
from pefttools.training.run_rows import read_hashes, read_scored, write_hashes, write_predictions

ROWS = make_rows(120, seed=5)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, bases: Any) -> tuple[Path, Path]:
    """A run and the file that it was trained on."""
    folder = tmp_path_factory.mktemp("own")
    file = write_rows(folder / "rows.jsonl", ROWS)
    task = {"name": "text_classification", "max_length": 32}
    recipe = write_recipe(folder / "own.yaml", bases("bert"), file, task=task, train={"epochs": 1})
    return train_tiny(recipe, folder / "run")[0], file


@pytest.mark.slow
def test_predictions_have_the_ids_and_texts_of_their_rows(own: tuple[Path, Path]) -> None:
    """The id is the number of the row in its file, counted from 1."""
    import pyarrow.parquet

    run, _ = own
    table = pyarrow.parquet.read_table(run / "predictions.parquet").to_pylist()
    assert len(table) == Run(run).result()["data"]["rows"]["test"]
    for line in table:
        row = ROWS[int(line["id"]) - 1]
        assert (line["text"], line["label"], line["reference"]) == (row["text"], row["label"], row["label"])
    scored = Run(run).scored_rows()
    assert scored is not None
    assert scored.split == "test"
    assert scored.rows == [ROWS[int(i) - 1] for i in scored.ids]
    hashes = Run(run).row_hashes()
    assert hashes is not None
    numbers = sorted(int(i) for split in hashes.values() for i in split.ids)
    assert numbers == list(range(1, 121))
    assert (run / "rows.parquet").stat().st_size < 10_000


@pytest.mark.slow
def test_score_is_unchanged_if_the_data_file_grew_or_is_gone(own: tuple[Path, Path], tmp_path: Path) -> None:
    run, file = own
    result = Run(run).result()["test"]
    before = file.read_text("utf-8")

    def scored() -> tuple[float, float, list[str]]:
        listener = Listener()
        values = evaluate_run(run, reporter=listener)
        assert (values["rows"], values["scored_on"]) == (len(Run(run).predictions()[0]), "test")
        return values["accuracy"], round(values["loss"], 6), listener.warnings

    expected = (result["accuracy"], round(result["loss"], 6))
    try:
        assert scored() == (*expected, [])
        write_rows(file, [*make_rows(200, seed=9), *reversed(ROWS)])
        assert scored() == (*expected, [])
        ids = Run(run).predictions()[0]
        changed = [dict(row) for row in ROWS]
        changed[int(ids[0]) - 1]["label"] = "changed"
        write_rows(file, [row for i, row in enumerate(changed, 1) if str(i) != ids[1]])
        *score, warnings = scored()
        assert tuple(score) == expected
        assert f"data.train: 2 of the test rows that the run was scored on are no longer in {file}" in warnings[0]
        assert f": {ids[0]}, {ids[1]};" in warnings[0]
        file.unlink()
        *score, warnings = scored()
        assert tuple(score) == expected
        assert str(file) in warnings[0]
        assert "are scored instead" in warnings[0]
    finally:
        file.write_text(before, "utf-8")


@pytest.mark.slow
def test_scoring_training_rows_warns(own: tuple[Path, Path], tmp_path: Path) -> None:
    run, file = own
    hashes = Run(run).row_hashes()
    assert hashes is not None
    listener = Listener()
    assert evaluate_run(run, [f"data.test={file}"], listener)["rows"] == 120
    assert listener.warnings == [
        f"the run used {len(hashes['train'].ids)} of the 120 rows to score for training; the score is too optimistic",
        f"the run used {len(hashes['validation'].ids)} of the 120 rows to score for validation;"
        " the score is too optimistic",
    ]
    listener = Listener()
    evaluate_run(run, ["data.split_seed=4"], listener)
    assert "rows to score for training" in listener.warnings[0]
    listener = Listener()
    other = write_rows(tmp_path / "other.jsonl", make_rows(30, seed=77))
    assert evaluate_run(run, [f"data.test={other}"], listener)["rows"] == 30
    assert listener.warnings == []


def test_run_without_stored_rows_is_scored_only_on_unchanged_data(own: tuple[Path, Path], tmp_path: Path) -> None:
    """A run without stored rows is scored if its data file gives the same rows, and refused otherwise."""
    import shutil

    run, file = own
    old = tmp_path / "old"
    shutil.copytree(run, old)
    for name in ("rows.parquet", "hashes.json"):
        (old / name).unlink()
    assert evaluate_run(old)["accuracy"] == Run(run).result()["test"]["accuracy"]
    before = file.read_text("utf-8")
    write_rows(file, [*ROWS, *make_rows(200, seed=9)])
    try:
        with pytest.raises(UserError, match=r"the run's data has changed since it was trained.*data.test=FILE"):
            evaluate_run(old)
    finally:
        file.write_text(before, "utf-8")


def test_changed_prediction_rows_are_refused(own: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    import pyarrow.compute
    import pyarrow.parquet

    run = tmp_path / "run"
    shutil.copytree(own[0], run)
    table = pyarrow.parquet.read_table(run / "predictions.parquet")
    upper = pyarrow.compute.utf8_upper(table["text"])  # type: ignore[attr-defined]
    position = table.column_names.index("text")
    pyarrow.parquet.write_table(
        table.set_column(position, table.schema.field("text"), upper), run / "predictions.parquet"
    )
    with pytest.raises(UserError, match="these are not the rows that the run was scored on"):
        own_rows(Run(run), Run(run).recipe().task)


def test_rows_of_every_type_are_stored_and_read_back(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "  a\n"}, {"role": "assistant", "content": "b", "weight": 0}],
         "prompt": "a", "completion": "b", "score": 1.5, "tokens": ["x", ""], "none": None, "flag": True},
        {"messages": [{"role": "user", "content": "ü", "name": None}], "prompt": "", "completion": "null",
         "score": -0.0, "tokens": [], "flag": 3},
        {"messages": [], "prompt": "c", "extra": {"a": [1, 2.5, None]}, "score": 2.0, "tokens": ["y"], "flag": False},
    ]  # fmt: skip
    own_ids = [{**row, "id": f"r{i}"} for i, row in enumerate(rows)]
    for stored, ids in ((rows, ["3", "1", "2"]), (own_ids, ["r0", "r1", "r2"])):
        splits = Splits(rows[:1], stored, [], ids={"validation": ids})
        write_hashes(tmp_path / "rows.parquet", splits, CausalLM())
        predictions = [{"prediction": "p", "nll": 1.0}] * 3
        write_predictions(tmp_path / "p.parquet", "validation", ids, stored, ["a", "b", "c"], predictions)
        found = read_scored(tmp_path / "p.parquet", read_hashes(tmp_path / "rows.parquet"))
        assert (found.split, found.ids) == ("validation", ids)
        assert [json.dumps(row) for row in found.rows] == [
            json.dumps({name: row[name] for name in back}) for row, back in zip(stored, found.rows, strict=True)
        ]
        assert all(row.keys() == back.keys() for row, back in zip(stored, found.rows, strict=True))
    assert content_hash(rows[0]) == content_hash(own_ids[0])
