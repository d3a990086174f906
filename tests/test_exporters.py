"""Every exporter on every kind of task it is for: rounded, as a LoRA, in ONNX, in GGUF, from quantised bases."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import train_tiny, write_recipe, write_rows
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from pefttools import cli
from pefttools.bases import quantized
from pefttools.compatibility.tiny_models import ARCHITECTURES
from pefttools.errors import UserError
from pefttools.exporters import exporters, merging
from pefttools.exporters.as_lora import decomposed
from pefttools.exporters.driver import configured, export
from pefttools.exporters.merged import Merged
from pefttools.exporters.verify import gap
from pefttools.inference.prediction import predict_rows
from pefttools.settings import explain_field
from pefttools.tasks import tasks
from pefttools.training.run import Run


@pytest.fixture(scope="module")
def of_task(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> Callable[..., Path]:
    """A task's name and overrides -> a finished run on its sample rows, made once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(name: str, *overrides: str) -> Path:
        if (name, *overrides) not in made:
            folder, cls = tmp_path_factory.mktemp(name), tasks.get(name)
            rows = write_rows(folder / "rows.jsonl", [dict(row) for row in cls.samples] * 4)
            data = {"validation": str(rows), "test": str(rows), "deduplicate": False}
            task = {"name": name, "max_length": 32, **cls.sample_settings}
            family = "llama" if cls.auto_class == "AutoModelForCausalLM" else "bert"
            train = {"epochs": 2, "batch_size": 8}
            file = write_recipe(folder / "recipe.yaml", bases(family), rows, data=data, task=task, train=train)
            made[name, *overrides] = train_tiny(file, folder / "run", *overrides)[0]
        return made[name, *overrides]

    return run


@pytest.mark.parametrize("name", exporters.names())
def test_settings_are_explained_and_survive_yaml(name: str) -> None:
    cls = exporters.get(name)
    for field_name, field in cls.model_fields.items():
        assert explain_field(field), f"{name}.{field_name} has no docstring under it"
    again, problems = exporters.parse(yaml.safe_load(yaml.safe_dump(cls().as_dict())), "exporter")
    assert not problems
    assert again == cls()
    assert cls().rounds_to in cls.roundings
    assert exporters.summaries()[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("text_classification", "bfloat16"), ("token_classification", "float16"), ("causal_lm", "bfloat16"),
     ("regression", "bfloat16"), ("multiple_choice", "float16")],
)  # fmt: skip
def test_rounded_weights_are_told_from_wrong_ones(name: str, dtype: str, of_task: Any, tmp_path: Path) -> None:
    manifest = export(of_task(name), "merged", tmp_path / "out", settings=[f"dtype={dtype}"])
    assert manifest["merge_error"] <= 1e-5 < manifest["rounding_error"]
    assert manifest["loaded_error"] <= 1e-5
    assert manifest["dtype"] == json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    rows = [{k: v for k, v in row.items() if k not in tasks.get(name).targets} for row in tasks.get(name).samples]
    for precision in ("fp32", "bf16"):
        assert len(list(predict_rows(tmp_path / "out", rows, precision=precision))) == len(rows)


def test_an_answer_that_is_no_number_is_a_gap() -> None:
    right, wrong = [torch.zeros(2), torch.zeros(2)], [torch.zeros(2), torch.tensor([0.0, torch.nan])]
    assert gap(right, wrong) == gap(wrong, right) == gap(right, [torch.zeros(2), torch.zeros(3)]) == torch.inf
    assert gap(right, right) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("strategy", ["lora", "bitfit"])
def test_biases_beside_quantised_weights_keep_their_digits(kind: str, strategy: str, of_task: Any) -> None:
    """bitsandbytes puts a bias in the type of its input: bf16 must leave frozen ones as the checkpoint has them."""
    run = of_task("text_classification", f"base.quantize={kind}", f"strategy={strategy}", "train.precision=bf16")
    recipe = Run(run).recipe()
    base = recipe.task.load(recipe.base)
    fresh = {name: p.detach().clone() for name, p in base.model.named_parameters() if name.endswith(".bias")}
    model = recipe.strategy.wrap(base)
    batch = {"input_ids": torch.randint(5, 40, (2, 8))}
    for mode in (True, False):
        with quantized.computing_in_bf16(model), torch.autocast("cpu", torch.bfloat16):
            model.train(mode)(**batch).logits.sum().backward()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in model.named_parameters()
    }
    for name, bias in fresh.items():
        if ".encoder." in name:
            assert after[name].dtype is torch.float32
            assert torch.equal(after[name], bias)
    assert all(p.grad is None or p.grad.dtype is torch.float32 for p in model.parameters())


