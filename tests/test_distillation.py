"""`distillation` and `layer_matching`: values by hand, teachers of every kind, the cache, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses, make_rows, power_cut, train_in_two, train_tiny, write_recipe, write_rows
from resuming import assert_resumes_exactly

from pefttools import cli
from pefttools.errors import UserError
from pefttools.objectives import _soft_labels
from pefttools.objectives.distillation import soft_loss
from pefttools.training.run import load

SHORT = ("train.epochs=1", "data.train_rows=200")


def test_soft_loss_is_the_divergence_of_softened_distributions() -> None:
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    assert soft_loss(student, teacher, None, 2.0) == pytest.approx(4 * float((p * (p / q).log()).sum()))
    assert soft_loss(teacher, teacher, None, 2.0) == 0


def test_soft_loss_of_chosen_classes_is_that_of_the_normalised_teacher() -> None:
    student = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    teacher, chosen = torch.randn(4, 9, generator=torch.Generator().manual_seed(1)).topk(3)
    spread = torch.full_like(student, -torch.inf).scatter(1, chosen, teacher)
    torch.testing.assert_close(soft_loss(student, teacher, chosen, 3.0), soft_loss(student, spread, None, 3.0))


def test_classes_that_do_not_exist_add_nothing() -> None:
    student, teacher = torch.tensor([[1.0, 0.5, -torch.inf]]), torch.tensor([[0.0, 2.0, -torch.inf]])
    found = soft_loss(student.requires_grad_(), teacher, None, 1.0)
    torch.testing.assert_close(found, soft_loss(student[:, :2], teacher[:, :2], None, 1.0))
    found.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_the_gradient_keeps_its_size_at_high_temperatures() -> None:
    """Hinton et al. 2015, section 2.1: at high T, T²·KL is half the squared distance of centred logits / classes."""
    teacher = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    sizes = []
    for temperature in (2.0, 4.0, 8.0, 16.0, 32.0):
        student = torch.zeros(6, 5, requires_grad=True)
        soft_loss(student, teacher, None, temperature).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
    limit = float((teacher - teacher.mean(-1, keepdim=True)).norm()) / 5
    assert all(size == pytest.approx(limit, rel=0.35) for size in sizes)
    assert sizes[-1] == pytest.approx(limit, rel=0.03)


@pytest.fixture(scope="module")
def teacher(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished full run of the tiny recipe."""
    return train_tiny(recipe_file, tmp_path_factory.mktemp("teacher") / "run", "strategy=full", "train.epochs=2")[0]


def taught(teacher: Path | str, *settings: str) -> list[str]:
    return [f"objectives.distillation.teacher={teacher}", *(f"objectives.distillation.{s}" for s in settings)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "lora", "top_layers", "prompt"])
def test_a_student_follows_its_teacher(strategy: str, teacher: Path, recipe_file: Path, tmp_path: Path) -> None:
    """With α = 1 the labels are not used: they are wrong here, and the student predicts what the teacher does."""
    rows = [{**row, "label": "fruit" if i % 3 else "tool"} for i, row in enumerate(make_rows(300, seed=3))]
    rows.append({"text": "red", "label": "colour"})
    wrong = write_rows(tmp_path / "wrong.jsonl", [*rows, *rows[-1:] * 20])
    words = [f"data.train={wrong}", f"data.validation={wrong}", f"data.test={wrong}", "data.deduplicate=none"]
    words += [f"strategy={strategy}", "base.layers=[0, 1]", "train.epochs=4", *taught(teacher, "alpha=1")]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *words)
    texts = [row["text"] for row in make_rows(60, seed=9)]
    from pefttools.inference.predictor import load_predictor

    both = [load_predictor(path, "fp32").predict([{"text": text} for text in texts]) for path in (run, teacher)]
    same = sum(a["prediction"] == b["prediction"] for a, b in zip(*both, strict=True))
    assert same >= (50 if strategy in ("full", "lora") else 35)


