"""Damaged files: each is refused in one sentence that names it, whatever error its library raises, and none crashes."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import NO_HASHES

from pefttools import cli
from pefttools.bench import archive, records, suite, trial
from pefttools.data.reading import read
from pefttools.data.settings import DataSettings, FileSettings
from pefttools.data.splitting import load_splits
from pefttools.errors import UserError, damage_of, shown
from pefttools.recipe import recipes
from pefttools.reporter import SILENT
from pefttools.sources import fetch
from pefttools.strategies import base as strategy_base
from pefttools.strategies._peft_strategy import merge_peft
from pefttools.tasks import tasks
from pefttools.training import run_rows
from pefttools.training.run import Run

READ_ARROW = """
import sys
from pefttools.data.reading import read
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import SILENT
refused = 0
for source in sys.argv[1:]:
    try:
        read(FileSettings(source=source), "data.train", SILENT)
    except UserError as error:
        refused += source in str(error)
print(refused)
"""


def rows_of(path: Path) -> list[dict[str, object]]:
    return read(FileSettings(source=str(path)), "data.train", SILENT)


def test_damage_names_the_file_and_passes_a_users_mistake_unchanged(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"it.json: cannot be read, .*\('odd name'\); remove it$"),
        damage_of(tmp_path / "it.json", "remove it"),
    ):
        raise KeyError("odd name")
    with pytest.raises(UserError, match=r"^mine$"), damage_of(tmp_path):
        raise UserError("mine")
    with pytest.raises(KeyboardInterrupt), damage_of(tmp_path):
        raise KeyboardInterrupt


def test_messages_are_single_lines_without_control_characters() -> None:
    error = UserError("a \x1b[2J\rb\n  c", "d")
    assert error.problems == ("a \\x1b[2J\\rb;   c", "d")
    assert str(error) == "a \\x1b[2J\\rb;   c\nd"
    assert len(shown("x" * 1000)) == 200


@pytest.mark.slow
def test_damaged_offsets_of_arrow_do_not_crash(tmp_path: Path) -> None:
    """pyarrow reads foreign memory where offsets in a file are wrong, and the process may die."""
    table = pyarrow.table({"text": ["a", "bc", "def"] * 4, "label": ["x"] * 12})
    stream = io.BytesIO()
    with pyarrow.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    content, files = stream.getvalue(), []
    start = content.index((1).to_bytes(4, "little") + (3).to_bytes(4, "little") + (6).to_bytes(4, "little"))
    for number, offset in enumerate((0x7FFFFFF0, 0x40000000, 0x01000000)):
        path = tmp_path / f"{number}.arrow"
        path.write_bytes(content[:start] + offset.to_bytes(4, "little") + content[start + 4 :])
        files.append(str(path))
    done = subprocess.run([sys.executable, "-c", READ_ARROW, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n")


def test_damaged_pages_of_parquet_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    for compression in ("none", "snappy", "zstd", "gzip"):
        pyarrow.parquet.write_table(
            pyarrow.table({"text": [f"text {i}" for i in range(50)]}), path, compression=compression,
            write_page_checksum=True, use_dictionary=False,
        )  # fmt: skip
        content = bytearray(path.read_bytes())
        content[len(content) // 4] ^= 4
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"rows.parquet: .*damaged"):
            rows_of(path)


def test_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.zip"
    with zipfile.ZipFile(path, "w") as archived:
        archived.writestr("rows.csv", "text,label\na,b\n")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02")] = 0
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows.csv.zip: the file is damaged"):
        rows_of(path)


@pytest.mark.parametrize("place", [0, -1])
def test_name_of_a_file_in_a_zip_that_is_no_text_is_damage(place: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.zip"
    with zipfile.ZipFile(path, "w") as archived:
        archived.writestr("röws.csv", "text,label\na,b\n")
    content, name = path.read_bytes(), "röws.csv".encode()
    start = content.rindex(name) if place else content.index(name)
    path.write_bytes(content[:start] + b"r\xda\xda" + content[start + 3 :])
    with pytest.raises(UserError, match=r"rows.csv.zip: the file is damaged"):
        rows_of(path)


@pytest.mark.parametrize("invalid_rows", ["refuse", "skip"])
def test_half_of_a_character_in_json_is_an_invalid_row(invalid_rows: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "id": f"{i} \\ud83d"} for i in range(20)]  # a backslash
    odd = [json.dumps({**rows[0], "id": text}) for text in ("a \ud83d", "a \ud83d\ude00")]
    path.write_text("\n".join([*map(json.dumps, rows), *odd]))
    task, _ = tasks.parse("text_classification", "task")
    assert task is not None
    settings = DataSettings.model_validate({"train": str(path), "invalid_rows": invalid_rows})
    if invalid_rows == "refuse":
        with pytest.raises(UserError, match=r"row 21 has half a character \(the lone surrogate .ud83d\)"):
            load_splits(settings, task)
        return
    splits = load_splits(settings, task)
    assert splits.left_out == {"invalid": 1}
    assert sum(map(len, splits.named().values())) == 21


def test_damaged_rows_of_a_run_are_refused(finished_run: Path, tmp_path: Path) -> None:
    """Their pages have checksums, so that no prediction is silently another one."""
    for name, read_file in (("rows", run_rows.read_hashes), ("predictions", run_rows.read_predictions)):
        path = Path(shutil.copy(finished_run / f"{name}.parquet", tmp_path))
        content = bytearray(path.read_bytes())
        for at in range(40, 200, 20):
            content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.parquet: cannot be read, .*train the run again"):
            read_file(path)


LINES = ['[1]', '{"progress": 1, "loss": 2}', '{"step": 1, "loss": 2}', '{"step": 1, "progress": 1, "validation": 3}',
         '{"step": 1, "progress": 1, "validation": {"accuracy": 1}}']  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_damaged_metrics_of_a_run_are_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read, so it is damaged"):
        trial.curve(Run(tmp_path), "accuracy")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff\x7f\0\0\0\0{", b"{}", b"[1]"])
def test_damaged_adapter_is_refused(
    name: str, content: bytes, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run", ignore=NO_HASHES))
    (folder / "adapter" / name).write_bytes(content)
    assert cli.run(["predict", str(folder), "--text", "word1"]) == 2
    assert str(folder / "adapter") in capsys.readouterr().err


def test_damaged_weights_in_our_own_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / strategy_base.WEIGHTS).write_bytes(b"\xff" * 30)
    with pytest.raises(UserError, match=r"adapter_model.safetensors: cannot be read"):
        strategy_base.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", b"{}"), ("tokenizer_config.json", b'{"model_max_length": [1]}'),
     ("tokenizer.json", b"\xff"), ("config.json", b'{"model_type": 3}'),
     ("config.json", b'{"model_type": "bert", "hidden_size": "x"}'), ("config.json", b"[" * 9000),
     ("model.safetensors", b"\x09\0\0\0\0\0\0\0{")],
)  # fmt: skip
def test_damaged_base_is_refused(
    name: str, content: bytes, bases: Callable[[str], Path], rows_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = Path(shutil.copytree(bases("bert"), tmp_path / "base"))
    (base / name).write_bytes(content)
    words = ["train", "question-type-lora", f"base={base}", f"data.train={rows_file}", "--out", str(tmp_path / "out")]
    assert cli.run(words) == 2
    assert f"of {base} cannot be " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [("train.epochs=" + "[" * 5000, "nested too deeply"), ("seed=" + "9" * 5000, "is not YAML"),
     ("train.epochs=2024-13-45", "month must be in"), ("data.train=" + "a" * 5000, "cannot be read: File name"),
     ("task.name=" + "x" * 5000, "…"), ("x" * 5000 + "=1", "unknown key"),
     ("data={" + "x" * 1000 + ": 1}", "unknown key"), ("augmentations=" + "[" + "x" * 5000 + "]", "unknown aug")],
    ids=["deep", "long number", "date", "long path", "long name", "long key", "long key of YAML", "long item"],
)  # fmt: skip
def test_odd_overrides_are_refused_in_short(override: str, message: str, recipe_file: Path) -> None:
    with pytest.raises(UserError) as found:
        resolved = recipes.load(str(recipe_file), [override])
        fetch(str(resolved.recipe.data.train.source))
    assert message in str(found.value)
    assert max(map(len, found.value.problems)) < 1200


BLOCKS = 1 << 63
"""A number of blocks with which a model would never be complete."""


def with_blocks(folder: Path, to: Path) -> Path:
    """A copy of a model's folder, without its hashes, whose configuration has far too many blocks."""
    shutil.copytree(folder, to, ignore=NO_HASHES)
    file = to / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": BLOCKS}))
    return to


