"""Tokens added to a frozen vocabulary: equal logits, training, saving with peft, folding into a plain model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from pefttools.bases.loading import prepare_libraries
from pefttools.compatibility import tiny_models
from pefttools.nn import new_tokens

FAMILIES = (
    "bert",
    "electra",
    "deberta-v2",
    "modernbert",
    "distilbert",
    "llama",
    "gemma",
    "gpt2",
    "t5",
    "bart",
)
K = 3


def model_of(family: str, auto: str = "AutoModelForSequenceClassification", **more: Any) -> Any:
    sizes = {**tiny_models.ARCHITECTURES[family].sizes, "num_labels": 3, **more}
    config = transformers.AutoConfig.for_model(family, **sizes)
    kind = getattr(transformers, auto)
    torch.manual_seed(3)
    return kind.from_config(config).eval()


def batch_of(model: Any, new: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (4, 8), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = model.config.eos_token_id
    if new:
        ids[:, 2 : 2 + K] = torch.arange(60, 60 + K)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("family", FAMILIES)
def test_extended_vocabulary_keeps_logits_trains_and_folds(family: str) -> None:
    model = model_of(family)
    old, new = batch_of(model, False), batch_of(model, True)
    with torch.no_grad():
        before = model(**old).logits
    kinds = [(name, type(m)) for name, m in model.named_modules(remove_duplicate=False)]
    (path,) = new_tokens.extend(model, K)
    extra = model.get_submodule(path)
    assert extra.weight.shape == (K, model.get_input_embeddings().weight.shape[1])
    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == 60
    with torch.no_grad():
        assert torch.equal(model(**old).logits, before)

    model.requires_grad_(False)
    extra.requires_grad_(True)
    model(**new).logits.square().sum().backward()
    assert (extra.weight.grad.abs().sum(-1) > 0).all()

    with torch.no_grad():
        extra.weight.add_(torch.randn_like(extra.weight))
        logits = model(**new).logits
        rows = extra.weight.clone()
        assert new_tokens.fold(model) is model
        assert torch.equal(model(**new).logits, logits)
        assert torch.equal(model(**old).logits, before)
    assert [(name, type(m)) for name, m in model.named_modules(remove_duplicate=False)] == kinds
    assert model.config.vocab_size == 60 + K
    assert torch.equal(model.get_input_embeddings().weight[60:], rows)
    assert all(m.num_embeddings == len(m.weight) for m in model.modules() if isinstance(m, nn.Embedding))


@pytest.mark.parametrize("family", ["bert", "gemma", "bart", "t5"])
def test_folded_model_loads_in_plain_transformers(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    new_tokens.extend(model, K)
    new = batch_of(model, True)
    with torch.no_grad():
        logits = model(**new).logits
    new_tokens.fold(model).save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**new).logits, logits)


@pytest.mark.parametrize(
    ("family", "tied"), [("bert", True), ("bert", False), ("llama", True), ("llama", False), ("bart", True)]
)
def test_output_layer_grows_and_stays_tied(family: str, tied: bool, tmp_path: Path) -> None:
    auto = {"bert": "AutoModelForMaskedLM", "llama": "AutoModelForCausalLM", "bart": "AutoModelForSeq2SeqLM"}[family]
    model = model_of(family, auto, tie_word_embeddings=tied)
    new_tokens.extend(model, K)
    new = batch_of(model, True)
    with torch.no_grad():
        logits = model(**new).logits
        new_tokens.fold(model)
        grown = model(**new).logits
    assert (logits.shape[-1], grown.shape[-1]) == (60, 60 + K)
    assert torch.equal(grown[..., :60], logits)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    again = getattr(transformers, auto).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**new).logits, grown)


@pytest.mark.parametrize("family", ["bert", "llama", "bart", "modernbert"])
def test_peft_trains_saves_loads_and_merges_new_embeddings(family: str, tmp_path: Path) -> None:
    prepare_libraries()  # peft imports a name that transformers deprecates

    def extended() -> tuple[Any, list[str]]:
        model = model_of(family)
        return model, new_tokens.extend(model, K)

    model, paths = extended()
    start = model.get_submodule(paths[0]).weight.clone()
    head = [name for name, child in model.named_children() if name != model.base_model_prefix and [*child.parameters()]]
    config = peft.LoraConfig(
        task_type="SEQ_CLS", modules_to_save=[*paths, *head], target_modules="all-linear", exclude_modules=head
    )
    wrapped = peft.get_peft_model(model, config)
    (trained,) = [name for name, p in wrapped.named_parameters() if p.requires_grad and f"{paths[0]}." in name]
    assert "modules_to_save.default" in trained
    assert not model.get_input_embeddings().weight.requires_grad
    new = batch_of(model, True)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        wrapped(**new).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.eval()
    with torch.no_grad():
        logits = wrapped(**new).logits
    wrapped.save_pretrained(str(tmp_path))

    reloaded, _ = extended()
    loaded = peft.PeftModel.from_pretrained(reloaded, str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**new).logits, logits)
        merged = new_tokens.fold(loaded.merge_and_unload())  # type: ignore[operator]
        torch.testing.assert_close(merged(**new).logits, logits, rtol=0, atol=1e-5)
    assert not torch.equal(merged.get_input_embeddings().weight[60:], start)
    assert type(merged.get_input_embeddings()).__name__ in {"Embedding", "BartScaledWordEmbedding"}


def test_new_embeddings_start_near_the_mean_and_follow_the_seed() -> None:
    models = [model_of("bert") for _ in range(3)]
    rows = []
    for seed, model in zip((0, 0, 1), models, strict=True):
        torch.manual_seed(seed)
        rows.append(model.get_submodule(new_tokens.extend(model, K)[0]).weight)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    table = models[0].get_input_embeddings().weight
    distance = (rows[0] - table.mean(0)) / table.std(0)
    assert 0.05 < distance.std() < 0.2


def test_tokens_on_unused_embeddings_and_known_tokens() -> None:
    model = model_of("bert")
    batch = batch_of(model, False)
    batch["input_ids"][:] = torch.tensor([2, 57, 58, 59, 60, 5, 6, 3])
    with torch.no_grad():
        before = model(**{name: value[:, :2] for name, value in batch.items()}).logits
    (path,) = new_tokens.extend(model, 3, ids=[57, 59, 60], known=[57])
    table = model.get_input_embeddings()
    assert torch.equal(model.get_submodule(path).weight[0], table.weight[57])
    with torch.no_grad():
        assert torch.equal(model(**{name: value[:, :2] for name, value in batch.items()}).logits, before)
        looked_up = table(torch.tensor([57, 58, 59, 60]))
        rows = model.get_submodule(path).weight
        assert torch.equal(looked_up, torch.stack([rows[0], table.weight[58], rows[1], rows[2]]))
        logits = model(**batch).logits
        new_tokens.fold(model)
        assert torch.equal(model(**batch).logits, logits)
    assert model.config.vocab_size == len(table.weight) == 61


def test_tokens_on_unused_embeddings_do_not_grow_the_vocabulary() -> None:
    model = model_of("bert")
    new_tokens.extend(model, 2, ids=[40, 41])
    assert len(new_tokens.fold(model).get_input_embeddings().weight) == model.config.vocab_size == 60
    assert new_tokens.fold(model) is model


@pytest.mark.parametrize("family", ["bert", "gemma", "bart"])
def test_extend_works_on_meta_and_fake_tensors(family: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        model = model_of(family)
    (path,) = new_tokens.extend(model, K)
    assert model.get_submodule(path).weight.is_meta
    assert type(model.get_submodule(path)) is nn.Embedding
    with FakeTensorMode():
        model = model_of(family)
        assert new_tokens.extend(model, K) == [path]
        table = model.get_input_embeddings()
        assert table(batch_of(model, True)["input_ids"]).shape == (4, 8, table.embedding_dim)


def test_deep_copy_has_its_own_new_embeddings() -> None:
    model = model_of("bart")
    (path,) = new_tokens.extend(model, K)
    other = copy.deepcopy(model)
    new = batch_of(model, True)
    with torch.no_grad():
        logits = model(**new).logits
        other.get_submodule(path).weight.zero_()
        assert torch.equal(model(**new).logits, logits)
        assert not torch.equal(other(**new).logits, logits)


def test_unsupported_embeddings_are_refused_and_left_unchanged() -> None:
    class Own(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return nn.functional.embedding(input, self.weight)

    model = model_of("bert")
    model.get_input_embeddings().__class__ = Own
    names = list(model.state_dict())
    with pytest.raises(ValueError, match="Own looks up tokens in an unsupported way"):
        new_tokens.extend(model, K)
    assert type(model.get_input_embeddings()) is Own
    assert list(model.state_dict()) == names
    model.set_input_embeddings(nn.Linear(60, 32))
    with pytest.raises(ValueError, match="are a Linear, not a table"):
        new_tokens.extend(model, K)
    with pytest.raises(ValueError, match="BartForSequenceClassification has two vocabularies"):
        new_tokens.extend(model_of("bart", tie_word_embeddings=False), K)
