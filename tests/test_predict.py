"""Prediction of many rows: order, precision, streaming, and padding equal to the tokenizer's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import torch
from conftest import make_rows, make_tokenizer, write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from pefttools import cli
from pefttools.compatibility import tiny_models
from pefttools.data.reading import read, stream
from pefttools.data.settings import FileSettings
from pefttools.data.splitting import load_splits
from pefttools.data.texts import encode_pairs
from pefttools.errors import UserError
from pefttools.inference import optimize, prediction
from pefttools.inference.optimize import to_bf16
from pefttools.inference.prediction import predict_rows
from pefttools.inference.unlabeled import rows_to_predict
from pefttools.nn import attention, module_paths
from pefttools.reporter import SILENT
from pefttools.strategies import strategies
from pefttools.tasks import tasks
from pefttools.training.run import Run, Trained, load

ROWS = [{"text": row["text"], "id": str(i)} for i, row in enumerate(make_rows(300, seed=5))]


def tokenizers() -> dict[str, Any]:
    made = {
        "plain": make_tokenizer(),
        "two segments": make_tokenizer(("input_ids", "token_type_ids", "attention_mask")),
        "left": make_tokenizer(),
        "without a mask": make_tokenizer(("input_ids",)),
    }
    made["left"].padding_side = "left"
    made["left"]._pad_token_type_id = 3  # XLNet's
    return made


@pytest.mark.parametrize("name", tokenizers())
@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), segments=st.booleans(), multiple=st.integers(1, 9))
def test_batches_are_padded_as_the_tokenizer_pads(name: str, lengths: list[int], segments: bool, multiple: int) -> None:
    tokenizer = tokenizers()[name]
    columns = {"input_ids": [list(range(5, 5 + n)) for n in lengths]}
    if segments:
        columns["token_type_ids"] = [[0] * (n // 2) + [1] * (n - n // 2) for n in lengths]
    expected = tokenizer.pad(dict(columns), pad_to_multiple_of=multiple, return_tensors="pt")
    batch = tasks.get("text_classification").example().collate(columns, tokenizer, multiple)
    assert batch.keys() == expected.keys()
    for part, values in batch.items():
        assert values.dtype == expected[part].dtype
        assert torch.equal(values, expected[part])


@pytest.mark.parametrize("second", [None, ["pear", "saw", "red " * 30]])
def test_truncation_independent_of_batch(second: list[str] | None) -> None:
    first, tokenizer = ["word1 apple", "word2 " * 40, "word3"], tokenizers()["two segments"]
    together = encode_pairs(first, second, tokenizer, 16)
    alone = [
        encode_pairs([a], [b] if b else None, tokenizer, 16) for a, b in zip(first, second or [""] * 3, strict=True)
    ]
    assert together == {name: [one[name][0] for one in alone] for name in together}
    assert together["cut"] == [False, True, second is not None]


@pytest.mark.slow
def test_fp32_predictions_equal_those_of_the_run(finished_run: Path) -> None:
    recipe = Run.open(finished_run).recipe()
    rows = load_splits(recipe.data, recipe.task).test
    stored = pyarrow.parquet.read_table(finished_run / "predictions.parquet").to_pylist()
    predictions = list(predict_rows(finished_run, rows, precision="fp32"))
    assert [one["prediction"] for one in predictions] == [one["prediction"] for one in stored]
    for one, known in zip(predictions, stored, strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(known["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_bf16_predictions_are_close_and_in_the_same_order(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = list(predict_rows(finished_run, ROWS, precision="fp32"))
    monkeypatch.setattr(prediction, "CHUNK", 70)
    rounded = list(predict_rows(finished_run, ROWS, precision="bf16"))
    assert [row["id"] for row in exact] == [row["id"] for row in rounded] == [row["id"] for row in ROWS]
    largest = 0.0
    for one, other in zip(exact, rounded, strict=True):
        shares, others = one["probabilities"], other["probabilities"]
        first, second, *_ = sorted(shares.values(), reverse=True)
        assert one["prediction"] == other["prediction"] or first - second < 0.05
        largest = max(largest, *(abs(shares[name] - others[name]) for name in shares))
    assert 0 < largest < 0.05


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
@pytest.mark.parametrize("name", ["text_classification", "token_classification", "causal_lm", "seq2seq"])
def test_bf16_logits_are_close_on_every_architecture(name: str, architecture: str) -> None:
    task = tasks.get(name).example()
    try:
        base = tiny_models.base(task, architecture, False, tiny_models.ARCHITECTURES[architecture].sizes)
    except UserError:
        pytest.skip("no such model")
    batch = tiny_models.batch(task, base.model.config, 3)

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return task.logits(base.model(**task.inputs_of(batch)), batch)

    exact = logits()
    to_bf16(base.model, base.head)
    for changed in (lambda _: None, attention.use):
        changed(base.model)
        assert logits().dtype == torch.float32 or not task.own_head
        assert (logits() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("name", tasks.names())
def test_tasks_of_likelihoods_stay_in_fp32_unless_bf16_is_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "precision_of", lambda precision: "fp32" if precision == "fp32" else "bf16")
    task = tasks.get(name).example()
    architecture = {"AutoModelForCausalLM": "llama", "AutoModelForSeq2SeqLM": "bart"}.get(task.auto_class, "bert")
    for precision in ("fp32", "auto", "bf16"):
        base = tiny_models.base(task, architecture, False, tiny_models.ARCHITECTURES[architecture].sizes)
        recipe: Any = SimpleNamespace(strategy=strategies.get("frozen")())
        model = optimize.optimized(Trained(base.model, base, task, recipe, Path()), precision)
        rounded = precision == "bf16" or (precision == "auto" and task.takes_rounding)
        table = model.get_input_embeddings().weight  # type: ignore[operator]
        assert table.dtype == (torch.bfloat16 if rounded else torch.float32)


def test_rows_are_read_one_chunk_at_a_time(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal pulled
        for row in ROWS:
            pulled += 1
            yield row

    monkeypatch.setattr(prediction, "CHUNK", 8)
    predictions = predict_rows(finished_run, rows())
    next(predictions)
    assert pulled == 8
    list(islice(predictions, 8))
    assert pulled == 16


@pytest.mark.slow
def test_files_are_streamed(finished_run: Path, tmp_path: Path) -> None:
    good = [{"text": f"word{i % 40} apple", "label": "fruit"} for i in range(30_000)]
    broken = tmp_path / "rows.jsonl"
    broken.write_text("".join(json.dumps(row) + "\n" for row in good) + "{")
    rows = iter(rows_to_predict(Run(finished_run).recipe(), str(broken), (), ()))
    assert list(islice(rows, 30_000)) == good
    assert re.search(r"rows.jsonl line 30001: not JSON", str(next(rows)))
    ragged = write_csv(tmp_path / "rows.csv", good)
    position = ragged.stat().st_size + 3
    with ragged.open("ab") as file:
        file.write(b"caf\x81,fruit\n")
    rows = stream(FileSettings(source=str(ragged)), "predict", SILENT)
    with pytest.raises(UserError, match=rf"byte 0x81 at position {position} is not utf-8 \(line 30002\)"):
        next(rows)  # before the first row, so that no prediction is lost


@pytest.mark.parametrize(
    ("name", "text", "more", "expected"),
    [
        ("a.txt", "a\u2028b\r\n\nc", {}, [{"text": "a\u2028b"}, {"text": "c"}]),
        ("a.txt", "no\nx=1\ny=2\n", {"pattern": r"\w=(?P<text>\d)", "last_rows": 2}, [{"text": "1"}, {"text": "2"}]),
        (
            "a.csv",
            '\ufefftext,label\n"a\nb",NA\nc,\n',
            {},
            [{"text": "a\nb", "label": "NA"}, {"text": "c", "label": ""}],
        ),
        ("a.tsv", "a\tb\n\nc\td", {"header": ("x", "y")}, [{"x": "a", "y": "b"}, {"x": "c", "y": "d"}]),
        ("a.jsonl", '{"text": "a"}\r\n\n{"text": "\u2028"}', {}, [{"text": "a"}, {"text": "\u2028"}]),
    ],
)
def test_lines_are_split_at_line_breaks_only(
    name: str, text: str, more: dict[str, Any], expected: list[Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert read(FileSettings(source=str(tmp_path / name), **more), "data.train", SILENT) == expected


@pytest.mark.slow
def test_predict_prints_json_lines(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert cli.run(["predict", str(finished_run), str(file), "--precision", "fp32"]) == 0
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert predictions == list(predict_rows(finished_run, ROWS, precision="fp32"))
    assert cli.run(["predict", str(finished_run), str(file), "--precision", "fp16"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "fp16" in captured.err
    assert "bf16" in captured.err


def test_classifier_computes_its_last_block_for_one_token(finished_run: Path) -> None:
    found = load(finished_run)
    ids = torch.arange(12).view(2, 6)
    model: Any = found.recipe.strategy.merge(found.model).eval()
    last = model.get_submodule(module_paths.blocks(model)[-1])
    widths: list[int] = []
    last.register_forward_hook(lambda _, __, output: widths.append(output.shape[1]))
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        alone = optimize.optimized(found, "fp32")(input_ids=ids).logits
    assert widths[0] == 6
    assert widths[-1] == 1
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-5)