@pytest.mark.parametrize("init", ["pretrained", "scratch"])
@pytest.mark.parametrize("command", [["train", "--out", "OUT"], ["plan"]], ids=["train", "plan"])
def test_a_base_with_too_many_blocks_is_refused(
    init: str, command: list[str], bases: Callable[[str], Path], recipe_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = with_blocks(bases("bert"), tmp_path / "base")
    words = [word.replace("OUT", str(tmp_path / "run")) for word in command]
    words[1:1] = [str(recipe_file), f"base={base}", f"base.init={init}"]
    assert cli.run(words) == 2
    assert f"config.json of {base} has {BLOCKS:,} blocks, but the checkpoint has" in capsys.readouterr().err
    if init == "scratch":
        (base / "model.safetensors").unlink()
        assert cli.run(words) == 2
        assert "blocks, but no model has more than 10,000" in capsys.readouterr().err


@pytest.mark.slow
def test_a_merged_model_with_too_many_blocks_is_refused(
    finished_run: Path, bases: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(finished_run), "--to", "merged", "--out", str(tmp_path / "whole")]) == 0
    merged = with_blocks(tmp_path / "whole", tmp_path / "merged")
    proof = ["prove", str(bases("bert")), str(finished_run / "adapter"), str(merged)]
    for words in (["predict", "--run", str(merged), "--text", "word1"], proof):
        capsys.readouterr()
        assert cli.run(words) == 2
        assert f"has {BLOCKS:,} blocks, but the checkpoint has" in capsys.readouterr().err


