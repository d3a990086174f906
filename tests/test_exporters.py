"""Exporters on the tasks that they support: rounded weights, as a LoRA, ONNX and GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sample_runs import SampleRuns

from pefttools import cli
from pefttools.errors import UserError
from pefttools.exporters import exporters
from pefttools.exporters.as_lora import decomposed
from pefttools.exporters.driver import configured, export
from pefttools.exporters.merged import Merged
from pefttools.exporters.verify import gap
from pefttools.inference.prediction import predict_rows
from pefttools.settings import explain_field
from pefttools.tasks import tasks


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, bases: Callable[[str], Path]) -> SampleRuns:
    return SampleRuns(tmp_path_factory, bases)


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
def test_rounding_error_is_reported_apart_from_merge_error(name: str, dtype: str, run_of: Any, tmp_path: Path) -> None:
    manifest = export(run_of(name), "merged", tmp_path / "out", settings=[f"dtype={dtype}"])
    assert manifest["merge_error"] <= 1e-5 < manifest["rounding_error"]
    assert manifest["loaded_error"] <= 1e-5
    assert manifest["dtype"] == json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    rows = [{k: v for k, v in row.items() if k not in tasks.get(name).targets} for row in tasks.get(name).samples]
    for precision in ("fp32", "bf16"):
        assert len(list(predict_rows(tmp_path / "out", rows, precision=precision))) == len(rows)


def test_nan_logits_are_an_infinite_gap() -> None:
    right, wrong = [torch.zeros(2), torch.zeros(2)], [torch.zeros(2), torch.tensor([0.0, torch.nan])]
    assert gap(right, wrong) == gap(wrong, right) == gap(right, [torch.zeros(2), torch.zeros(3)]) == torch.inf
    assert gap(right, right) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["question_answering", "masked_lm", "masked_lm_pairs"])
def test_onnx_export_of_question_answering_and_masked_lm(name: str, run_of: Any, tmp_path: Path) -> None:
    manifest = export(run_of(name), "onnx", tmp_path / "out")
    assert manifest["max_logit_error"] <= 1e-4 * max(1, manifest["largest_logit"])
    assert {"model.onnx", "config.json", "tokenizer.json", "manifest.json", "README.md"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


@pytest.mark.slow
def test_onnx_exports_adapters_that_cannot_merge(run_of: Any, tmp_path: Path) -> None:
    run = run_of("text_classification", "strategy=adapter", "data.labels.fruit=Obst")  # a label that no sample has
    assert export(run, "onnx", tmp_path / "out")["trained"] > 0
    with pytest.raises(UserError, match="--to onnx: prompt"):
        export(run_of("text_classification", "strategy=prompt"), "onnx", tmp_path / "other")


def test_onnx_and_gguf_refuse_unsupported_tasks(run_of: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="works with encoders only, and causal_lm generates text; use --to merged, or --to gguf"
    ):
        export(run_of("causal_lm"), "onnx", tmp_path / "out")
    with pytest.raises(UserError, match="works with decoders that generate text only"):
        export(run_of("text_classification"), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_as_lora_of_a_lora_run_is_exact_at_its_rank(run_of: Any, tmp_path: Path) -> None:
    manifest = export(run_of("text_classification"), "adapter", tmp_path / "out", settings=["as_lora=8"])
    assert manifest["max_logit_error"] <= 1e-5
    assert manifest["as_lora"]["energy"] == pytest.approx(1, abs=1e-5)
    assert manifest["as_lora"]["left_out"] == 0


@pytest.mark.slow
def test_exporter_setting_written_as_an_option_is_accepted(
    run_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run_of("text_classification")), "--to", "adapter", "--out", str(tmp_path / "out")]
    assert cli.run([*words, "--as-lora", "8"]) == 0
    captured = capsys.readouterr()
    assert "--as-lora 8 is the old syntax of as_lora=8; write as_lora=8 instead" in captured.err
    assert "as a LoRA of rank 8 with" in captured.out
    assert cli.run([*words, "--otu", "8"]) == 2
    assert "unknown option '--otu'; did you mean '--out'?" in capsys.readouterr().err


@pytest.mark.slow
def test_as_lora_of_a_full_run_loads_in_peft_and_reports_its_error(run_of: Any, bases: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    run = run_of("text_classification", "strategy=full", "train.learning_rate=0.001")
    narrow = export(run, "adapter", tmp_path / "one", settings=["as_lora=1"])
    wide = export(run, "adapter", tmp_path / "most", settings=["as_lora=0.99"])
    assert narrow["max_logit_error"] > wide["max_logit_error"] > 0
    assert narrow["as_lora"]["energy"] < wide["as_lora"]["energy"]
    assert wide["as_lora"]["left_out"] > 0  # biases, norms and embeddings changed too
    base = AutoModelForSequenceClassification.from_pretrained(bases("bert"), num_labels=2)
    config: Any = PeftModel.from_pretrained(base, str(tmp_path / "most")).peft_config["default"]
    assert config.r > 1


@pytest.mark.slow
def test_as_lora_refuses_unsupported_runs_and_values(run_of: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bitfit changed no matrix"):
        export(run_of("text_classification", "strategy=bitfit"), "adapter", tmp_path / "out", settings=["as_lora=8"])
    for value in ("0", "1.5", "-2", "nan"):
        with pytest.raises(UserError, match="as_lora"):
            configured("adapter", [f"as_lora={value}"])
    with pytest.raises(UserError, match="unknown key 'dtpye'; did you mean 'dtype'"):
        configured("merged", ["dtpye=bfloat16"])
    assert not (tmp_path / "out").exists()


def test_weight_change_is_decomposed_with_the_smallest_error() -> None:
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


def test_a_full_disk_leaves_nothing(run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource
    import signal

    run = run_of("text_classification")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    plain = Merged.write

    def on_a_full_disk(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
        try:
            plain(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)

    monkeypatch.setattr(Merged, "write", on_a_full_disk)
    try:
        with pytest.raises(UserError, match=r"cannot be written: .*too large"):
            export(run, "merged", tmp_path / "out")
    finally:
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())


def test_model_card_has_the_metadata_of_the_hub(run_of: Any, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    manifest = export(run_of("text_classification"), "merged", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    about = card.data.to_dict()
    assert about["pipeline_tag"] == "text-classification"
    assert about["library_name"] == "transformers"
    (score,) = about["model-index"][0]["results"]
    assert score["metrics"][0]["value"] == round(manifest["exported"], 4)
    assert manifest["base"]["sha256"] in card.text
    assert "hf upload" in card.text
