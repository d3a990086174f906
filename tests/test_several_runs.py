"""Several runs: predicting together on one base and merging by weighted sum; prediction with artifacts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_rows, train_tiny, write_rows

import pefttools
from pefttools import cli
from pefttools.errors import UserError
from pefttools.exporters.driver import export
from pefttools.inference.prediction import predict_rows, predict_together
from pefttools.inference.predictor import load_predictors
from pefttools.training.merging import merge


@pytest.fixture(scope="module")
def runs(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A seed and overrides -> a finished run, made once."""
    made: dict[Any, Path] = {}

    def run(seed: int, *overrides: str) -> Path:
        if (seed, *overrides) not in made:
            out = tmp_path_factory.mktemp("runs") / f"seed{seed}"
            made[seed, *overrides] = train_tiny(recipe_file, out, f"seed={seed}", "train.epochs=1", *overrides)[0]
        return made[seed, *overrides]

    return run


def deltas(run: Path) -> dict[str, torch.Tensor]:
    """The weight change of every matrix by LoRA."""
    model: Any = pefttools.load(run).model
    return {name: m.get_delta_weight("default") for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("strategy.rslora=true",)])
def test_weight_changes_of_lora_are_summed_exactly(runs: Any, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    one, other = runs(0, *overrides), runs(1, *overrides)
    result = merge([one, other], [0.7, -0.2], tmp_path / "merged")
    assert result["merged_by"] == "changes"
    first, second, both = deltas(one), deltas(other), deltas(tmp_path / "merged")
    assert first.keys() == both.keys()
    for name, change in both.items():
        assert torch.allclose(change, 0.7 * first[name] - 0.2 * second[name], atol=1e-6)
    assert result["params"]["adapter"] == 2 * json.loads((one / "result.json").read_text())["params"]["adapter"]


@pytest.mark.slow
def test_weight_changes_of_other_ranks_and_scales_are_summed_exactly(runs: Any, tmp_path: Path) -> None:
    one, other = runs(0), runs(1, "strategy.rank=4", "strategy.alpha=4", "strategy.rslora=true")
    merge([one, other], [0.7, -0.2], tmp_path / "merged")
    first, second, both = deltas(one), deltas(other), deltas(tmp_path / "merged")
    for name, change in both.items():
        assert torch.allclose(change, 0.7 * first[name] - 0.2 * second[name], atol=1e-6)
    with pytest.raises(UserError, match="rank is 4, not"):
        merge([one, other], [0.5, 0.5], tmp_path / "soup", "parameters")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["bitfit", "ia3"])
def test_parameters_are_summed_by_name(runs: Any, tmp_path: Path, strategy: str) -> None:
    one, other = runs(0, f"strategy={strategy}"), runs(1, f"strategy={strategy}")
    assert merge([one, other], [0.5, 0.5], tmp_path / "merged")["merged_by"] == "parameters"
    states = [pefttools.load(path).model.state_dict() for path in (one, other, tmp_path / "merged")]
    for name, value in states[2].items():
        if (
            value.is_floating_point() and ".original_module." not in name
        ):  # the head's initial weights, which are not used
            assert torch.allclose(value, (states[0][name] + states[1][name]) / 2, atol=1e-6)


@pytest.mark.slow
def test_merged_run_is_evaluated_and_exported_like_a_run(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "merge",
        str(runs(0)),
        str(runs(1)),
        "--out",
        str(tmp_path / "soup"),
        "--weights",
        "0.5",
        "0.5",
        "--json",
    ]
    assert cli.run(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert [part["weight"] for part in result["merged_from"]] == [0.5, 0.5]
    assert cli.run(["evaluate", str(tmp_path / "soup"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == result["test"]["accuracy"]
    assert export(tmp_path / "soup", "merged")["exported"] == result["test"]["accuracy"]
    assert cli.run(command) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_that_cannot_be_merged_are_refused(runs: Any, tmp_path: Path) -> None:
    for paths, weights, message in (
        ([runs(0)], [1.0], "name at least two runs"),
        ([runs(0), runs(1)], [1.0], "a weight for each, got 2 runs and 1 weights"),
        ([runs(0), runs(1)], [1.0, float("nan")], "finite numbers"),
        ([runs(0), runs(0, "strategy=bitfit")], [0.5, 0.5], "has another strategy than"),
        ([runs(0), runs(1, "strategy.targets=query")], [0.5, 0.5], r'strategy.targets is \["query"\], not \["all"\]'),
        ([runs(0), runs(1, "task.max_length=40")], [0.5, 0.5], "another task than seed0: task.max_length is 40, not"),
    ):
        with pytest.raises(UserError, match=message):
            merge(paths, weights, tmp_path / "out")
    with pytest.raises(UserError, match=r"--by changes: .* cannot be merged by its weight changes"):
        merge([runs(0, "strategy=bitfit"), runs(1, "strategy=bitfit")], [0.5, 0.5], tmp_path / "out", "changes")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_joint_predictions_equal_separate_ones_and_share_the_base(runs: Any) -> None:
    paths, rows = [runs(0), runs(1), runs(0, "strategy=adapter")], make_rows(30, seed=5)
    folders = [path.rename(path.with_name(f"{path.name}-{i}")) for i, path in enumerate(paths)]
    try:
        together = list(predict_together(folders, [{"text": row["text"]} for row in rows], precision="fp32"))
        for folder in folders:
            apart = list(predict_rows(folder, rows, precision="fp32"))
            for both, alone in zip(together, apart, strict=True):
                prediction = both["answers"][folder.name]
                assert prediction["prediction"] == alone["prediction"]
                assert prediction["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        models = [one.model for one in load_predictors(folders, "fp32")]
        tables = {model.get_input_embeddings().weight.data_ptr() for model in models}  # type: ignore[operator]
        assert len(tables) == 1
    finally:
        for folder, path in zip(folders, paths, strict=True):
            folder.rename(path)


@pytest.mark.slow
def test_joint_prediction_refuses_different_bases(
    runs: Any, bases: Callable[[str], Path], tmp_path: Path, recipe_file: Path
) -> None:
    other, _ = train_tiny(recipe_file, tmp_path / "other", f"base={bases('roberta')}", "train.epochs=1")
    with pytest.raises(UserError, match="all runs must have the same base"):
        load_predictors([runs(0), other], "fp32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "to"), [("lora", "merged"), ("lora", "adapter"), ("adapter", "adapter"), ("full", "adapter")]
)
def test_artifacts_give_the_predictions_of_their_run(
    runs: Any, tmp_path: Path, strategy: str, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs(0, f"strategy={strategy}")
    export(run, to, tmp_path / "out")
    file = write_rows(tmp_path / "rows.jsonl", make_rows(30, seed=5))
    predictions = []
    for folder in (run, tmp_path / "out"):
        assert cli.run(["predict", str(folder), str(file), "--precision", "fp32"]) == 0
        predictions.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [a["prediction"] for a in predictions[0]] == [a["prediction"] for a in predictions[1]]
    for one, other in zip(*predictions, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_invalid_arguments_of_predict_are_refused(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        ([], "write RUN FILE"),
        ([str(tmp_path)], "there is no run here"),
        (["--run", str(runs(0)), "a", "b"], "write RUN FILE"),
        (["--run", str(runs(0)), "--run", str(runs(0)), "--text", "x"], "must have different names"),
    ):
        assert cli.run(["predict", *words]) == 2
        assert message in capsys.readouterr().err
