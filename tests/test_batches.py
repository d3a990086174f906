"""Predictions for a text do not depend on its batch, for special tokens, long texts and every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_bases
import torch
import transformers
from conftest import make_rows, train_tiny, write_recipe, write_rows

from pefttools import cli
from pefttools.bases.loading import Base, BaseSettings
from pefttools.data.splitting import Row
from pefttools.errors import UserError
from pefttools.exporters import driver, verify
from pefttools.inference.prediction import predict_rows
from pefttools.nn import positions
from pefttools.tasks import tasks
from pefttools.tasks.base import Task

TEXTS = (
    "red apple word1 word2",
    "saw",
    "word3 </s> hammer <pad> word4 <s> <unk> <mask>",
    "green pear word5 <pad>",
    "word6 strange </s>",
    " ".join(["word7 blue"] * 100),
)
"""Short and long texts, some with special tokens in the middle or at the end, one with an unknown word."""
CLASSIFY = tasks.get("text_classification").example()
OTHERS = [name for name in tasks.names() if tasks.get(name).own_head and name != CLASSIFY.name]
"""Tasks with a head of their own, besides text classification."""
SAME = 1e-5
"""Tolerance between logits that should be equal, relative to the largest; float32 rounds."""
UPPER = {
    "bert": 48, "roberta": 47, "xlm-roberta": 47, "camembert": 47, "data2vec-text": 47, "ibert": 47, "mpnet": 46,
    "longformer": 47, "esm": 47, "luke": 47, "gpt2": 48, "opt": 48, "biogpt": 48, "ctrl": 48, "mpt": 48, "bart": 48,
    "mbart": 48, "xlm": 48, "t5": positions.ENDLESS, "bloom": positions.ENDLESS, "xlnet": positions.ENDLESS,
}  # fmt: skip
"""The longest input, in tokens, of a model whose configuration allows 48 positions."""


def rows_of(task: Task) -> list[Row]:
    """The texts as rows of a task to predict on."""
    makers: dict[str, Callable[[str], dict[str, Any]]] = {
        "token_classification": lambda text: {"tokens": text.split()},
        "question_answering": lambda text: {"question": f"word1 {text[:20]}", "context": text},
        "multiple_choice": lambda text: {
            "text": text,
            "choices": [text[::-1], "saw </s>", "pear"][: 2 + len(text) % 2],
        },
        "relation_extraction": lambda text: {"text": f"{text[:40]} <e1>red</e1> or <e2>blue</e2> {text}"},
        "regression": lambda text: {"text": text, "text_pair": "saw </s> pear"},
    }
    make = makers.get(task.name, lambda text: {"text": text})
    return [task.read_unlabeled(make(text)) for text in TEXTS]


def example(name: str) -> Task:
    task = tasks.get(name).example()
    return task.with_values(pair=True) if name == "regression" else task


def supports(task: Task, kind: str) -> bool:
    mapping = getattr(transformers, task.auto_class)._model_mapping
    return transformers.CONFIG_MAPPING[kind] in mapping


def gap(base: Base, task: Task, rows: list[Row]) -> float:
    """The largest difference between logits of rows alone and in one batch, relative to the largest logit."""
    logits, predictions = verify.logits_and_predictions(base.model, task, rows, base.tokenizer)
    alone = [row for one in rows for row in verify.logits_and_predictions(base.model, task, [one], base.tokenizer)[0]]
    assert len(predictions) == len(rows)
    return verify.gap(logits, alone) / max(float(row.abs().max()) for row in logits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind -> folder of its tiny checkpoint, made once."""
    root, made = tmp_path_factory.mktemp("kinds"), dict[str, Path]()
    return lambda kind: made.get(kind) or made.setdefault(kind, tiny_bases.write(root / kind, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in tiny_bases.KINDS if supports(CLASSIFY, k) and k != "fnet"])
def test_logits_independent_of_batch(kind: str, folder: Callable[[str], Path]) -> None:
    base = CLASSIFY.load(BaseSettings(source=str(folder(kind))))
    assert gap(base, CLASSIFY, rows_of(CLASSIFY)) < SAME
    assert base.tokenizer.model_max_length == UPPER.get(kind, base.tokenizer.model_max_length)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", ["roberta", "longformer", "deberta-v2", "xlnet", "llama", "gpt_neox", "bart", "t5"])
