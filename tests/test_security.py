"""Each claim of SECURITY.md, tested where a user would meet it: files are read, and no code in them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_HASHES

from pefttools import cli
from pefttools.sources import fetch
from pefttools.sources.cache import cache_dir

Run = Callable[..., tuple[int, str]]


class Evil:
    """Its pickle creates the file `it` when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A path that exists only after foreign code has run."""
    return tmp_path / "foreign code ran"


@pytest.fixture
def base(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to change."""
    return Path(shutil.copytree(bases("bert"), tmp_path / "base"))


@pytest.fixture
def run(rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line; returns its exit code and stderr."""

    def run(*words: object) -> tuple[int, str]:
        code = cli.run([str(word) for word in words])
        return code, capsys.readouterr().err

    return run


def train(run: Run, base: Path, rows: Path, out: Path, *words: str) -> tuple[int, str]:
    return run("train", "question-type-lora", f"base={base}", f"data.train={rows}", *words, "--out", out)


# Weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_base_is_refused_with_the_way_to_convert_it(
    name: str, base: Path, rows_file: Path, tmp_path: Path, run: Run, mark: Path
) -> None:
    (base / "model.safetensors").unlink()
    (base / name).write_bytes(pickle.dumps({"weight": Evil(mark)}))
    code, message = train(run, base, rows_file, tmp_path / "out")
    assert code == 2
    assert f"contains its weights as a pickle ({name}), which can run code when it is loaded; convert it" in message
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_command_for_conversion_gives_the_same_base(base: Path, rows_file: Path, tmp_path: Path, run: Run) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")
    _, message = train(run, base, rows_file, tmp_path / "out")
    command = " ".join(message.partition("convert it to safetensors: ")[2].split())
    assert command.startswith('python -c "import torch')
    done = subprocess.run(f"{sys.executable}{command.removeprefix('python')}", shell=True, check=False)
    assert done.returncode == 0
    converted = load_file(base / "model.safetensors")
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)
    assert run("plan", "question-type-lora", f"base={base}", f"data.train={rows_file}")[0] == 0


def test_pickle_next_to_safetensors_is_never_opened(base: Path, rows_file: Path, run: Run, mark: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil(mark)}))
    (base / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Evil(mark)}))
    assert run("plan", "question-type-lora", f"base={base}", f"data.train={rows_file}")[0] == 0
    assert not mark.exists()


@pytest.mark.parametrize("command", ["predict", "export"])
def test_pickled_adapter_is_refused(command: str, finished_run: Path, tmp_path: Path, run: Run, mark: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run", ignore=NO_HASHES))
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    (folder / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps({"weight": Evil(mark)}))
    words = ["--text", "word1"] if command == "predict" else ["--to", "merged"]
    code, message = run(command, folder, *words)
    assert code == 2
    assert "adapter_model.safetensors" in message
    assert not mark.exists()


def test_synonyms_database_cannot_run_code(mark: Path) -> None:
    from pefttools.data.synonym_lists import _PlainValues

    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        _PlainValues(io.BytesIO(pickle.dumps(Evil(mark)))).load()
    assert not mark.exists()


# Code ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer"])
def test_code_of_a_model_never_runs_nor_is_anybody_asked(
    part: str, base: Path, rows_file: Path, run: Run, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on the terminal whether to run it."""
    (base / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    file = base / ("tokenizer_config.json" if part == "AutoTokenizer" else "config.json")
    values = json.loads(file.read_text())
    named = ["evil.Evil", None] if part == "AutoTokenizer" else "evil.Evil"
    changed = {"model_type": "evil"} if part == "AutoConfig" else {"tokenizer_class": "Evil"}
    values = {**values, **changed, "auto_map": {part: named}}
    file.write_text(json.dumps(values))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    code, message = run("plan", "question-type-lora", f"base={base}", f"data.train={rows_file}")
    assert not mark.exists()
    assert sys.stdin.read() == "y\n" * 20
    if part == "AutoConfig":
        assert code == 2
        assert "error: base: the configuration of " in message
        assert "it needs Python code of its own, which pefttools never runs" in message
    else:  # transformers' own class and tokenizer.json are enough
        assert code == 0


def test_chat_template_runs_in_a_sandbox(tokenizer: Any) -> None:
    from pefttools.data.chat_template import rendered
    from pefttools.errors import UserError

    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match=r"task\.chat_template: rejects a chat .*unsafe"):
        rendered([{"role": "user", "content": "a"}], tokenizer, template)


EVIL_YAML = "!!python/object/apply:os.mkdir [{mark!r}]"


@pytest.mark.parametrize("where", ["recipe", "override", "suite"])
def test_yaml_cannot_run_code(where: str, recipe_file: Path, tmp_path: Path, run: Run, mark: Path) -> None:
    value, file = EVIL_YAML.format(mark=str(mark)), tmp_path / "it.yaml"
    if where == "override":
        code, message = run("show", recipe_file, f"train.epochs={value}")
    elif where == "recipe":
        file.write_text(f"{recipe_file.read_text()}\nseed: {value}\n")
        code, message = run("show", file)
    else:
        file.write_text(f"recipe: {recipe_file}\naxes: {{strategies: [lora]}}\nseeds: {value}\n")
        code, message = run("bench", file, "--plan")
    assert code == 2
    assert message.startswith("error: ")
    assert not mark.exists()


@pytest.mark.slow
def test_plugins_come_only_from_named_folders(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the current folder, nor the data's; listing does not import them."""
    source = (
        f'"""mine: it."""\nimport os\nos.mkdir({str(mark)!r})\n'
        "from pefttools.strategies.lora import Lora\nclass Mine(Lora):\n    pass\n"
    )
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "mine.py").write_text(source)
    words = [sys.executable, "-c", "from pefttools.__main__ import main; main()", "list", "strategies"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("PEFTTOOLS_PLUGINS", None)
    for named, expected in (({}, False), ({"PEFTTOOLS_PLUGINS": str(tmp_path)}, True)):
        done = subprocess.run(words, cwd=tmp_path, env=environment | named, capture_output=True, text=True, check=True)
        assert ("mine" in done.stdout.split()) == expected
        assert not mark.exists()


# Pins and paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["base", "data.train"])
def test_content_other_than_the_pinned_one_is_refused(
    what: str, base: Path, rows_file: Path, tmp_path: Path, run: Run
) -> None:
    code, message = train(run, base, rows_file, tmp_path / "out", f"{what}.sha256={'0' * 64}")
    assert code == 2
    assert "content's sha256 is" in message
    assert f"but the recipe pins {'0' * 64}" in message
    assert not (tmp_path / "out").exists()


def test_index_of_weights_cannot_leave_the_pinned_folder(base: Path, rows_file: Path, tmp_path: Path, run: Run) -> None:
    (base / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "../outside.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "model-00001-of-00001.safetensors").write_bytes(b"")
    code, message = train(run, base, rows_file, tmp_path / "out")
    assert code == 2
    assert "names '../outside.safetensors' for weights, which is not a file of this folder" in message


@pytest.mark.parametrize("member", ["/{mark}", "some_rows/../../{mark}", "some_rows//{mark}", "..\\{mark}", "C:/a"])
def test_wheel_with_a_path_outside_is_refused(
    member: str, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, run: Run, recipe_file: Path
) -> None:
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    wheel = cache_dir("wheels", "some_rows-1.2-py3-none-any.whl")
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_rows/a.csv", "text,label\n")
        archive.writestr(member.format(mark=str(mark).lstrip("/")), "evil")
    for path in (".", "some_rows", "some_rows/a.csv"):
        code, message = run("show", recipe_file, f"data.train=pypi:some-rows==1.2/{path}", "--sample", "1")
        assert code == 2
        assert "a path outside of it; do not use this wheel" in message
    assert not mark.exists()
    assert not (tmp_path / "cache" / "pypi" / "evil").exists()


def test_source_cannot_name_a_path_outside_of_its_wheel(run: Run, recipe_file: Path) -> None:
    code, message = run("show", recipe_file, "data.train=pypi:pip==1/../../secret.csv", "--sample", "1")
    assert code == 2
    assert "the path is outside of the wheel" in message


@pytest.mark.parametrize("file", ["dataset_dict.json", "state.json"])
def test_saved_data_set_cannot_name_files_outside_of_its_folder(
    file: str, tmp_path: Path, run: Run, recipe_file: Path
) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "rows")
    rows.save_to_disk(tmp_path / "secret")
    if file == "dataset_dict.json":
        (tmp_path / "rows" / file).write_text('{"splits": ["../secret"]}')
    else:
        state = tmp_path / "rows" / "train" / file
        values = json.loads(state.read_text())
        values["_data_files"] = [{"filename": "../../secret/data-00000-of-00001.arrow"}]
        state.write_text(json.dumps(values))
    code, message = run("show", recipe_file, f"data.train={tmp_path / 'rows'}", "--sample", "1")
    assert code == 2
    assert f"{file}: names '../" in message


def test_report_shows_markup_in_rows_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttools.bench import report

    monkeypatch.setattr(report.charts, "specs", lambda summary: {})
    text = "</script><script>alert('evil')</script>"
    page = report.page({"suite": text}, {"rows": [text]})
    assert "alert('evil')" in page
    assert "<script>alert" not in page


def test_message_cannot_control_the_terminal(recipe_file: Path, tmp_path: Path, run: Run) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"\x1b[2J\r\nerror: nothing": "a", "label": "b"}] * 3))
    code, message = run("show", recipe_file, f"data.train={rows}", "--sample", "1")
    assert code == 2
    assert "\x1b" not in message
    assert "\\x1b[2J" in message


def test_downloads_are_wheels_which_are_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    wheel = cache_dir("wheels", "some_rows-1.2-py3-none-any.whl")
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_rows/__init__.py", "raise RuntimeError('imported')")
        archive.writestr("some_rows/a.csv", "text,label\n")
    assert fetch("pypi:some-rows==1.2/some_rows/a.csv").read_text() == "text,label\n"
    assert "some_rows" not in sys.modules
