"""Generated text does not depend on the batch, on every architecture.

Exports are verified on rows alone and in a batch, so an artifact that differs only in a batch is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_bases
import torch
import transformers
from conftest import make_rows, train_tiny, write_recipe, write_rows
from test_batches import TEXTS, without_padding

from pefttools.bases.loading import BaseSettings
from pefttools.errors import UserError
from pefttools.exporters.driver import export
from pefttools.exporters.merged import Merged
from pefttools.inference.prediction import predict_rows
from pefttools.tasks import tasks

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
TOLERANCE = 1e-4
"""Tolerance between logits that should be equal, relative to the largest; float32 rounds at every step."""
CASES = [(kind, 0) for kind in (*tiny_bases.DECODERS, *tiny_bases.ENCODER_DECODERS)]
CASES += [("llama", 8), ("gpt2", 8), ("opt", -1), ("bloom", 3), ("bart", 8)]
"""Architecture, and the padding token of its configuration; unless that is 0, the tokenizer has none."""


def checkpoint(folder: Path, kind: str, pad: int = 0) -> Path:
    """A base with tied embeddings, so that a checkpoint without head has its output layer."""
    tiny_bases.write(folder, kind, without_padding if pad else None, tie_word_embeddings=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    return folder


@pytest.mark.parametrize(("kind", "pad"), CASES)
def test_generated_text_independent_of_batch(kind: str, pad: int, tmp_path: Path) -> None:
    encoder_decoder = kind in tiny_bases.ENCODER_DECODERS
    task = tasks.get("seq2seq" if encoder_decoder else "causal_lm").example()
    task = task.with_values(max_new_tokens=5, **({"num_beams": 1} if encoder_decoder else {"chat_template": TEMPLATE}))
    base = task.load(BaseSettings(source=str(checkpoint(tmp_path, kind, pad))))
    model: Any = base.model
    steps: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: steps.append(logits[:, -1]))
    rows = [task.read_unlabeled({"source" if encoder_decoder else "prompt": text}) for text in TEXTS]
    generated = list(task.generate(model, rows, base.tokenizer))
    together = torch.stack(steps, 1)
    predictions, position = dict(generated), {row: i for i, (row, _) in enumerate(generated)}
    for i, row in enumerate(rows):
        steps.clear()
        assert list(task.generate(model, [row], base.tokenizer)) == [(0, predictions[i])]
        alone = torch.cat(steps)
        assert float((together[position[i], : len(alone)] - alone).abs().max() / alone.abs().max()) < TOLERANCE


def test_generated_text_of_a_run_independent_of_batch(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama", 8)
    pairs = [{"prompt": row["text"], "completion": row["label"]} for row in make_rows(60)]
    task = {"name": "causal_lm", "max_length": 40, "max_new_tokens": 5, "chat_template": TEMPLATE, "generate_rows": 4}
    recipe = write_recipe(tmp_path / "r.yaml", base, write_rows(tmp_path / "rows.jsonl", pairs), task=task,
                          train={"epochs": 1, "learning_rate": 0.02})  # fmt: skip
    run, _ = train_tiny(recipe, tmp_path / "run")
    prompts = [{"prompt": text} for text in TEXTS]
    together = list(predict_rows(run, prompts, precision="fp32"))
    assert together == [alone for one in prompts for alone in predict_rows(run, [one], precision="fp32")]


@pytest.mark.parametrize("kind", ["llama", "xlnet"])
def test_artifact_with_other_logits_in_a_batch_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another padding token or padding side, the probabilities of rows alone stay right."""
    base = tiny_bases.write(tmp_path / "base", kind)
    recipe = write_recipe(tmp_path / "r.yaml", base, write_rows(tmp_path / "rows.jsonl", make_rows(60)),
                          task={"name": "text_classification", "max_length": 32}, train={"epochs": 1})  # fmt: skip
    run, _ = train_tiny(recipe, tmp_path / "run")
    whole, name, changed = Merged.write, "config.json", {"pad_token_id": 60}
    if kind == "xlnet":
        name, changed = "tokenizer_config.json", {"padding_side": "right"}
    alone: list[list[float]] = []

    def broken(self: Merged, model: Any, proof: Any, folder: Path) -> None:
        whole(self, model, proof, folder)
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
        plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.inference_mode():
            alone.extend(plain(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).tolist() for text in TEXTS)

    monkeypatch.setattr(Merged, "write", broken)
    with pytest.raises(UserError, match="the loaded merged model's logits differ from the expected ones"):
        export(run, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    expected = [
        [*row["probabilities"].values()] for row in predict_rows(run, [{"text": t} for t in TEXTS], precision="fp32")
    ]
    for values, right in zip(alone[:5], expected[:5], strict=True):
        assert values == pytest.approx(right, abs=1e-5)
