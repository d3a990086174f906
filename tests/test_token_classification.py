"""Token classification: tag schemes, refused data, metrics equal to seqeval's, and a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from conftest import KEYS, SPECIAL, make_rows, train_tiny

from pefttools.data.splitting import LeftOut, Splits
from pefttools.errors import UserError
from pefttools.tasks.token_classification import TokenClassification

TASK = TokenClassification()
ENGLISH = {"tokens": ["Angela", "Merkel", "in", "Rome"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]}


def make_row(tokens: str, tags: str) -> dict[str, Any]:
    return TASK.read({"tokens": tokens, "tags": tags})


def splits_of(*train: tuple[str, str], test: tuple[tuple[str, str], ...] = ()) -> Splits:
    rows = [make_row(*row) for row in train]
    return Splits(rows, rows[:1], [make_row(*row) for row in test])


def word_pieces(**settings: Any) -> Any:
    """A WordPiece tokenizer, which splits words it does not have and drops control characters."""
    from transformers import BertTokenizer

    pieces = [*SPECIAL, "ang", "##ela", "##el", "mer", "##k", "in", "rome", "北", "京"]
    return BertTokenizer({piece: i for i, piece in enumerate(pieces)}, model_max_length=64, **settings)


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({"tokens": "a b", "tags": "O O"}, {"tokens": ["a", "b"], "tags": ["O", "O"]}),
        ({"tokens": ["New York", 7], "tags": ("B-LOC", "O"), "id": 3},
         {"tokens": ["New York", "7"], "tags": ["B-LOC", "O"], "id": "3"}),
        ({"text": "(a b)."}, {"tokens": ["(", "a", "b", ")", "."], "text": "(a b)."}),
        ({"text": " (a b).\n", "tags": "O O"}, {"tokens": ["(a", "b)."], "tags": ["O", "O"], "text": " (a b).\n"}),
        ({"text": "“a” b", "tokens": ["a", "b"]}, {"tokens": ["a", "b"]}),  # not the words of that text
        ({"text": "a, b", "tokens": ["a", ",", "b"]}, {"tokens": ["a", ",", "b"], "text": "a, b"}),
        ({"tokens": ["a", "", "\u3000"]}, {"tokens": ["a", "", "\u3000"]}),
    ],
)  # fmt: skip
def test_rows_are_read_from_every_notation(values: dict[str, Any], row: dict[str, Any]) -> None:
    assert TASK.read(values) == row


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": "a b c", "tags": "O O"}, "has 3 tokens and 2 tags"),
        ({"text": "a b", "tags": ["O"]}, "has 2 tokens and 1 tags"),
        ({"tags": "O"}, "has no tokens"),
        ({"tokens": ["a"], "tags": None}, "has no tags"),
        ({"tokens": ["a", "b"], "tags": ["O", ""]}, "has an empty tag for 'b'"),
        ({"tokens": ["a", None], "tags": ["O", "O"]}, r"has tokens that are not a list of words: \['a', None\]"),
        ({"tokens": {"a": 1}, "tags": "O"}, "has tokens that are not a list of words"),
        ({"tokens": ["a\ud800"], "tags": "O"}, "has half a character"),
        ({"text": "a\ud800"}, "has half a character"),
        ({"text": 4}, "has a text that is not a string: 4"),
    ],
)
def test_invalid_rows_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TASK.read(values)
    assert not isinstance(caught.value, LeftOut)


@pytest.mark.parametrize("values", [{"tokens": [], "tags": []}, {"tokens": "", "tags": ""}, {"text": " "}])
def test_sentences_without_words_are_left_out(values: dict[str, Any]) -> None:
    with pytest.raises(LeftOut):
        TASK.read(values)


@pytest.mark.parametrize(
    ("scheme", "tagged"),
    [
        ("bio", "B-PER I-PER O B-LOC"),
        ("iob1", "I-PER I-PER O I-LOC"),
        ("bmes", "B-PER E-PER O S-LOC"),
        ("bilou", "B-PER L-PER O U-LOC"),
    ],
)
@pytest.mark.parametrize("explicit", [True, False])
def test_every_scheme_is_trained_as_bio(scheme: str, tagged: str, explicit: bool) -> None:
    task = TokenClassification(scheme=scheme if explicit else "auto")  # type: ignore[arg-type]
    fitted = task.fit(splits_of(("Angela Merkel in Rome", tagged)))
    assert fitted.read_as == scheme
    assert fitted.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert fitted.reference(make_row("Angela Merkel in Rome", tagged)) == ENGLISH["tags"]
    assert fitted.config_values()["id2label"][2] == "I-LOC"
    assert fitted.remarks(splits_of(("Angela Merkel in Rome", tagged)), None) == []  # type: ignore[arg-type]
    encoded = fitted.encode([make_row("angela merkel in rome", tagged)], word_pieces())
    assert encoded["labels"] == [[-100, 3, -100, 4, -100, -100, 0, 1, -100]]
    again = fitted.fit(splits_of(("Angela Merkel in Rome", tagged)))
    assert again == fitted


def test_tags_without_prefixes_and_chosen_types() -> None:
    plain = TASK.fit(splits_of(("a b c", "NN VB NN")))
    assert (plain.read_as, plain.labels) == ("none", ("NN", "VB"))
    some = TokenClassification(types=("LOC",)).fit(splits_of(("Angela Merkel in Rome", "B-PER I-PER O B-LOC")))
    assert some.labels == ("O", "B-LOC", "I-LOC")
    assert some.reference(ENGLISH) == ["O", "O", "O", "B-LOC"]


@pytest.mark.parametrize(
    ("task", "splits", "message"),
    [
        (TASK, splits_of(("a", "O")), "data.train: every word has the tag 'O'"),
        (
            TASK,
            splits_of(("a b", "B-X U-X"), ("a b", "E-X B-X")),
            "data.train: no single scheme has the prefixes B, E, U",
        ),
        (
            TASK,
            splits_of(("a b c", "B-X I-X Y")),
            "data.train: tags outside the scheme bio (O, or one of B, I, a hyphen and a type): 'Y'",
        ),
        (
            TASK,
            splits_of(("a b", "B-X O"), test=(("c", "B-Y"),)),
            "data.test: entity types that the training rows lack: 'Y'. They have 'X'; list the types",
        ),
        (
            TASK,
            splits_of(("a b", "NN VB"), test=(("c", "JJ"),)),
            "data.test: tags that the training rows lack: 'JJ'. They have 'NN', 'VB'",
        ),
        (
            TokenClassification(types=("PRE",)),
            splits_of(("a b", "B-PER O")),
            "task.types: unknown entity type 'PRE'; did you mean 'PER'? Known: PER",
        ),
        (TokenClassification(types=("X",)), splits_of(("a b", "NN VB")), "task.types: the tags have no prefixes"),
        (
            TokenClassification(scheme="bmes"),
            splits_of(("a b", "B-X L-X")),
            "(O, or one of B, M, I, E, S, W, a hyphen and a type): 'L-X'; correct them or set task.scheme",
        ),
        (
            TokenClassification(invalid_tags="refuse"),
            splits_of(("on the way", "O B-X O"), ("to York City now", "B-Y O I-X I-X")),
            "data.train: 1 of 7 tags break the scheme bio, for example I-X after O (at 'City' in 'to York City now')",
        ),
    ],
)
def test_unusable_data_is_refused(task: TokenClassification, splits: Splits, message: str) -> None:
    with pytest.raises(UserError) as caught:
        task.fit(splits)
    assert message in str(caught.value)


def test_invalid_tags_are_remarked() -> None:
    splits = splits_of(("a b c", "B-X I-X O"), ("d e f", "B-X O I-X"), test=(("g", "I-X"), ("h i", "I-X O")))
    remarks = TASK.fit(splits).remarks(splits, None)  # type: ignore[arg-type]
    assert remarks == [
        "data.train: 1 of 6 tags break the scheme bio, for example I-X after O (at 'f' in 'd e f');"
        " an entity ends or begins there",
        "data.test: 2 of 3 tags break the scheme bio, for example I-X at the start (at 'g' in 'g');"
        " an entity ends or begins there",
    ]


def test_other_data_must_have_known_tags() -> None:
    fitted = TASK.fit(splits_of(("a b", "B-X O")))
    fitted.check_scorable("data", [make_row("a b", "I-X O")])
    with pytest.raises(UserError, match="data: entity types that the training rows lack: 'Z'"):
        fitted.check_scorable("data", [make_row("a", "B-Z")])
    with pytest.raises(UserError, match="data: tags outside the scheme bio"):
        fitted.check_scorable("data", [make_row("a", "S-X")])


def drawn(seed: int, prefixes: str, number: int = 60) -> list[list[str]]:
    draw = random.Random(seed)
    some = ["O", "O", *(f"{p}-{kind}" for p in prefixes for kind in ("PER", "LOC", "ORG"))]
    return [draw.choices(some, k=1 + (7 * i) % 11) for i in range(number)]


def test_metrics_equal_seqeval_and_scikit_learn() -> None:
    import seqeval.metrics
    from sklearn.metrics import precision_recall_fscore_support

    task = TokenClassification(labels=("O", "B-LOC", "I-LOC"), read_as="bio")
    references, predictions = drawn(0, "BI"), drawn(1, "BI")
    predictions = [
        [b if i % 3 else a for i, (a, b) in enumerate(zip(*pair, strict=True))]
        for pair in zip(references, predictions, strict=True)
    ]
    values = task.metrics([{"prediction": tags} for tags in predictions], references)
    assert list(values) == ["precision", "recall", "f1", "f1_macro", "entities", "accuracy", "per_tag"]
    for name in ("precision", "recall", "f1"):
        assert values[name] == getattr(seqeval.metrics, f"{name}_score")(references, predictions)
    assert values["f1_macro"] == pytest.approx(
        seqeval.metrics.f1_score(references, predictions, average="macro"), abs=1e-12
    )
    assert values["accuracy"] == seqeval.metrics.accuracy_score(references, predictions)
    report = seqeval.metrics.classification_report(references, predictions, output_dict=True)
    assert isinstance(report, dict)
    assert sorted(values["entities"]) == ["LOC", "ORG", "PER"]
    for kind, scores in values["entities"].items():
        assert list(scores.values()) == list(report[kind].values())
    flat_references, flat_predictions = [t for row in references for t in row], [t for row in predictions for t in row]
    order = ["B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER", "O"]
    columns: Any = precision_recall_fscore_support(flat_references, flat_predictions, labels=order)
    assert list(values["per_tag"]) == order
    for i, scores in enumerate(values["per_tag"].values()):
        assert list(scores.values()) == [column[i] for column in columns]


def test_metrics_by_hand() -> None:
    task = TokenClassification(labels=("O", "B-LOC", "I-LOC", "B-PER", "I-PER"), read_as="bio")
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC"]]
    predictions = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-LOC", "I-LOC"]]
    values = task.metrics([{"prediction": tags} for tags in predictions], references)
    assert values["precision"] == values["recall"] == pytest.approx(2 / 3)
    assert values["entities"]["PER"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert values["entities"]["LOC"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert values["per_tag"]["O"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 2}
    assert values["accuracy"] == pytest.approx(6 / 7)
    nothing = task.metrics([{"prediction": ["O"]}], [["O"]])
    assert (nothing["f1"], nothing["f1_macro"], nothing["accuracy"], nothing["entities"]) == (0.0, 0.0, 1.0, {})


def test_majority_baseline_with_and_without_prefixes() -> None:
    train, rows = [make_row("a b", "B-X O"), make_row("c", "B-X")], [make_row("d e", "O B-X")]
    fitted = TASK.fit(Splits(train, train, rows))
    simple = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "f1_macro": 0.0, "accuracy": 0.5}
    assert fitted.majority_baseline(train, rows) == simple
    train, rows = [make_row("a b", "NN NN"), make_row("c", "VB")], [make_row("d e f g", "NN VB NN NN")]
    plain = TASK.fit(Splits(train, train, rows))
    assert plain.majority_baseline(train, rows) == {"f1": pytest.approx((6 / 7) / 2), "accuracy": 0.75}
    values = plain.metrics([{"prediction": ["NN", "VB", "VB", "NN"]}], [plain.reference(rows[0])])
    assert values["f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert values["per_tag"]["NN"] == {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": 0.8, "support": 3}


ENDS = {"fruit": "word37", "tool": "word38", "colour": "word39"}


def bmes_file(path: Path, number: int, seed: int) -> Path:
    """Sentences with their keyword, and a word that ends it, as an entity of two words in BMES."""
    lines = []
    for row in make_rows(number, seed=seed):
        for word in row["text"].split():
            if word in KEYS[row["label"]]:
                lines += [f"{word} B-{row['label']}", f"{ENDS[row['label']]} E-{row['label']}"]
            elif word not in ENDS.values():
                lines.append(f"{word} O")
        lines.append("")
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_run_learns_and_predicts_spans(recipe_file: Path, tmp_path: Path) -> None:
    from pefttools.inference.prediction import predict_rows
    from pefttools.inference.scoring import evaluate_run

    file = bmes_file(tmp_path / "rows.bmes", 300, seed=5)
    overrides = [f"data.train={file}", "task=token_classification", "task.max_length=32"]
    trained = ["strategy=full", "train.learning_rate=0.001", "train.epochs=4"]
    run, result = train_tiny(recipe_file, tmp_path / "run", *overrides, *trained)
    assert result["before"]["f1"] < 0.5
    assert result["test"]["f1"] > 0.9
    assert result["before"]["majority"]["f1"] == 0
    assert set(result["test"]["entities"]) == set(KEYS)
    assert {"B-tool", "I-tool", "O"} <= set(result["test"]["per_tag"])
    scored = evaluate_run(run, [f"data.test={bmes_file(tmp_path / 'new.bmes', 60, seed=6)}"])
    assert scored["f1"] > 0.9
    from_text, from_tokens = predict_rows(
        run, [{"text": "word1  pear word37 word3"}, {"tokens": ["saw", "word38"], "tags": ["?"]}]
    )
    assert [(s["type"], s["start"], s["end"], s["text"]) for s in from_text["spans"]] == [
        ("fruit", 7, 18, "pear word37")
    ]
    assert from_tokens["prediction"] == ["B-tool", "I-tool"]
    with pytest.raises(UserError, match=r"data\.test: entity types that the training rows lack: 'metal'"):
        (tmp_path / "odd.bmes").write_text("pear S-metal\n")
        evaluate_run(run, [f"data.test={tmp_path / 'odd.bmes'}"])