def test_quantised_gpt2_comes_back_as_gpt2(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", **ARCHITECTURES["gpt2"].sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    packed = quantized.configuration("nf4", AutoModelForCausalLM, config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=packed, dtype=torch.float32)
    quantized.mend(model)
    ids = torch.randint(3, 50, (2, 8))
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
        plain = quantized.dequantised(model).eval()
        assert torch.allclose(plain(input_ids=ids).logits, before, atol=1e-5)
        plain.save_pretrained(tmp_path / "plain")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
        assert torch.allclose(again(input_ids=ids).logits, before, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["question_answering", "masked_lm"])
def test_onnx_of_two_outputs_and_of_one_a_token(name: str, of_task: Any, tmp_path: Path) -> None:
    manifest = export(of_task(name), "onnx", tmp_path / "out")
    assert manifest["max_logit_error"] <= 1e-4 * max(1, manifest["largest_logit"])
    assert {"model.onnx", "config.json", "tokenizer.json", "manifest.json", "README.md"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


@pytest.mark.slow
def test_onnx_holds_adapters_that_cannot_merge(of_task: Any, tmp_path: Path) -> None:
    run = of_task("text_classification", "strategy=adapter", "data.labels.fruit=Obst")  # a label that no sample has
    assert export(run, "onnx", tmp_path / "out")["trained"] > 0
    with pytest.raises(UserError, match="--to onnx: prompt"):
        export(of_task("text_classification", "strategy=prompt"), "onnx", tmp_path / "other")


def test_onnx_and_gguf_refuse_what_they_cannot(of_task: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="works with encoders only, and causal_lm generates text; use --to merged, or --to gguf"
    ):
        export(of_task("causal_lm"), "onnx", tmp_path / "out")
    with pytest.raises(UserError, match="works with decoders that generate text only"):
        export(of_task("text_classification"), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_lora_as_lora_is_exact_at_its_rank(of_task: Any, tmp_path: Path) -> None:
    manifest = export(of_task("text_classification"), "adapter", tmp_path / "out", settings=["as_lora=8"])
    assert manifest["max_logit_error"] <= 1e-5
    assert manifest["as_lora"]["energy"] == pytest.approx(1, abs=1e-5)
    assert manifest["as_lora"]["left_out"] == 0


@pytest.mark.slow
def test_a_setting_as_an_option_is_understood(of_task: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(of_task("text_classification")), "--to", "adapter", "--out", str(tmp_path / "out")]
    assert cli.run([*words, "--as-lora", "8"]) == 0
    said = capsys.readouterr()
    assert "--as-lora 8 is read as as_lora=8; write as_lora=8 instead" in said.err
    assert "as a LoRA of rank 8 with" in said.out
    assert cli.run([*words, "--otu", "8"]) == 2
    assert "unknown option '--otu'; did you mean '--out'?" in capsys.readouterr().err


@pytest.mark.slow
def test_full_as_lora_loads_by_peft_and_tells_its_error(of_task: Any, bases: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run = of_task("text_classification", "strategy=full", "train.learning_rate=0.001")
    narrow = export(run, "adapter", tmp_path / "one", settings=["as_lora=1"])
    wide = export(run, "adapter", tmp_path / "most", settings=["as_lora=0.99"])
    assert narrow["max_logit_error"] > wide["max_logit_error"] > 0
    assert narrow["as_lora"]["energy"] < wide["as_lora"]["energy"]
    assert wide["as_lora"]["left_out"] > 0  # biases, norms and embeddings moved too
    base = AutoModelForSequenceClassification.from_pretrained(bases("bert"), num_labels=2)
    config: Any = PeftModel.from_pretrained(base, str(tmp_path / "most")).peft_config["default"]
    assert config.r > 1


@pytest.mark.slow
def test_what_cannot_be_a_lora_says_so(of_task: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bitfit changed no matrix"):
        export(of_task("text_classification", "strategy=bitfit"), "adapter", tmp_path / "out", settings=["as_lora=8"])
    for value in ("0", "1.5", "-2", "nan"):
        with pytest.raises(UserError, match="as_lora"):
            configured("adapter", [f"as_lora={value}"])
    with pytest.raises(UserError, match="unknown key 'dtpye'; did you mean 'dtype'"):
        configured("merged", ["dtpye=bfloat16"])
    assert not (tmp_path / "out").exists()


def test_a_change_is_cut_where_least_is_lost() -> None:
    draw = torch.Generator().manual_seed(0)
    change = torch.randn(6, 4, generator=draw) @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0]))
    squares = torch.linalg.svdvals(change).square()
    for size, rank in ((2, 2), (0.999, None), (1.0, 3), (9, 3)):
        left, right, share = decomposed(change, size)
        rank = rank or len(right)
        assert len(right) == rank
        lost = (change - left @ right).square().sum()
        assert float(lost) == pytest.approx(float(squares[rank:].sum()), abs=1e-4)
        assert share == pytest.approx(float(squares[:rank].sum() / squares.sum()), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_quantised_bases_merge_by_the_better_route(kind: str, of_task: Any, tmp_path: Path) -> None:
    run = of_task("text_classification", f"base.quantize={kind}")
    merged = export(run, "merged", tmp_path / "merged")
    routes = merged["routes"]
    assert merged["route"] == min(routes, key=lambda name: routes[name]["max_logit_error"])
    assert max(found["merge_error"] for found in routes.values()) <= 1e-5
    assert merged["merge_error"] == routes[merged["route"]]["merge_error"]
    if kind != "int8":  # which rounds activations too
        assert routes["dequantised"]["max_logit_error"] <= 1e-4 < routes["full"]["max_logit_error"]
    assert export(run, "adapter", tmp_path / "adapter")["max_logit_error"] <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_wrong_merge_does_not_hide_behind_quantised_arithmetic(
    kind: str, of_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = of_task("text_classification", f"base.quantize={kind}"), merging._plain

    def one_tensor_off_by_a_percent(trained: Any) -> Any:
        model = plain(trained)
        model.get_parameter("bert.encoder.layer.0.attention.self.query.weight").data *= 1.01
        return model

    monkeypatch.setattr(merging, "_plain", one_tensor_off_by_a_percent)
    with pytest.raises(UserError, match="merging into the dequantised base changes the logits by up to"):
        export(run, "merged", tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(of_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource
    import signal

    run = of_task("text_classification")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    plain = Merged.write

    def on_a_full_disk(*given: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
        try:
            plain(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    monkeypatch.setattr(Merged, "write", on_a_full_disk)
    try:
        with pytest.raises(UserError, match=r"cannot be written: .*too large"):
            export(run, "merged", tmp_path / "out")
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())


def test_the_card_has_what_the_hub_reads(of_task: Any, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    manifest = export(of_task("text_classification"), "merged", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    about = card.data.to_dict()
    assert about["pipeline_tag"] == "text-classification"
    assert about["library_name"] == "transformers"
    (score,) = about["model-index"][0]["results"]
    assert score["metrics"][0]["value"] == round(manifest["exported"], 4)
    assert manifest["base"]["sha256"] in card.text
    assert "hf upload" in card.text


@pytest.mark.slow
def test_a_quantised_run_is_planned_with_smaller_weights(of_task: Any) -> None:
    from pefttools.planning.planner import plan

    runs = [Run(of_task("text_classification", *words)) for words in ((), ("base.quantize=nf4",))]
    plans = [plan(run.recipe()) for run in runs]
    assert plans[0].params == plans[1].params == runs[1].result()["params"]
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert plans[0].bytes["weights"] - plans[1].bytes["weights"] == 4 * matrices - matrices // 2 - 4 * matrices // 64


def test_what_is_counted_as_quantised_is_what_transformers_quantises(tmp_path: Path) -> None:
    """T5's `wo` stays in fp32, whatever is asked for."""
    import bitsandbytes

    config = AutoConfig.for_model("t5", **ARCHITECTURES["t5"].sizes)
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(tmp_path)
    packed = quantized.configuration("nf4", AutoModelForSeq2SeqLM, config)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, quantization_config=packed)
    found = [path for path, module in loaded.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert set(quantized.matrices(model)) == set(found) == {path for path in found if not path.endswith(".wo")}


def test_quantised_bases_refuse_what_changes_their_matrices(recipe_file: Path, tmp_path: Path) -> None:
    for words, said in (
        (["strategy=full"], "quantised weights cannot be trained"),
        (["strategy=low_rank"], "quantised weights cannot be trained"),
        (["base.init=scratch"], "a model from scratch has nothing to quantise"),
        (["base.quantize=nf5"], "'nf5' is not allowed; did you mean 'nf4'?"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            train_tiny(recipe_file, tmp_path / "run", "base.quantize=nf4", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_quantised_decoder(of_task: Any, tmp_path: Path) -> None:
    run = of_task("causal_lm", "base.quantize=nf4")
    assert export(run, "merged", tmp_path / "merged")["route"] == "dequantised"
