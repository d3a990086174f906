"""A base with a trained head: its classes are matched by name, whatever their order, number and spelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_bases
import torch
import transformers
from conftest import make_rows, make_tokenizer, pretrain, write_recipe, write_rows

from pefttools.compatibility import tiny_models
from pefttools.errors import UserError
from pefttools.inference.scoring import evaluate_run
from pefttools.planning import planner
from pefttools.recipe import recipes
from pefttools.training.driver import train
from pefttools.training.run import Run, load

pytestmark = pytest.mark.slow

KINDS = (
    "bert", "roberta", "xlm-roberta", "camembert", "mpnet", "albert", "distilbert", "electra", "deberta", "deberta-v2",
    "modernbert", "ibert", "xlnet", "llama", "mistral", "gemma", "gpt2", "opt", "bloom", "falcon", "mpt", "bart", "t5",
)  # fmt: skip
NAMES = ("fruit", "tool", "colour")
"""The order of classes in the head that `conftest.pretrain` trains; it is not the sorted order."""


class LineReporter:
    """A reporter that collects warnings and notes in one list."""

    def __init__(self) -> None:
        from pefttools.reporter import SILENT

        self.lines: list[str] = []
        self.bar = SILENT.bar

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note

    @property
    def about_heads(self) -> list[str]:
        return [line for line in self.lines if "the head of" in line]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Names of outputs -> a BERT with a head trained on the classes in the order of NAMES, saved with those names."""
    tokenizer = make_tokenizer(("input_ids", "token_type_ids", "attention_mask"))
    sizes = {**tiny_bases.ENCODERS["bert"], "vocab_size": len(tokenizer)}
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model("bert", **sizes, num_labels=3)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    pretrain(model, tokenizer)

    def save(names: Sequence[str], more: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("classifier")
        model.config.id2label, model.config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
        model.save_pretrained(folder)
        if more:  # classes that are never likely
            wide = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=3 + more, id2label=dict(enumerate(names)), ignore_mismatched_sizes=True
            )
            with torch.no_grad():
                wide.classifier.weight.zero_()[:3] = model.classifier.weight
                wide.classifier.bias.fill_(-20.0)[:3] = model.classifier.bias
            wide.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def trained(run_folder: Path, base: Path, *overrides: str, **sections: Any) -> tuple[dict[str, Any], LineReporter]:
    """The result of a run with a learning rate near 0, and its reporter."""
    rows = sections.pop("rows", None) or make_rows(60)
    task = sections.pop("task", {"name": "text_classification", "max_length": 32})
    file = write_recipe(
        run_folder / "recipe.yaml", base, write_rows(run_folder / "rows.jsonl", rows), task=task,
        train={"epochs": 1, "batch_size": 64, "learning_rate": 1e-9},
    )  # fmt: skip
    reporter = LineReporter()
    recipe = recipes.load(str(file), overrides).recipe
    return train(recipe, run_folder / "run", reporter=reporter), reporter  # type: ignore[arg-type]


def head_is_unchanged(run_folder: Path, base: Path) -> bool:
    """Whether the weights of the run's head are those of the checkpoint, in the same order."""
    stored = transformers.AutoModelForSequenceClassification.from_pretrained(base).classifier.weight
    weights = [p for name, p in load(run_folder / "run").model.named_parameters() if name.endswith("default.weight")]
    return torch.allclose(weights[-1], stored, atol=1e-5)


def labels(run_folder: Path) -> tuple[str, ...]:
    return Run(run_folder / "run").recipe().task.labels  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_trained_head_is_loaded_unchanged_on_every_architecture(kind: str, tmp_path: Path) -> None:
    """Its weights and its class names are those of the checkpoint."""
    folder = tiny_bases.write(tmp_path / "base", kind)
    names = {0: "tool", 1: "fruit", 2: "colour"}
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, id2label=names, num_labels=3)
    with torch.no_grad():
        for parameter in tiny_models.jittered(model).parameters():
            parameter.mul_(3)  # predictions that differ from row to row
    model.eval().save_pretrained(folder)
    rows = make_rows(24)
    trained(tmp_path, folder, "strategy=frozen", "data.test_share=0.4", rows=rows)
    assert labels(tmp_path) == ("tool", "fruit", "colour")
    run = load(tmp_path / "run")
    head = {path: run.model.get_submodule(path).state_dict() for path in run.base.head}
    assert head
    for path, tensors in head.items():
        stored = model.get_submodule(path).state_dict()
        assert all(torch.equal(tensor, stored[name]) for name, tensor in tensors.items()), path
    assert run.model.config.id2label == names  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES, "the classes are in the order"),
        (("Fruit", "TOOL", "colour"), "the classes are in the order"),
    ],
)
@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_class_order_of_the_checkpoint_is_used(
    names: Sequence[str], message: str, strategy: str, classifier: Callable[..., Path], tmp_path: Path
) -> None:
    result, reporter = trained(tmp_path, classifier(names), f"strategy={strategy}")
    assert labels(tmp_path) == NAMES
    assert [message in line for line in reporter.about_heads] == [True]
    assert result["before"]["accuracy"] == result["test"]["accuracy"] == 1.0
    assert evaluate_run(tmp_path / "run")["accuracy"] == 1.0
    again = recipes.load(str(tmp_path / "run" / "recipe.yaml")).recipe
    assert train(again, tmp_path / "again")["before"]["accuracy"] == 1.0
    assert again.digest == result["digest"]