def test_unknown_home_is_a_plain_name() -> None:
    with pytest.raises(UserError, match="~nobody-is-here/a: there is no such file"):
        fetch("~nobody-is-here/a")


def test_odd_suites_are_refused(tmp_path: Path, recipe_file: Path) -> None:
    file = tmp_path / "suite.yaml"
    start = f"recipe: {recipe_file}\naxes: {{strategies: [lora]}}\n"
    for line, message in (("set: [a]", "set: "), ("tuning: {trials: 99999999999}", "tuning.trials: ")):
        file.write_text(f"{start}{line}\n")
        with pytest.raises(UserError, match=message):
            suite.load(str(file)).cells()


RECORD = {"format": 3, "digest": "0" * 64, "status": "failed", "reason": "it", "versions": {}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"status": "odd"}, "status: "), ({"digest": 3}, "digest: "), ({"versions": None}, "versions: "),
     ({"status": "done"}, "seed: Field required"), ({"reason": []}, "reason: ")],
)  # fmt: skip
def test_damaged_records_of_trials_are_refused(change: dict[str, object], problem: str, tmp_path: Path) -> None:
    records.check(RECORD)
    text = json.dumps({**RECORD, **change})
    file = tmp_path / "it.json"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"it.json is not a record of a trial \({problem}"):
        trial.read(file)
    (tmp_path / archive.FILE).write_text(f"{json.dumps(RECORD)}\n{text}\n")
    with pytest.raises(UserError, match=rf"records.jsonl line 2 is not a record of a trial \({problem}"):
        archive.read(tmp_path)
    (tmp_path / archive.FILE).write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"records.jsonl line 1 is not a record"):
        archive.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"before": {}}, "before.majority: "), ({"before": "?"}, "before: "), ({"before": {"majority": []}}, "before.maj"),
     ({"params": {"trainable": 1, "adapter": 1}}, "params.head: "), ({"score_range": [0.0]}, "score_range: "),
     ({"units": []}, "record: units are missing")],
)  # fmt: skip
def test_damaged_records_of_finished_trials_are_refused(change: dict[str, object], problem: str) -> None:
    committed = Path(__file__).parents[1] / "benchmarks" / "results" / "zoo"
    record = next(one for one in archive.read(committed) if one["final"])
    records.check(record)
    with pytest.raises(ValueError, match=rf"^{problem}"):
        records.check({**record, **change})


def test_adapter_that_peft_cannot_merge_is_refused() -> None:
    """A damaged configuration may describe a method that cannot be merged."""
    import torch

    class Model(torch.nn.Module):
        def merge_and_unload(self) -> None:
            raise NotImplementedError("aLoRA does not support merging.")

    with pytest.raises(UserError, match=r"the adapter cannot be merged: aLoRA does not support merging"):
        merge_peft(Model())
