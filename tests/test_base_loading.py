"""Loading a base: its head, weights, positions and module paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import Listener

from pefttools.bases.loading import BaseSettings
from pefttools.errors import UserError
from pefttools.nn import module_paths, positions
from pefttools.strategies import strategies
from pefttools.strategies.lora import Lora
from pefttools.strategies.top_layers import TopLayers
from pefttools.tasks.text_classification import TextClassification

TASK = TextClassification(labels=("a", "b"))


def test_trained_pooler_is_not_part_of_the_head(bases: Callable[[str], Path]) -> None:
    assert TASK.load(BaseSettings(source=str(bases("bert")))).head == ("classifier",)


def test_untrained_pooler_is_part_of_the_head(bases: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(bases("bert"))
    torch.nn.init.zeros_(model.pooler.dense.bias)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(bases("bert")).save_pretrained(tmp_path)
    assert TASK.load(BaseSettings(source=str(tmp_path))).head == ("classifier", "bert.pooler")


def test_missing_pooler_is_part_of_the_head(bases: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(bases("bert"), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(bases("bert")).save_pretrained(tmp_path)
    assert TASK.load(BaseSettings(source=str(tmp_path))).head == ("classifier", "bert.pooler")


@pytest.mark.slow
def test_a_head_of_two_layers_is_one_module(bases: Callable[[str], Path]) -> None:
    assert TASK.load(BaseSettings(source=str(bases("roberta")))).head == ("classifier",)


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")])
def test_head_in_the_checkpoint_is_the_head(
    labels: tuple[str, ...], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert"))))
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    again = TextClassification(labels=labels).load(BaseSettings(source=str(tmp_path)))
    assert again.head == ("classifier",)
    assert again.model.classifier.out_features == len(labels)  # type: ignore[union-attr]


def test_a_base_without_such_a_head_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(bases("bert")).save_pretrained(tmp_path)
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="transformers has no AutoModelForSequenceClassification for models of the type 'vit'"
    ):
        TASK.load(BaseSettings(source=str(tmp_path), init="scratch"))


def test_truncated_weights_are_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    for file in bases("bert").iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[:900] if file.suffix == ".safetensors" else file.read_bytes()
        )
    with pytest.raises(UserError, match=r"the weights of .* cannot be loaded"):
        TASK.load(BaseSettings(source=str(tmp_path)))


def test_checkpoint_without_a_block_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in bases("bert").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    remaining = {name: t for name, t in tensors.items() if "layer.1.output" not in name}
    save_file(remaining, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights of its blocks"):
        TASK.load(BaseSettings(source=str(tmp_path)))


def test_maximum_length_is_limited_by_tokenizer_and_positions(bases: Callable[[str], Path]) -> None:
    assert TASK.load(BaseSettings(source=str(bases("bert")))).tokenizer.model_max_length == 64  # the tokenizer's own
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.RobertaConfig(max_position_embeddings=514))
    assert positions.limit(model) == 512


def test_a_gguf_base_is_dequantized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy
    from gguf import GGUFWriter

    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    file, draw = tmp_path / "tiny.gguf", numpy.random.default_rng(0)
    tokens = ["<unk>", "<s>", "</s>", *"abcdefgh", "ab", "cd"]
    writer = GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
    named = {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in shapes.items()}
    named |= {"token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,), "output.weight": (len(tokens), 32)}
    for name, shape in named.items():
        writer.add_tensor(name, draw.normal(size=shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = TASK.load(BaseSettings(source=str(file)))
    assert base.head == ("score",)
    assert base.tokenizer.pad_token_id == base.model.config.pad_token_id == 2
    (folder,) = (p for p in (tmp_path / "cache" / "dequantised").iterdir() if not p.name.startswith("."))
    modified = (folder / "model.safetensors").stat().st_mtime_ns
    model = strategies.get("lora")().wrap(TASK.load(BaseSettings(source=str(file))))
    assert (folder / "model.safetensors").stat().st_mtime_ns == modified
    with torch.no_grad():
        assert model(torch.tensor([[3, 4, 5]]), attention_mask=torch.ones(1, 3)).logits.isfinite().all()
    weights, listener = folder / "model.safetensors", Listener()
    whole = weights.read_bytes()
    weights.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    TASK.load(BaseSettings(source=str(file)), listener)
    assert weights.read_bytes() == whole
    assert any("so it is made again" in note for note in listener.notes)


def test_a_named_module_joins_the_head(bases: Callable[[str], Path]) -> None:
    base = TASK.load(BaseSettings(source=str(bases("bert")), head=("bert.pooler",)))
    assert base.head == ("classifier", "bert.pooler")
    with pytest.raises(UserError, match=r"base\.head: unknown module 'bert\.poler'; did you mean 'bert\.pooler'"):
        TASK.load(BaseSettings(source=str(bases("bert")), head=("bert.poler",)))


def test_labels_are_in_the_configuration(bases: Callable[[str], Path]) -> None:
    config = TASK.load(BaseSettings(source=str(bases("llama")))).model.config
    assert config.id2label == {0: "a", 1: "b"}
    assert config.pad_token_id == 0


def test_full_paths_distinguish_modules_with_the_same_name(bases: Callable[[str], Path]) -> None:
    model = TASK.load(BaseSettings(source=str(bases("bert")))).model
    linears = module_paths.linears(model)
    assert len(linears) == 12
    assert not any("pooler" in path for path in linears)
    found = module_paths.matching(linears, ["query", "*.attention.output.dense", "*.[0-9].output.dense", "nothing"])
    assert {pattern: len(paths) for pattern, paths in found.items()} == {
        "query": 2, "*.attention.output.dense": 2, "*.[0-9].output.dense": 2, "nothing": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Lora(targets=("qury",)), r"'qury' matches no matrix of .*did you mean 'query'\? Matrices: query \(2\)"),
        (Lora(rank=33), r"strategy\.rank: 33 is more than 32, the smaller side of"),
        (TopLayers(layers=3), r"strategy\.layers: 3 is more than the 2 blocks"),
    ],
)
def test_settings_that_do_not_fit_the_base_are_refused(
    strategy: Lora | TopLayers, message: str, bases: Callable[[str], Path]
) -> None:
    with pytest.raises(UserError, match=message):
        strategy.wrap(TASK.load(BaseSettings(source=str(bases("bert")))))
