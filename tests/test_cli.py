"""The command line: its output, and its error for every invalid input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_rows, write_csv, write_rows

from pefttools import cli
from pefttools.training.run import MARK


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Arguments -> exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


Invoke = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_list_is_fast_and_imports_nothing_slow() -> None:
    check = (
        "import sys; from pefttools import cli; code = cli.run(['list']);"
        "sys.exit(code or ', '.join({'torch', 'transformers', 'peft', 'pandas', 'pydantic'} & {*sys.modules}) or 0)"
    )
    seconds, listing = [], ""
    for _ in range(3):
        before = os.times()
        process = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
        after = os.times()  # processor time: wall time would depend on other processes
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
        assert (process.returncode, process.stderr) == (0, "")
        listing = process.stdout
    assert "question-type-lora" in listing
    assert min(seconds) <= 1.0  # 0.3 on a quiet machine; a busy one takes twice that


def test_list_names_everything(invoke: Invoke) -> None:
    code, out, _ = invoke("list", "--json")
    listing = json.loads(out)
    assert code == 0
    assert {"full", "lora", "top_layers"} <= set(listing["strategies"])
    assert set(listing["exporters"]) == {"adapter", "gguf", "merged", "onnx"}
    assert all(summary for kind in listing.values() for summary in kind.values())


def test_show_explain_gives_the_origin_of_values(invoke: Invoke) -> None:
    code, out, _ = invoke("show", "question-type-lora", "strategy.rank=16", "--explain")
    assert code == 0
    lines = {line.split("#")[0].strip(): line.partition("#")[2].strip() for line in out.splitlines() if "#" in line}
    assert lines["rank: 16"].startswith("override: r, the inner size")
    assert lines["learning_rate: null"].startswith("0.001, default of lora")
    assert lines["max_length: 64"].startswith("recipe")
    assert lines["batch_size: 32"].startswith("default:")


def test_another_strategy_has_its_own_learning_rate(invoke: Invoke) -> None:
    _, out, _ = invoke("show", "sst2-full", "strategy=lora", "--json")
    values = json.loads(out)
    assert values["recipe"]["train"]["learning_rate"] == 1e-3
    assert values["origins"]["train.learning_rate"] == "default of lora, instead of the recipe's 2e-05"


@pytest.mark.slow
def test_train_evaluate_predict_and_resume(invoke: Invoke, recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, stdout, _ = invoke("train", recipe_file, "--out", out, "--json", "train.epochs=6")
    assert code == 0
    result = json.loads(stdout)
    assert result["before"]["accuracy"] < 0.6
    assert result["test"]["accuracy"] >= 0.9
    assert result["params"]["trainable"] == result["params"]["adapter"] + result["params"]["head"]
    code, stdout, _ = invoke("evaluate", out, "--json")
    assert json.loads(stdout)["accuracy"] == result["test"]["accuracy"]
    assert invoke("evaluate", out)[1].count("fruit") == 1
    code, stdout, _ = invoke("predict", out, "--text", "word1 apple word2", "--text", "word3 saw")
    assert [json.loads(line)["prediction"] for line in stdout.splitlines()] == ["fruit", "tool"]
    rows = write_rows(tmp_path / "ask.jsonl", [{"text": "word1 pear", "id": 7}, {"text": "blue word4"}])
    code, stdout, _ = invoke("predict", out, rows)
    predictions = [json.loads(line) for line in stdout.splitlines()]
    assert [(a.get("id"), a["prediction"]) for a in predictions] == [(7, "fruit"), (None, "colour")]
    assert abs(sum(predictions[0]["probabilities"].values()) - 1) < 1e-5
    code, stdout, err = invoke("train", recipe_file, "--out", out, "--resume", "train.epochs=6")
    assert (code, "nothing to do" in err) == (0, True)
    code, _, err = invoke("train", recipe_file, "--out", out, "train.epochs=6")
    assert (code, "contains a finished run of this recipe; add --resume" in err) == (2, True)
    code, _, err = invoke("train", recipe_file, "--out", out, "--resume", "train.epochs=7")
    assert (code, "contains a finished run of another recipe" in err) == (2, True)


BAD_RECIPES = {
    "an unknown recipe": (["spam-lorra"], ["unknown recipe 'spam-lorra'; did you mean 'spam-lora'?"]),
    "a recipe file that is not there": (["no/such.yaml"], ["no/such.yaml: there is no such recipe file"]),
    "an unknown strategy": (["strategy=lorra"], ["strategy: unknown strategy 'lorra'; did you mean 'lora'? Known: "]),
    "an unknown task": (["task=text_clas"], ["task: unknown task 'text_clas'; did you mean 'text_classification'?"]),
    "several at once": (
        ["strategy.rnk=3", "train.epoch=2", "train.precision=fp17", "train.schedule=cosin"],
        [
            "strategy.rnk: unknown key 'rnk'; did you mean 'rank'? Known: rank, ",
            "train.epoch: unknown key 'epoch'; did you mean 'epochs'?",
            "train.precision: 'fp17' is not allowed; did you mean 'fp16'? Allowed: auto, fp32, bf16, fp16",
            "train.schedule: 'cosin' is not allowed; did you mean 'cosine'?",
        ],
    ),
    "an unknown section": (["trian.epochs=2"], ["trian: unknown key 'trian'; did you mean 'train'?"]),
    "a wrong type": (["train.epochs=many"], ["train.epochs: input should be a valid number"]),
    "a bare no": (["train.precision=no"], ["train.precision: 'no' is not allowed. Allowed: auto"]),
    "true for a number": (["train.batch_size=true"], ["train.batch_size: true is not allowed here"]),
    "rank 0": (["strategy.rank=0"], ["strategy.rank: input should be greater than or equal to 1, got 0"]),
    "a rank larger than the matrix": (["strategy.rank=40"], ["strategy.rank: 40 is more than "]),
    "no override": (["train.epochs"], ["'train.epochs' is not an override; write KEY=VALUE"]),
    "parts of a number": (["seed.value=1"], ["seed: input should be a valid integer"]),
    "shares that leave nothing": (["data.test_share=0.95"], ["leave no rows to train on"]),
    "a missing file": (["data.train=no.csv"], ["data.train: ", "no.csv: there is no such file or folder"]),
    "a missing base": (["base=./no-model"], ["base: ", "no-model: there is no such file or folder"]),
    "a folder that is no model": (["base=."], ["is an empty folder"]),
    "a hash that does not match": (["base.sha256=" + "f" * 64], ["content's sha256 is", "but the recipe pins ffff"]),
    "a malformed pypi source": (["base=pypi:nothing"], ["pypi:nothing: is malformed; write pypi:NAME==VERSION/PATH"]),
    "no network for hf": (["base=hf:some/model"], ["base: hf:some/model: ", "cannot be reached"]),
    "no network for hf data": (["data.train=hf:some/rows"], ["data.train: hf:some/rows: ", "cannot be reached"]),
    "an unknown tracker": (["train.trackers=[tensorbord]"], ["unknown tracker 'tensorbord'; did you mean 'tens"]),
    "a tracker that is not installed": (["train.trackers=[wandb]"], ["train.trackers: wandb is not installed"]),
    "betas out of range": (["train.optimizer.betas=[0.9, 1.5]"], ["input should be less than 1, got 1.5"]),
    "no end": (["train.epochs=.inf"], ["train.epochs: input should be a finite number"]),
    "a pattern that is none": (
        ["data.train={source: a.txt, format: lines, pattern: (}"],
        ["data.train: `pattern` is not a regular expression"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD_RECIPES)
def test_invalid_recipe_is_refused(
    mistake: str, invoke: Invoke, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD_RECIPES[mistake]
    if mistake not in ("an unknown recipe", "a recipe file that is not there"):
        arguments = [str(recipe_file), *arguments]
    code, out, err = invoke("train", *arguments, "--out", tmp_path / "run")
    assert code == 2
    assert out == ""
    for sentence in expected:
        assert sentence in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


BAD_DATA = {
    "empty": (["data.train=empty.csv"], "data.train: empty.csv is empty: it has no rows"),
    "a header alone": (["data.train=header.csv"], "data.train: header.csv is empty"),
    "invalid UTF-8": (["data.train=latin.csv"], "data.train: latin.csv: byte 0x81 at position 14 is not utf-8"),
    "ragged": (["data.train=ragged.csv"], "ragged.csv line 3 has 4 columns but the header line has 2"),
    "ragged in its first row": (["data.train=first.csv"], "first.csv line 2 has 3 columns but the header line has 2"),
    "a name twice": (["data.train={source: bare.csv, header: [a, a]}"], "`header` names a column twice"),
    "half a character": (["data.train=half.jsonl"], "half.jsonl: row 1 has half a character"),
    "broken json": (["data.train=broken.jsonl"], "broken.jsonl line 2: not JSON"),
    "json that is no list": (["data.train=list.json"], "needs a list of objects"),
    "not parquet": (["data.train=not.parquet"], "not a parquet file"),
    "an unknown ending": (["data.train=rows.docx"], "its format cannot be recognized from the ending '.docx'"),
    "missing columns": (
        ["data.train=odd.csv"],
        "odd.csv has no column 'label' for label; set data.columns.label=labl. Columns: Satz, labl",
    ),
    "a column that is not there": (
        ["data.train=good.csv", "data.columns.text=txt"],
        "has no column 'txt' for text; set data.columns.text=text",
    ),
    "a field the task lacks": (
        ["data.train=good.csv", "data.columns.words=text"],
        "the task text_classification has no field words. Fields: text, text_pair, label, id",
    ),
    "a row with no text": (["data.train=gap.csv"], "gap.csv: row 61 has no text"),
    "a row with no label": (["data.train=unlabelled.csv"], "unlabelled.csv: row 61 has no label"),
    "one class": (["data.train=one.csv"], "has one class only ('fruit')"),
    "labels that no training row has": (
        ["data.train=good.csv", "data.test=new.csv"],
        "data.test: labels that no training row has: 'bird'. Training has 'colour'",
    ),
    "fewer rows than classes": (
        ["data.train=good.csv", "data.train_rows=2", "task.labels=[colour, fruit, tool]"],
        "data.train: 2 rows for 3 classes",
    ),
    "a bin of a word": (
        ["data.train=good.csv", "data.bins={edges: [0], names: [low, high]}"],
        "has the label 'fruit', but data.bins needs numbers",
    ),
    "bins that do not match": (
        ["data.train=good.csv", "data.bins={edges: [0, 1], names: [low, high]}"],
        "one name more than edges",
    ),
}


def write_bad_files(folder: Path) -> None:
    good = make_rows(60)
    contents = {
        "empty.csv": b"",
        "header.csv": b"text,label\n",
        "latin.csv": "text,label\ncaf\x81,fruit\n".encode("latin-1"),
        "ragged.csv": b"text,label\na,b\na,b,c,d\n",
        "broken.jsonl": b'{"text": "a", "label": "b"}\n{"text": \n',
        "list.json": b'[{"text": "a"}, 3]',
        "not.parquet": b"PK",
        "rows.docx": b"PK",
        "first.csv": b"text,label\nHello, world,greeting\nbye,other\n",
        "bare.csv": b"a,b\n",
        "half.jsonl": b'{"text": "\\ud800", "label": "b"}\n',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_csv(folder / "odd.csv", [{"Satz": r["text"], "labl": r["label"]} for r in good])
    write_csv(folder / "gap.csv", [*good, {"text": "  ", "label": "fruit"}])
    write_csv(folder / "unlabelled.csv", [*good, {"text": "word1 word2", "label": ""}])
    write_csv(folder / "one.csv", [r for r in good if r["label"] == "fruit"])
    write_csv(folder / "new.csv", [{"text": "word9 kiwi", "label": "bird"}])
    write_csv(folder / "good.csv", good)


@pytest.mark.parametrize("mistake", BAD_DATA)
def test_invalid_data_is_refused(
    mistake: str, invoke: Invoke, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bad_files(tmp_path)
    arguments, expected = BAD_DATA[mistake]
    before = sorted(tmp_path.iterdir())
    code, out, err = invoke("train", recipe_file, *arguments, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert expected in err.replace(f"{tmp_path}/", "")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_output_folder_that_is_not_empty_is_refused(
    invoke: Invoke, recipe_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    for command in (["train", recipe_file], ["export", finished_run, "--to", "merged"]):
        code, _, err = invoke(*command, "--out", tmp_path)
        assert (code, err) == (2, f"error: --out: {tmp_path} is not empty; name a new or empty folder\n")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "nowhere"], "nowhere: there is no run here"),
        (["evaluate", "RUN", "train.epochs=3"], "train.epochs: evaluate accepts overrides of data only"),
        (["predict", "RUN"], "name a file, - for standard input, or use --text"),
        (
            ["predict", "RUN", "x.jsonl", "task.max_length=9"],
            "task.max_length: predict accepts overrides of",
        ),
        (["export", "RUN", "--to", "onx"], "unknown exporter 'onx'"),
        (["export", "nowhere", "--to", "merged"], "nowhere: there is no run here"),
        (["trian"], 'Unknown command "trian"'),
        (["train"], "requires an argument"),
        (["train", "question-type-lora", "--outt", "x"], "Unknown option: --outt"),
        (["list", "recipe"], "recipe"),
    ],
)
def test_invalid_arguments_are_refused(arguments: list[str], sentence: str, invoke: Invoke, finished_run: Path) -> None:
    code, out, err = invoke(*(str(finished_run) if a == "RUN" else a for a in arguments))
    assert (code, out) == (2, "")
    assert sentence in err


def test_error_about_an_unfinished_run_gives_the_command_to_resume(
    invoke: Invoke, recipe_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe_file.read_text())
    code, _, err = invoke("train", tmp_path / "recipe.yaml", "--out", tmp_path, "--resume")
    assert (code, err) == (
        2,
        f"error: --out: {tmp_path} is not empty; name a new or empty folder\n",
    )  # a folder with the user's own recipe.yaml is not a run
    (tmp_path / "recipe.yaml").write_text(f"{MARK}\n{recipe_file.read_text()}")
    code, _, err = invoke("export", tmp_path, "--to", "merged")
    assert code == 2
    assert f"pefttools train {tmp_path / 'recipe.yaml'} --out {tmp_path} --resume" in err
