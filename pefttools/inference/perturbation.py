"""Perturbations of the rows that a run is scored on: the same rows with noise of a given strength.

A strength is the share of words that change: words with a typo, in another case, with other punctuation, replaced by a
synonym, or left out. Tags, answers and marked entities follow the words, as in augmentations, whose edits these are;
words of entities and answers stay as they are.
The draws for a row depend only on the seed, the perturbation and the row's texts.
"""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pefttools.augmentations._operations import replaced
from pefttools.augmentations.base import WordAugmentation, copied_fields
from pefttools.augmentations.random_deletion import RandomDeletion
from pefttools.augmentations.typos import Typos
from pefttools.data.encoding import cut_rows, encode_once
from pefttools.data.rows import Row
from pefttools.data.synonym_lists import replaceable
from pefttools.data.units import Piece, Units, core
from pefttools.data.words import IS_CJK
from pefttools.errors import UserError, unknown
from pefttools.inference.scoring import rows_to_score
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.base import Prediction, Task
from pefttools.training.evaluation import Evaluator
from pefttools.training.run import load

STRENGTHS = (0.1, 0.2, 0.4)
"""The strengths of a perturbation that names none."""
MARKS, CJK_MARKS = ",.;:!?", "，。；：！？"


class _Edit(WordAugmentation):
    """An edit of each word with the same probability."""

    probability: float = Field(gt=0, le=1)

    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        pieces = []
        for place, (unit, is_free) in enumerate(zip(units.texts, units.free, strict=True)):
            is_edited = draw.random() < self.probability and is_free
            pieces.append(Piece(self.edited(unit, draw) if is_edited else unit, place))
        pieces = [piece for piece in pieces if piece.text]
        return pieces if pieces and [piece.text for piece in pieces] != [*units.texts] else None

    @abstractmethod
    def edited(self, unit: str, draw: random.Random) -> str:
        """The unit's new text; empty to delete it."""


class Case(_Edit):
    """Write words in small letters, in capitals, or with one capital."""

    def edited(self, unit: str, draw: random.Random) -> str:
        options = [other for other in (unit.lower(), unit.upper(), unit.capitalize()) if other != unit]
        return draw.choice(options) if options else unit


class Punctuation(_Edit):
    """Remove the punctuation around a word, or put a mark after a word without any."""

    def edited(self, unit: str, draw: random.Random) -> str:
        before, word, after = core(unit)
        if not any(map(str.isalnum, word)):
            return ""
        if before or after:
            return word
        return unit + draw.choice(CJK_MARKS if IS_CJK.match(unit) else MARKS)


class Synonyms(WordAugmentation):
    """Replace a share of the words by synonyms."""

    probability: float = Field(gt=0, le=1)

    def edit(self, units: Units, draw: random.Random) -> list[Piece] | None:
        words = [w for w in replaceable(units.texts, units.free, None) if draw.random() < self.probability]
        return replaced(units, words, len(words), draw) if words else None


@dataclass(frozen=True)
class _Kind:
    """A perturbation by name."""

    edit: Callable[[float], WordAugmentation]
    highest: float = 1.0
    """Strengths are above 0 and at most this."""


KINDS: Mapping[str, _Kind] = {
    "typos": _Kind(lambda strength: Typos(probability=strength)),
    "case": _Kind(lambda strength: Case(probability=strength)),
    "punctuation": _Kind(lambda strength: Punctuation(probability=strength)),
    "synonyms": _Kind(lambda strength: Synonyms(probability=strength)),
    "word_drop": _Kind(lambda strength: RandomDeletion(probability=strength), highest=0.99),
}


@dataclass(frozen=True)
class Scored:
    """A run's predictions on perturbed rows, or on the rows as they are."""

    name: str
    """The perturbation; empty for the rows as they are."""
    strength: float
    changed: int
    """Number of rows with another text."""
    metrics: dict[str, Any]
    predictions: list[Prediction]
    references: list[Any]
    """They follow the rows: tags of other words."""


@dataclass(frozen=True)
class Perturbed:
    """A run's scores on rows with perturbations of several strengths."""

    task: Task
    scored_on: str
    seed: int
    plain: Scored
    perturbed: list[Scored]


def parse(words: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Perturbation -> its strengths in ascending order, from words such as `case` or `typos=0.05,0.1`.

    Raises:
        UserError: a name is unknown or repeated, or a strength is not a number in the allowed range.
    """
    found: dict[str, tuple[float, ...]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if name not in KINDS:
            raise UserError(f"--perturb: {unknown('perturbation', name, list(KINDS))}")
        if name in found:
            raise UserError(f"--perturb: {name} is given twice; write its strengths as {name}=0.1,0.2")
        highest = KINDS[name].highest
        strengths: set[float] = set()
        for value in values.split(",") if equals else map(str, STRENGTHS):
            try:
                strength = float(value)
            except ValueError:
                strength = float("nan")
            if not 0 < strength <= highest:
                raise UserError(
                    f"--perturb: {name} has the strength {value!r}; write the share of words to change, above 0 and at"
                    f" most {highest:g}, such as {name}=0.1"
                )
            strengths.add(strength)
        found[name] = tuple(sorted(strengths))
    return found


def score(
    path: Path,
    chosen: Mapping[str, Sequence[float]],
    overrides: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Perturbed:
    """Score a run on the rows that `evaluate_run` scores, as they are and with each perturbation at each strength.

    Args:
        chosen: perturbation -> strengths, as `parse` returns them.

    Raises:
        UserError: as in `evaluate_run`; or the targets of the run's task do not follow edits of words.
    """
    split, rows = rows_to_score(path, overrides, reporter)
    trained = load(path, reporter)
    task, seed = trained.task, trained.recipe.seed
    if not (task.rewritable or task.has_editable_words):
        raise UserError(f"--perturb: task={task.name} has no text that can change without changing what is right")
    evaluator = Evaluator(trained.model, task, trained.base.tokenizer, reporter=reporter)

    def scored(name: str, strength: float, some: Sequence[Row]) -> Scored:
        title = f"{name} {strength:g}" if name else split
        encoded = encode_once(some, task, trained.base, title, reporter)
        if cut := sum(cut_rows({name: encoded[name] for name in ("row", "cut")}, len(some))):
            reporter.warn(f"{title}: {cut} of {len(some)} rows are longer than the model reads; they were truncated")
        result = evaluator.score(encoded, some, title, generate=True)
        changed = sum(one != other for one, other in zip(some, rows, strict=True))
        references = [task.reference(row) for row in some]
        return Scored(name, strength, changed, result.metrics, result.predictions, references)

    made = {
        (name, strength): list(perturbed(rows, task, KINDS[name].edit(strength), f"{seed}\n{name}"))
        for name, strengths in chosen.items()
        for strength in strengths
    }  # before anything is scored, because synonyms may have to be downloaded
    for (name, strength), some in made.items():
        if some == rows:
            reporter.warn(f"--perturb: {name}={strength:g} changes none of the {len(rows)} rows")
    plain = scored("", 0.0, rows)
    found = [scored(name, strength, some) for (name, strength), some in made.items()]
    return Perturbed(task, split, seed, plain, found)


def perturbed(rows: Sequence[Row], task: Task, edit: WordAugmentation, seed: str) -> Iterator[Row]:
    """The rows with edited words, and with targets that follow; a row whose texts would be empty stays as it is."""
    for row in rows:
        names = copied_fields(task, row)
        texts = json.dumps([row[name] for name in names], ensure_ascii=False)
        found = edit.rewritten(row, task, random.Random(f"{seed}\n{texts}"))
        yield found if all(found[name] and found[name] != [""] for name in names) else row