def test_rows_of_the_head_follow_the_order_of_task_labels(classifier: Callable[..., Path], tmp_path: Path) -> None:
    result, reporter = trained(tmp_path, classifier(NAMES), "task.labels=[tool, colour, fruit]")
    assert labels(tmp_path) == ("tool", "colour", "fruit")
    assert result["before"]["accuracy"] == 1.0
    assert not reporter.about_heads


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("x", "y", "z")])
def test_other_class_names_get_a_new_head_unless_trained_head_is_keep(
    names: Sequence[str], classifier: Callable[..., Path], tmp_path: Path
) -> None:
    base = classifier(names)
    (tmp_path / "new").mkdir()
    _, reporter = trained(tmp_path / "new", base)
    assert not head_is_unchanged(tmp_path / "new", base)
    (line,) = reporter.about_heads
    assert "a new head is trained" in line
    assert "base.trained_head=keep" in line
    if names[0] == "LABEL_0":
        with pytest.raises(UserError, match="name them in this order in"):
            trained(tmp_path, base, "base.trained_head=keep")
    result, reporter = trained(tmp_path, base, "base.trained_head=keep", f"task.labels={json.dumps(NAMES)}")
    assert result["before"]["accuracy"] == 1.0
    assert head_is_unchanged(tmp_path, base)
    assert not reporter.about_heads
    again = recipes.load(str(tmp_path / "run" / "recipe.yaml")).recipe
    assert train(again, tmp_path / "again")["before"]["accuracy"] == 1.0


def test_trained_head_new_replaces_the_head(classifier: Callable[..., Path], tmp_path: Path) -> None:
    base = classifier(NAMES)
    _, reporter = trained(tmp_path, base, "base.trained_head=new")
    assert not head_is_unchanged(tmp_path, base)
    assert labels(tmp_path) == tuple(sorted(NAMES))
    assert not reporter.about_heads


def test_integer_labels_are_the_outputs_of_a_head_without_class_names(
    classifier: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{**row, "label": NAMES.index(row["label"])} for row in make_rows(60)]
    result, _ = trained(tmp_path, classifier(("LABEL_0", "LABEL_1", "LABEL_2")), rows=rows)
    assert labels(tmp_path) == ("0", "1", "2")
    assert result["before"]["accuracy"] == 1.0


def test_classes_without_rows_are_kept(classifier: Callable[..., Path], tmp_path: Path) -> None:
    base = classifier((*NAMES, "shape", "size"), more=2)
    result, reporter = trained(tmp_path, base)
    assert labels(tmp_path) == (*NAMES, "shape", "size")
    assert result["before"]["accuracy"] == result["test"]["accuracy"] == 1.0
    (line,) = reporter.about_heads
    assert "also has the classes 'shape', 'size'" in line
    again = recipes.load(str(tmp_path / "run" / "recipe.yaml")).recipe
    assert planner.plan(again).params == result["params"]
    assert train(again, tmp_path / "again")["before"]["accuracy"] == 1.0


def test_training_continues_from_a_merged_export(classifier: Callable[..., Path], tmp_path: Path) -> None:
    from pefttools.exporters.driver import export

    trained(tmp_path, classifier(NAMES))
    export(tmp_path / "run", "merged", tmp_path / "merged")
    (tmp_path / "next").mkdir()
    rows = [row for row in make_rows(60) if row["label"] != "tool"]
    result, reporter = trained(tmp_path / "next", tmp_path / "merged", rows=rows)
    assert labels(tmp_path / "next") == NAMES
    assert result["before"]["accuracy"] == 1.0
    assert "also has the classes 'tool'" in reporter.about_heads[0]


