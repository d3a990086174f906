"""What a file of rows is for: its task, the columns of the task's fields, lengths, languages, and how rare classes are.

Everything is a guess from the first rows, told with its reason, so that the user can correct it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pefttools.errors import UserError

ROWS = 5000
"""Number of rows that are looked at."""
CHATS = ("messages", "conversations")
ANSWERS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"), ("input", "output"))
"""Columns of a prompt and its answer, which a language model learns."""
TARGETS = ("label", "labels", "class", "category", "target", "intent", "topic", "sentiment", "team", "tag", "type", "y")
"""Usual names of a column of classes, the likeliest first."""
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text", "text_pair"), ("question", "sentence"),
    ("question1", "question2"), ("text1", "text2"), ("sentence_a", "sentence_b"),
)  # fmt: skip
SPOKEN = (
    ("source", "target"),
    ("article", "summary"),
    ("document", "summary"),
    ("article", "highlights"),
    ("src", "tgt"),
)
"""Columns of two texts of which an encoder-decoder makes the second from the first."""
MOST_CLASSES = 0.2
"""Largest share of different values among the rows of a column of classes."""
FEW = 40
"""Number of rows below which classes may be half as many as rows."""
RARE = 0.2
"""Share of the mean number of rows of a class below which a class is called rare."""
OTHER_SCRIPT = 0.05
"""A note says so when at least this share of the rows is in another script."""
CUT = 0.95
"""Share of rows that are not cut at the chosen length."""
PER_TOKEN = 3.5
"""Characters of a token of a text in letters; of Chinese and Japanese texts, a character is about a token."""
TEMPLATE = (24, 1.1)
"""Tokens of a chat template, and the factor for those that it puts between turns."""
MARKERS = ("<e1>", "</e1>", "<e2>", "</e2>")
MARKED = 20
"""Number of rows that are searched for markers of entities."""
LENGTHS = (32, 64, 128, 256, 512, 1024)


@dataclass
class Guess:
    """A task with its columns, and the reasons."""

    task: str
    columns: dict[str, str]
    """Field -> column, where they differ."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the task."""
    notes: list[str] = field(default_factory=list)


def guess(rows: Sequence[Mapping[str, Any]], name: str, has_base: bool = False) -> Guess:
    """The likeliest task of rows.

    Args:
        rows: as they are read from a file, with the columns of the first.
        name: of the file, for messages.
        has_base: whether the user named a base, which needs no advice on languages.

    Raises:
        UserError: nothing is known that has such columns.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if {"chosen", "rejected"} <= {*columns}:
        raise UserError(f"{name}: has preferences (chosen, rejected), which no task learns yet")
    found = (
        _chat(columns) or _marked(columns) or _spoken(columns) or _labelled(rows, columns)
        or _asked(columns) or _plain(rows, columns)
    )  # fmt: skip
    if found is None:
        raise UserError(
            f"{name}: no task is known for the columns {', '.join(columns)}; write a recipe with task and data.columns"
        )
    _add_length(found, rows)
    if not has_base:
        _add_languages(found, rows)
    return found


def _chat(columns: Sequence[str]) -> Guess | None:
    if found := next((one for one in CHATS if one in columns), None):
        return Guess("causal_lm", {}, notes=[f"{found!r} has chats, which a language model learns"])
    return None


def _marked(columns: Sequence[str]) -> Guess | None:
    """Tasks whose columns have names of their own: tags, answers in a text, choices."""
    tags = next((one for one in ("tags", "ner_tags", "pos_tags", "labels") if one in columns), None)
    words = next((one for one in ("tokens", "words") if one in columns), None)
    if words and tags:
        return Guess(
            "token_classification", _renamed({"tokens": words, "tags": tags}), notes=[f"{tags!r} tags {words!r}"]
        )
    if {"question", "context"} <= {*columns} and {"answers", "answer", "answer_start"} & {*columns}:
        return Guess("question_answering", {}, notes=["the answers are places in a context"])
    choices = "choices" in columns or {"choice_a", "choice_b"} <= {*columns}
    if choices and (text := next((one for one in ("text", "question", "prompt") if one in columns), None)):
        label = next((one for one in ("label", "answer", "answerKey") if one in columns), "label")
        return Guess(
            "multiple_choice", _renamed({"text": text, "label": label}), notes=["every row has its own choices"]
        )
    return None


def _spoken(columns: Sequence[str]) -> Guess | None:
    if "translation" in columns:
        return Guess(
            "seq2seq", {}, notes=["'translation' has a text in two languages; set task.source_lang and target_lang"]
        )
    for source, target in SPOKEN:
        if {source, target} <= {*columns}:
            return Guess(
                "seq2seq", _renamed({"source": source, "target": target}), notes=[f"{target!r} is made of {source!r}"]
            )
    return None


def _asked(columns: Sequence[str]) -> Guess | None:
    for prompt, completion in ANSWERS:
        if {prompt, completion} <= {*columns}:
            known = {} if prompt == "instruction" else _renamed({"prompt": prompt, "completion": completion})
            return Guess("causal_lm", known, notes=[f"{completion!r} answers {prompt!r}"])
    return None


def _labelled(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Guess | None:
    """Classes or numbers of texts or pairs of texts."""
    texts = _texts(rows, columns)
    if not texts:
        return None
    names = [one for known in TARGETS for one in columns if one.lower() == known]
    usual = [one for one in names if one not in texts[:1]]
    others = [one for one in columns if one not in (*texts, *usual) and _has_classes(rows, one)]
    label = next(iter([*(one for one in usual if _is_target(rows, one)), *others]), None)
    if label is None or (not usual and label in {prompt for prompt, _ in ANSWERS}):  # few prompts, many answers
        return None
    inputs = [one for one in texts if one != label]
    if not inputs:
        return None
    pair = next((pair for pair in PAIRS if {*pair} <= {*inputs}), None)
    fields = {"text": pair[0], "text_pair": pair[1]} if pair else {"text": inputs[0]}
    values: list[Any] = [row.get(label) for row in rows if row.get(label) not in (None, "")]
    if any(isinstance(one, (list, tuple)) for one in values) or all(map(_is_list, values)):
        note = f"{label!r} has several labels a row"
        return Guess("text_classification", _renamed({**fields, "label": label}), {"multi_label": True}, [note])
    different = len({str(one) for one in values})
    if all(map(_is_number, values)) and (different > 20 or any(float(one) % 1 for one in values)):
        note = f"{label!r} has {different} different numbers"
        return Guess("regression", _renamed({**fields, "label": label}), notes=[note])
    notes = [f"{label!r} has {different} classes in {len(values):,} rows", *_rare(values)]
    if all(mark in str(row.get(fields["text"])) for row in rows[:MARKED] for mark in MARKERS):
        notes.insert(0, f"{fields['text']!r} marks two entities in every row ({' '.join(MARKERS)})")
        return Guess("relation_extraction", _renamed({"text": fields["text"], "label": label}), notes=notes)
    return Guess("text_classification", _renamed({**fields, "label": label}), notes=notes)


def _rare(values: Sequence[Any]) -> list[str]:
    counts = Counter(map(str, values))
    least, number = min(counts.items(), key=lambda item: item[1])
    if number >= RARE * len(values) / len(counts):
        return []
    return [f"class {least!r} is rare ({number} rows): look at macro-F1, and try objectives=class_weights"]


def _plain(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Guess | None:
    if texts := _texts(rows, columns):
        return Guess("causal_lm", _renamed({"text": texts[0]}), notes=[f"{texts[0]!r} is text without labels"])
    return None


def _texts(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The columns of texts, those with the longest ones first, but a column `text` before all."""
    lengths = {}
    for column in columns:
        values = [row[column] for row in rows if row.get(column) not in (None, "")]
        are_texts = values and all(isinstance(one, str) for one in values) and not all(map(_is_number, values))
        if are_texts and (column.lower() in ("text", "sentence") or not _has_classes(rows, column)):
            lengths[column] = sum(map(len, values)) / len(values)
    return sorted(lengths, key=lambda one: (one.lower() not in ("text", "sentence"), -lengths[one]))