@pytest.mark.slow
def test_the_teacher_runs_once(
    teacher: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    common = [*SHORT, *taught(teacher)]
    first, _ = train_tiny(recipe_file, tmp_path / "first", *common)

    def never(*_: Any) -> Any:
        raise AssertionError("the soft labels are in the cache")

    monkeypatch.setattr(_soft_labels, "_computed", never)
    again, _ = train_tiny(recipe_file, tmp_path / "again", *common)
    assert losses(first) == losses(again)
    with pytest.raises(AssertionError, match="in the cache"):
        train_tiny(recipe_file, tmp_path / "other", *common, "data.train_rows=150")


@pytest.mark.slow
def test_the_loss_of_a_run_is_computed_by_hand(teacher: Path, recipe_file: Path, tmp_path: Path) -> None:
    """The first step's loss, from the untrained student's logits and the teacher's."""
    words = [*SHORT, "train.batch_size=200", "strategy=lora", "train.warmup=0"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *words, *taught(teacher, "alpha=0.3", "temperature=4"))
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", *words)
    soft, _ = train_tiny(recipe_file, tmp_path / "soft", *words, *taught(teacher, "alpha=1", "temperature=4"))
    assert losses(run)[0] == pytest.approx(0.7 * losses(plain)[0] + 0.3 * losses(soft)[0], rel=1e-5)


@pytest.mark.slow
def test_exported_folders_and_bases_are_teachers(
    teacher: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(teacher), "--to", "merged", "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    of_run, _ = train_tiny(recipe_file, tmp_path / "a", *SHORT, *taught(teacher))
    of_folder, _ = train_tiny(recipe_file, tmp_path / "b", *SHORT, *taught(tmp_path / "merged"))
    assert losses(of_run) == pytest.approx(losses(of_folder), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task"), [("llama", "causal_lm"), ("bart", "seq2seq")])
def test_language_models_learn_the_teachers_tokens(
    family: str, task: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    pairs = [(" ".join(row["text"].split()[:3]), " ".join(row["text"].split()[-3:])) for row in make_rows(60)]
    names = ("prompt", "completion") if task == "causal_lm" else ("source", "target")
    rows = write_rows(tmp_path / "rows.jsonl", [dict(zip(names, pair, strict=True)) for pair in pairs])
    settings = {
        "task": {"name": task, "max_length": 32, "max_new_tokens": 4},
        "train": {"epochs": 6, "log_every": 1, "learning_rate": 0.003},
    }
    file = write_recipe(tmp_path / "tiny.yaml", bases(family), rows, **settings)
    teacher, _ = train_tiny(file, tmp_path / "teacher", "strategy=full", "train.epochs=4")
    common = ["base.layers=[1]", "strategy=full", *taught(teacher, "alpha=1", "temperature=1", "top=5")]
    run, _ = train_tiny(file, tmp_path / "run", *common)
    assert min(losses(run)[-3:]) < losses(run)[0]
    soft = next(iter((Path(_cache()) / "soft-labels").glob("*.safetensors")), None)
    assert soft is not None
    model: Any = load(run).model
    assert model.config.num_hidden_layers == 1


def _cache() -> str:
    from pefttools.sources.cache import cache_dir

    return str(cache_dir())


def test_soft_labels_are_in_the_order_of_the_students_classes() -> None:
    values, starts = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1, 3])
    soft = _soft_labels.SoftLabels(values, starts)
    found, chosen = soft.of(torch.tensor([2, 0]))
    assert chosen is None
    assert found.tolist() == [[2, 3], [4, 5], [0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["distillation", "layer_matching"])
def test_micro_batches_processes_and_resuming_change_nothing(
    objective: str, teacher: Path, recipe_file: Path, tmp_path: Path
) -> None:
    common = [f"objectives.{objective}.teacher={teacher}", *SHORT, "train.batch_size=14"]
    whole, expected = train_tiny(recipe_file, tmp_path / "whole", *common)
    parts, _ = train_tiny(recipe_file, tmp_path / "parts", *common, "train.micro_batch_size=3")
    assert losses(parts) == pytest.approx(losses(whole), abs=3e-5)
    train_in_two(recipe_file, tmp_path / "two", *common)
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), abs=3e-5)
    assert_resumes_exactly(recipe_file, tmp_path / "died", common, whole, expected)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["distillation", "layer_matching"])
def test_a_run_does_not_go_on_with_another_teacher(
    objective: str, teacher: Path, recipe_file: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(teacher, tmp_path / "mine"))
    words = [f"objectives.{objective}.teacher={mine}", *SHORT]
    with power_cut(7):
        train_tiny(recipe_file, tmp_path / "run", *words, "train.checkpoint_seconds=0")
    shutil.rmtree(mine)
    train_tiny(recipe_file, mine, "strategy=full", *SHORT)
    with pytest.raises(UserError, match="has other weights than when the run began"):
        train_tiny(recipe_file, tmp_path / "run", *words, resume=True)


@pytest.mark.slow
def test_matched_layers_of_the_same_model_add_nothing(recipe_file: Path, tmp_path: Path) -> None:
    """A teacher with the student's weights: its layers are matched already, so only the task's loss remains."""
    frozen = ["train.epochs=1", "train.learning_rate=1e-12", "strategy=full", "train.warmup=0"]
    teacher, _ = train_tiny(recipe_file, tmp_path / "teacher", *frozen)
    words = [f"objectives.layer_matching.teacher={teacher}", *frozen]
    matched, _ = train_tiny(recipe_file, tmp_path / "matched", *words)
    assert losses(matched) == pytest.approx(losses(teacher), abs=1e-5)
    half, _ = train_tiny(recipe_file, tmp_path / "half", *words, "objectives.layer_matching.task_weight=0.5")
    assert losses(half) == pytest.approx([0.5 * loss for loss in losses(teacher)], abs=1e-5)