def test_trained_head_is_used_for_multi_label_and_relation_extraction(
    classifier: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "several").mkdir()
    rows = [{**row, "label": [row["label"]]} for row in make_rows(60)]
    task = {"name": "text_classification", "max_length": 32, "multi_label": True}
    result, _ = trained(tmp_path / "several", classifier(NAMES), rows=rows, task=task)
    assert labels(tmp_path / "several") == NAMES
    assert result["before"]["f1"] > 0.6
    related = [{**row, "text": f"<e1>{row['text']}</e1> <e2>word1</e2>"} for row in make_rows(60)]
    result, _ = trained(
        tmp_path, classifier(NAMES), rows=related, task={"name": "relation_extraction", "max_length": 32}
    )
    assert labels(tmp_path) == NAMES
    assert result["before"]["accuracy"] == 1.0


def tagger(folder: Path, names: Sequence[str]) -> Path:
    tiny_bases.write(folder, "bert")
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder, num_labels=len(names), id2label=dict(enumerate(names))
    )
    tiny_models.jittered(model).save_pretrained(folder)
    return folder


TAGGED = [
    {"tokens": row["text"].split(), "tags": ["B-PER", "I-PER", *["O"] * (len(row["text"].split()) - 2)]}
    for row in make_rows(40)
]


@pytest.mark.parametrize(
    ("names", "types", "expected"),
    [
        (("B-PER", "I-PER", "O"), [], ("B-PER", "I-PER", "O")),
        (("O", "b-per", "i-per"), [], ("O", "B-PER", "I-PER")),
        (("O", "I-LOC", "B-LOC", "I-PER", "B-PER"), [], ("O", "I-LOC", "B-LOC", "I-PER", "B-PER")),
        (("O", "I-LOC", "B-LOC", "I-PER", "B-PER"), ["PER"], ("O", "I-PER", "B-PER")),
        (("O", "[CLS]", "B-PER", "I-PER"), [], ("O", "B-PER", "I-PER")),
    ],
)
def test_trained_head_is_matched_by_tag(
    names: Sequence[str], types: list[str], expected: Sequence[str], tmp_path: Path
) -> None:
    folder = tagger(tmp_path / "base", names)
    task = {"name": "token_classification", "max_length": 32, "types": types}
    trained(tmp_path, folder, "strategy=frozen", rows=TAGGED, task=task)
    assert labels(tmp_path) == tuple(expected)
    stored = transformers.AutoModelForTokenClassification.from_pretrained(folder).classifier
    rows = [[name.casefold() for name in names].index(name.casefold()) for name in expected]
    assert torch.equal(load(tmp_path / "run").model.classifier.weight, stored.weight[rows])  # type: ignore[union-attr]


def test_head_of_another_task_is_not_used(tmp_path: Path) -> None:
    """A tagger's `classifier` has the name and the shape of a text classifier's."""
    folder = tagger(tmp_path / "base", NAMES)
    stored = transformers.AutoModelForTokenClassification.from_pretrained(folder).classifier.weight
    trained(tmp_path, folder, "strategy=frozen")
    assert not torch.equal(load(tmp_path / "run").model.classifier.weight, stored)  # type: ignore[union-attr]


def test_regression_replaces_a_classification_head_and_uses_a_single_output(
    classifier: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [{**row, "label": i % 5} for i, row in enumerate(make_rows(60))]
    task = {"name": "regression", "max_length": 32}
    for run_folder in ("classes", "number"):
        (tmp_path / run_folder).mkdir()
    _, reporter = trained(tmp_path / "classes", classifier(NAMES), rows=rows, task=task)
    assert "has 3 outputs ('fruit', 'tool', 'colour'), but regression needs one" in reporter.about_heads[0]
    folder = tiny_bases.write(tmp_path / "base", "bert")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    with torch.no_grad():
        model.classifier.bias.fill_(7.0)
    model.save_pretrained(folder)
    trained(tmp_path / "number", folder, "strategy=frozen", rows=rows, task=task)
    merged = load(tmp_path / "number" / "run")
    bias = merged.task.to_transformers(merged.model).classifier.bias.item()  # type: ignore[arg-type,union-attr]
    assert bias == pytest.approx(7.0, rel=1e-4)
