"""Exports load without pefttools and equal the trained model; an artifact that does not is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NO_HASHES, make_rows, train_tiny, write_rows

import pefttools
from pefttools.errors import UserError
from pefttools.exporters import exporters, verify
from pefttools.exporters.driver import export
from pefttools.recipe import recipes
from pefttools.strategies import strategies
from pefttools.strategies.lora import Lora


@pytest.fixture(scope="module", params=["full", "low_rank", "lora"])
def run(request: pytest.FixtureRequest, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `full`, of `low_rank` and of peft's LoRA; tests/test_strategies.py merges every strategy."""
    overrides = [f"strategy={request.param}", "train.learning_rate=1e-3", "train.epochs=1"]
    return train_tiny(recipe_file, tmp_path_factory.mktemp(request.param) / "run", *overrides)[0]


def batch(tokenizer: Any) -> Any:
    return tokenizer([row["text"] for row in make_rows(20, seed=11)], padding=True, return_tensors="pt")


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch(tokenizer)).logits


@pytest.mark.slow
def test_merged_is_a_plain_transformers_model(run: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    manifest = export(run, "merged")
    assert manifest["max_logit_error"] <= 1e-5
    assert (
        manifest["trained"] == manifest["exported"] == json.loads((run / "result.json").read_text())["test"]["accuracy"]
    )
    model = AutoModelForSequenceClassification.from_pretrained(run / "export" / "merged")
    tokenizer = AutoTokenizer.from_pretrained(run / "export" / "merged")
    trained = pefttools.load(run)
    assert (logits(model, tokenizer) - logits(trained.model, trained.base.tokenizer)).abs().max() <= 1e-5
    assert model.config.id2label == {0: "colour", 1: "fruit", 2: "tool"}
    assert model.config.label2id == {"colour": 0, "fruit": 1, "tool": 2}
    assert (
        json.loads((run / "export" / "merged" / "manifest.json").read_text())["base"]["sha256"] == trained.base.sha256
    )


@pytest.mark.slow
def test_adapter_loads_with_peft_or_pefttools(run: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    export(run, "adapter", tmp_path / "adapter")
    trained = pefttools.load(run)
    if "adapter_model.safetensors" in {p.name for p in run.joinpath("adapter").iterdir()} and isinstance(
        trained.model, PeftModel
    ):
        torch.manual_seed(77)
        base = AutoModelForSequenceClassification.from_pretrained(bases("bert"), num_labels=3)
        model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    else:
        model = pefttools.load(tmp_path / "adapter").model
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(model, tokenizer), logits(trained.model, trained.base.tokenizer))


@pytest.mark.parametrize("strategy", [name for name in strategies.names() if not strategies.get(name)().mergeable])
def test_unmergeable_strategy_is_refused_before_anything_is_loaded(strategy: str, recipe_file: Path) -> None:
    chosen = recipes.load(str(recipe_file), [f"strategy={strategy}"]).recipe
    with pytest.raises(UserError, match=rf"--to merged: {strategy} cannot be merged: .*; use --to adapter, or train"):
        exporters.get("merged")().refuse(chosen)


def scaling_dropped(self: Any, model: Any) -> Any:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = 1.0
    return model.merge_and_unload()


def head_swapped(self: Any, model: Any) -> Any:
    merged = model.merge_and_unload()
    torch.nn.init.normal_(merged.classifier.weight)
    return merged


def one_tensor_off(self: Any, model: Any) -> Any:
    merged = model.merge_and_unload()
    with torch.no_grad():
        merged.bert.encoder.layer[1].output.dense.weight *= 1.01
    return merged


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [scaling_dropped, head_swapped, one_tensor_off])
def test_wrong_merge_is_refused_and_removed(
    wrong: Callable[..., Any], finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lora, "merge", wrong)
    with pytest.raises(UserError, match="logits differ from the trained model's by up to"):
        export(finished_run, "merged", tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_exact_logits_are_float64_and_leave_weights_unchanged(finished_run: Path) -> None:
    """They even change with the last bit of one float32 weight."""
    trained = pefttools.load(finished_run)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    rows = make_rows(4, seed=11)
    arguments = (trained.model, trained.task, rows, trained.base.tokenizer)
    once, again = verify.exact_logits(*arguments), verify.exact_logits(*arguments)
    assert all(row.dtype is torch.float64 and torch.equal(row, same) for row, same in zip(once, again, strict=True))
    for name, tensor in trained.model.state_dict().items():
        assert tensor.dtype is before[name].dtype
        assert torch.equal(tensor, before[name])
    weight = next(p for n, p in trained.model.named_parameters() if n.endswith("LayerNorm.weight")).data
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))
    changed = verify.exact_logits(*arguments)
    assert all(0 < (row - other).abs().max() < 1e-5 for row, other in zip(once, changed, strict=True))