def test_logits_of_other_tasks_independent_of_batch(name: str, kind: str, folder: Callable[[str], Path]) -> None:
    task = example(name)
    if supports(task, kind):
        assert gap(task.load(BaseSettings(source=str(folder(kind)))), task, rows_of(task)) < SAME
    else:
        with pytest.raises(UserError, match=f"transformers has no {task.auto_class} for"):
            task.load(BaseSettings(source=str(folder(kind))))


def without_padding(tokenizer: Any) -> None:
    tokenizer.pad_token = None


def without_padding_and_end(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token = None


def without_anything(tokenizer: Any) -> None:
    for name in list(tokenizer.special_tokens_map):
        setattr(tokenizer, name, None)


def with_the_end_appended(tokenizer: Any) -> None:
    from tokenizers import processors

    tokenizer.pad_token = None
    frames = {"single": "$A </s>", "pair": "$A </s> $B </s>"}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(**frames, special_tokens=[("</s>", 3)])


ODD_PADDING = {
    "minus one, and none": (-1, without_padding),
    "a word, and none": (8, without_padding),
    "none, and no end": (None, without_padding_and_end),
    "another one": (3, None),
    "none at all": (None, without_anything),
    "the end after every text": (0, with_the_end_appended),
    "beyond the table": (64, without_padding),
}
"""The configuration's padding token, and how the tokenizer is changed."""


@pytest.mark.parametrize("odd", ODD_PADDING)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom", "mpt"])
def test_logits_independent_of_batch_when_config_and_tokenizer_disagree_on_padding(
    odd: str, kind: str, tmp_path: Path
) -> None:
    pad, edit = ODD_PADDING[odd]
    tiny_bases.write(tmp_path, kind, edit)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.pad_token_id = pad
    config.save_pretrained(tmp_path)
    base = CLASSIFY.load(BaseSettings(source=str(tmp_path)))
    assert gap(base, CLASSIFY, rows_of(CLASSIFY)) < SAME
    assert base.model.config.pad_token_id == base.tokenizer.pad_token_id
    last = [row[-1] for row in CLASSIFY.encode(rows_of(CLASSIFY), base.tokenizer)["input_ids"]]
    assert base.tokenizer.pad_token_id not in last, "a text ends with padding, and its last token is not read"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "edit", "pad"), [("llama", without_padding, -1), ("xlnet", None, 0), ("t5", None, 0)])
def test_exported_model_gives_the_probabilities_of_predict_in_every_batch(
    kind: str, edit: Any, pad: int, tmp_path: Path
) -> None:
    """Plain transformers loads the export and predicts rows alone and in one batch."""
    base = tiny_bases.write(tmp_path / "base", kind, edit)
    config = transformers.AutoConfig.from_pretrained(base)
    config.pad_token_id = pad
    config.save_pretrained(base)
    rows = write_rows(tmp_path / "rows.jsonl", [{**row, "text": f"{row['text']} </s>"} for row in make_rows(60)])
    task = {"name": "text_classification", "max_length": 32}
    run, _ = train_tiny(write_recipe(tmp_path / "r.yaml", base, rows, task=task, train={"epochs": 1}), tmp_path / "run")
    predictions = list(predict_rows(run, ({"text": text} for text in TEXTS), precision="fp32"))
    folder = Path(driver.export(run, "merged")["folder"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for texts in (list(TEXTS), *([text] for text in TEXTS)):
        batch = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            found = model(**batch).logits.softmax(-1).tolist()
        for text, values in zip(texts, found, strict=True):
            assert values == pytest.approx([*predictions[TEXTS.index(text)]["probabilities"].values()], abs=1e-5)


def test_a_model_that_reads_padding_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_bases.write(tmp_path / "base", "fnet")
    file = write_recipe(tmp_path / "r.yaml", base, write_rows(tmp_path / "rows.jsonl", make_rows(60)),
                        task={"name": "text_classification"}, strategy="frozen")  # fmt: skip
    assert cli.run(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "(FNetForSequenceClassification) reads padding" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