def _has_classes(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether few different short values fill a column."""
    values = [str(row[column]) for row in rows if row.get(column) not in (None, "")]
    different = {*values}
    most = 0.5 if len(values) < FEW else MOST_CLASSES
    return 1 < len(different) <= max(2, most * len(values)) and max(map(len, different)) <= 80


def _is_target(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row.get(column) for row in rows if row.get(column) not in (None, "")]
    several = any(isinstance(one, (list, tuple)) for one in values)
    return bool(values) and (several or _has_classes(rows, column) or all(map(_is_number, values)))


def _is_list(value: Any) -> bool:
    """Whether a text is a list that was written into a cell."""
    return isinstance(value, str) and value.startswith("[") and value.endswith("]")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (list, tuple, dict, bool)) and float(value) == float(value)
    except (TypeError, ValueError):
        return False


def _renamed(fields: Mapping[str, str]) -> dict[str, str]:
    return {name: column for name, column in fields.items() if name != column}


def _inputs(found: Guess, row: Mapping[str, Any]) -> str:
    """The text of a row that the model reads."""
    left = {found.columns.get(name, name) for name in ("label", "tags", "id")}
    values = [value for name, value in row.items() if name not in left]
    return " ".join(value if isinstance(value, str) else str(value) for value in values if value is not None)


def _add_length(found: Guess, rows: Sequence[Mapping[str, Any]]) -> None:
    if found.task == "question_answering":  # long contexts are read in windows
        return
    extra, factor = TEMPLATE if found.task == "causal_lm" else (0, 1.0)
    lengths = sorted(round(extra + factor * _tokens(_inputs(found, row))) for row in rows)
    most = lengths[min(len(lengths) - 1, int(CUT * len(lengths)))]
    found.settings["max_length"] = next((one for one in LENGTHS if one >= most + 2), LENGTHS[-1])
    found.notes.append(
        f"{CUT:.0%} of the rows have at most about {most:,} tokens (estimated), so max_length is"
        f" {found.settings['max_length']}"
    )


def _tokens(text: str) -> float:
    wide = sum(map(_is_wide, text))
    return round(wide + (len(text) - wide) / PER_TOKEN)


def _is_wide(character: str) -> bool:
    """Whether a character is Chinese, Japanese or Korean."""
    return character > "\u2e7f" and unicodedata.east_asian_width(character) in "WF" and character.isalpha()


def _add_languages(found: Guess, rows: Sequence[Mapping[str, Any]]) -> None:
    texts = [_inputs(found, row) for row in rows]
    wide = sum(any(map(_is_wide, text)) for text in texts) / len(texts)
    if wide > OTHER_SCRIPT:
        found.notes.append(
            f"{wide:.0%} of the rows have Chinese, Japanese or Korean text: choose a base that knows it, because the"
            " usual ones here are English"
        )