@pytest.mark.slow
def test_artifact_with_changed_id2label_is_refused(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Lora.merge

    def renamed(self: Any, model: Any) -> Any:
        merged = plain(self, model)
        merged.config.id2label = {0: "fruit", 1: "colour", 2: "tool"}
        return merged

    monkeypatch.setattr(Lora, "merge", renamed)
    with pytest.raises(UserError, match="the artifact's id2label is"):
        export(finished_run, "merged", tmp_path / "merged")


@pytest.mark.slow
def test_artifact_without_its_tokenizer_is_refused(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pefttools.exporters.merged import Merged

    plain = Merged.write

    def without(self: Any, model: Any, proof: Any, folder: Path) -> None:
        plain(self, model, proof, folder)
        (folder / "tokenizer.json").unlink()

    monkeypatch.setattr(Merged, "write", without)
    with pytest.raises(UserError, match="a new process cannot load the artifact"):
        export(finished_run, "merged", tmp_path / "merged")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_changed_base_is_refused(recipe_file: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bases("bert"), tmp_path / "base")
    run, _ = train_tiny(recipe_file, tmp_path / "run", f"base.source={tmp_path / 'base'}", "train.epochs=1")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    with pytest.raises(UserError, match="has changed: its sha256 is"):
        pefttools.load(run)


def test_incomplete_adapter_is_refused(finished_run: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(finished_run, tmp_path / "run", ignore=NO_HASHES)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: t for name, t in tensors.items() if "classifier" not in name}, file)
    with pytest.raises(UserError, match="the adapter is incomplete"):
        pefttools.load(tmp_path / "run")


def test_damaged_adapter_is_refused(finished_run: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(finished_run, tmp_path / "run", ignore=NO_HASHES)
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    save_file({name: -t if "classifier" in name else t for name, t in load_file(file).items()}, file)
    with pytest.raises(UserError, match="its adapter folder is damaged"):
        export(tmp_path / "run", "merged")


@pytest.mark.slow
def test_changed_data_is_refused_for_a_run_without_stored_rows(
    recipe_file: Path, rows_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(rows_file.read_text())
    run, _ = train_tiny(recipe_file, tmp_path / "run", f"data.train.source={tmp_path / 'rows.jsonl'}", "train.epochs=1")
    (tmp_path / "rows.jsonl").write_text("".join(rows_file.read_text().splitlines(keepends=True)[:300]))
    for name in ("rows.parquet", "hashes.json"):
        (run / name).unlink()  # as in runs from before these were stored
    with pytest.raises(UserError, match="the run's data has changed since it was trained"):
        export(run, "merged")


@pytest.mark.slow
def test_bf16_decoder_without_padding_token_is_exported(
    recipe_file: Path, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(bases("llama"), dtype=torch.bfloat16)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "base")
    for file in bases("llama").glob("tokenizer*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    overrides = [f"base={tmp_path / 'base'}", "train.epochs=1", "train.precision=bf16"]
    run, result = train_tiny(recipe_file, tmp_path / "run", *overrides)
    assert result["params"]["head"] == 3 * 32
    for to in ("merged", "adapter"):
        assert export(run, to)["max_logit_error"] <= 1e-5


@pytest.mark.slow
def test_text_pairs_are_trained_exported_and_predicted(recipe_file: Path, tmp_path: Path) -> None:
    from pefttools.inference.prediction import predict_rows

    rows = [{**row, "second": "word1 word2"} for row in make_rows(200)]
    overrides = [f"data.train={write_rows(tmp_path / 'rows.jsonl', rows)}", "data.columns.text_pair=second"]
    run, result = train_tiny(recipe_file, tmp_path / "run", *overrides)
    assert result["test"]["accuracy"] >= 0.9
    assert export(run, "merged")["exported"] == result["test"]["accuracy"]
    (prediction,) = predict_rows(run, [{"text": "word1 saw", "second": "word2"}])
    assert (prediction["prediction"], prediction["text_pair"]) == ("tool", "word2")
    with pytest.raises(UserError, match=r"the rows have no column .second. for text_pair"):
        list(predict_rows(run, [{"text": "word1 saw"}]))