@pytest.mark.slow
def test_layers_are_matched_for_the_first_steps(teacher: Path, recipe_file: Path, tmp_path: Path) -> None:
    words = [f"objectives.layer_matching.teacher={teacher}", "objectives.layer_matching.task_weight=0", *SHORT]
    words += ["base.layers=[1]", "strategy=full", "objectives.layer_matching.steps=30", "train.epochs=3"]
    words += ["train.learning_rate=5e-4"]
    run, _ = train_tiny(recipe_file, tmp_path / "run", *words)
    plain, _ = train_tiny(recipe_file, tmp_path / "plain", "base.layers=[1]", "strategy=full", *SHORT)
    found = losses(run)
    assert sum(found[27:30]) < sum(found[:3])
    assert losses(plain)[0] != pytest.approx(found[0])
    assert found[30] > 0.3  # the task's loss, which was not trained in the first steps


def test_hidden_states_and_attention_are_those_of_transformers(teacher: Path) -> None:
    from pefttools.objectives import _recording

    model: Any = load(teacher).model
    ids = torch.tensor([[2, 7, 9, 3, 0], [2, 8, 3, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad(), _recording.recording(model, [0, 1, 2]) as found:
        _recording.compute_probabilities(model)
        wanted = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    for number in (0, 1, 2):
        torch.testing.assert_close(found.hidden[number], wanted.hidden_states[number])
    for number in (1, 2):
        torch.testing.assert_close(found.attention[number], wanted.attentions[number - 1])


@pytest.mark.slow
def test_other_widths_are_projected(
    bases: Callable[[str], Path], teacher: Path, tmp_path: Path, rows_file: Path
) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(bases("bert"), hidden_size=16, intermediate_size=32)
    torch.manual_seed(0)
    narrow = tmp_path / "narrow"
    transformers.AutoModel.from_config(config).save_pretrained(narrow)
    for file in bases("bert").glob("token*"):
        shutil.copy(file, narrow)
    train = {"epochs": 2, "learning_rate": 0.003, "log_every": 1}
    task = {"name": "text_classification", "max_length": 32}
    file = write_recipe(tmp_path / "tiny.yaml", narrow, rows_file, task=task, train=train, strategy="full")
    words = [f"objectives.layer_matching.teacher={teacher}", "objectives.layer_matching.task_weight=0"]
    words += ["objectives.layer_matching.steps=20", *SHORT, "train.epochs=3", "train.checkpoint_seconds=0"]
    run, _ = train_tiny(file, tmp_path / "run", *words)
    assert losses(run)[19] < 0.8 * losses(run)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objectives=[distillation]"], "objectives.distillation.teacher"),
        (taught("/no/such/run"), "there is no"),
        (taught("UNFINISHED"), "is not finished"),
        (taught("OTHER-LABELS"), "has the classes"),
        (taught("BASE"), "has no trained head"),
        (taught("TEACHER", "temperature=0"), "temperature"),
        (taught("TEACHER", "alpha=0"), "alpha"),
        (["objectives.layer_matching.teacher=TEACHER", "objectives.layer_matching.layer_map={3: 1}"], "layers 0 to 2"),
        (["objectives.layer_matching.teacher=TEACHER", "objectives.layer_matching.task_weight=0"], "never learned"),
        (["objectives.layer_matching.teacher=TEACHER", "objectives.layer_matching.layer_map={1: 7}"], "there is no 7"),
    ],
)
def test_impossible_teachers_are_refused(
    words: list[str], message: str, teacher: Path, bases: Callable[[str], Path], recipe_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    named = {"TEACHER": teacher, "BASE": bases("bert"), "UNFINISHED": tmp_path / "un", "OTHER-LABELS": tmp_path / "ot"}
    shutil.copytree(teacher, named["UNFINISHED"])
    (named["UNFINISHED"] / "result.json").unlink()
    shutil.copytree(teacher, named["OTHER-LABELS"])
    recipe = named["OTHER-LABELS"] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("fruit", "meal"))
    (named["OTHER-LABELS"] / "hashes.json").unlink()
    for name, path in named.items():
        words = [word.replace(f"={name}", f"={path}") for word in words]
    assert cli.run(["train", str(recipe_file), *words, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["regression", "question_answering", "masked_lm"])
def test_tasks_without_soft_labels_are_refused(
    task: str, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"task={task}", *taught("a run")]
    assert cli.run(["train", str(recipe_file), *words, "--out", str(tmp_path / "run")]) == 2
    assert "objectives.distillation" in capsys.readouterr().err
