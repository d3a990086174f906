"""Why a run predicts what it does: the contribution of each word to its answers, row by row.

The answers are the predicted class, number, choice, span of an answer or tags of entities, and for language models the
next tokens that greedy decoding gives.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools.bases.loading import prepare_libraries
from pefttools.data.encoding import cut_rows
from pefttools.errors import UserError
from pefttools.inference.attribution import ENOUGH, Attribution, Method, attribute
from pefttools.inference.unlabeled import FieldColumns
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.base import LABELS
from pefttools.training.own_rows import own_rows
from pefttools.training.run import Run, Trained, load

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.data.reading import Raw
    from pefttools.data.rows import Row
    from pefttools.tasks._explained import Explained

LONG = 30.0
"""Seconds from which on a note says how long all explanations will take."""
LEAST = 0.05
"""Sum of contributions below which a summary leaves a word out."""
FREQUENT = 12
"""Number of words of each class that a summary lists."""


@dataclass(frozen=True)
class Wanted:
    """What to explain, and how."""

    method: Method = "integrated_gradients"
    of: str | None = None
    """The class, choice or word to explain instead of the predicted answer."""
    tokens: int = 1
    """Number of next tokens to explain, for language models."""

    def check(self, task: Any) -> None:
        """Raises UserError when this cannot be explained."""
        if not task.can_explain:
            raise UserError(
                f"explain: {task.name} has no answer that one number scores; classes of texts and relations, tags,"
                " choices, numbers, answers in a text and next tokens can be explained"
            )
        if self.tokens < 1:
            raise UserError(f"--tokens: must be at least 1, got {self.tokens}; it is the number of next tokens")
        if self.tokens > 1 and not task.generates:
            raise UserError(f"--tokens: {task.name} generates no tokens")
        if self.of is not None and task.generates:
            raise UserError("--of: the next tokens of a language model are those that it predicts; leave --of out")


def labelled_rows(path: Path, number: int, reporter: Reporter = SILENT) -> Sequence[Row]:
    """The first rows that a run was scored on. Raises UserError when the number is below 1."""
    if number < 1:
        raise UserError(f"--rows: must be at least 1, got {number}; it is the number of rows to explain")
    run = Run.open(path)
    return own_rows(run, run.recipe().task, reporter).rows[:number]


def rows_of(path: Path, raws: Iterable[Raw | UserError], reporter: Reporter = SILENT) -> list[Row]:
    """Rows of a file or of the command line, as the run's task reads them.

    Raises:
        UserError: a row cannot be read, or there is none.
    """
    found, columns = [*raws], FieldColumns(Run.open(path).recipe())
    columns.fit(found, reporter)
    rows = [columns.read(number, raw) for number, raw in enumerate(found, 1)]
    if problems := [row for row in rows if isinstance(row, UserError)]:
        raise UserError(*(f"explain: {problem}" for problem in problems[:3]))
    if not rows:
        raise UserError("explain: there is no row to explain")
    return [row for row in rows if not isinstance(row, UserError)]


def explain(
    path: Path, rows: Sequence[Row], wanted: Wanted | None = None, reporter: Reporter = SILENT
) -> Iterator[dict[str, Any]]:
    """One explanation for each answer of each row.

    Each has the `row` (its number), the row's fields, the `answer`, whether it is `right` (None without a label), the
    `words` with their `value` and whether each `is_special`, the `score`, that of the `baseline`, and for integrated
    gradients the `completeness_error` and the `steps`; `is_cut` if the model reads only the first part of the row.

    Raises:
        UserError: the run is not finished, or its task or the wish cannot be explained.
    """
    prepare_libraries()
    chosen = wanted or Wanted()
    chosen.check(Run.open(path).recipe().task)
    trained = load(path, reporter)
    if getattr(trained.model.config, "is_encoder_decoder", False):
        raise UserError(
            "explain: this base is an encoder-decoder, whose decoder reads the words a second time, so that they cannot"
            " be taken away one by one; encoders and decoders can be explained"
        )
    trained.model.requires_grad_(False)
    started, done, inexact = time.monotonic(), 0, 0
    total = len(rows) * chosen.tokens
    with reporter.bar("explaining", total, "answers") as bar:
        for number, row in enumerate(rows, 1):
            of_row = _next_tokens if trained.task.generates else _answers
            answers = of_row(trained, row, chosen, reporter)
            for found, about in answers:
                done += 1
                inexact += found.error is not None and found.error > ENOUGH
                yield {"row": number, **row, **_values(found), **about}
                if done == 1 and (seconds := (time.monotonic() - started) * total) > LONG:
                    reporter.note(f"{total:,} answers take about {_duration(seconds)}; Ctrl-C stops")
                if trained.task.generates:
                    bar.advance(1)
            bar.advance(0 if trained.task.generates else 1)
    if inexact:
        reporter.warn(
            f"{inexact} of {done} explanations have a completeness error above {ENOUGH:.0%}; with --method occlusion"
            " there is no such error"
        )


def _answers(
    trained: Trained, row: Row, wanted: Wanted, reporter: Reporter
) -> Iterator[tuple[Attribution, dict[str, Any]]]:
    """The explanations of a row's answers, and whether they are right."""
    import torch

    model, task, tokenizer = trained.model, trained.task, trained.base.tokenizer
    without = {name: value for name, value in row.items() if name not in task.targets}
    columns = task.encode([without], tokenizer)
    encoded = [{name: v[i] for name, v in columns.items()} for i in range(len(columns["input_ids"]))]
    inputs = {name: values for name, values in columns.items() if name != LABELS}
    batch = task.collate(inputs, tokenizer, 1)
    with torch.no_grad():
        outputs = model(**task.inputs_of(batch))
    parts = task.predict(outputs, batch)
    prediction = task.aggregate(row, encoded, parts)
    reference = task.reference(row)
    right = None if reference is None else task.is_right(prediction, reference)
    about = {"prediction": prediction["prediction"], "reference": reference, "is_right": right}
    if any(cut_rows(columns, 1)) and task.truncation == "cut":
        about["is_cut"] = True  # the model reads the first tokens alone
    for answer in task.explained(without, encoded, outputs, batch, wanted.of):
        yield attribute(model, task, tokenizer, batch, answer, wanted.method, reporter), about


def _next_tokens(
    trained: Trained, row: Row, wanted: Wanted, reporter: Reporter
) -> Iterator[tuple[Attribution, dict[str, Any]]]:
    """The explanations of the next tokens of a language model, until it ends the text."""
    import torch

    model, task, tokenizer = trained.model, trained.task, trained.base.tokenizer
    (ids,) = task.prompts([row], tokenizer)
    decoding = task.decoding(tokenizer)
    ends = {*decoding.stop_ids} if decoding else set()
    for place in range(wanted.tokens):
        batch: dict[str, Tensor] = {"input_ids": torch.tensor([ids])}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        with torch.no_grad():
            outputs = model(**task.inputs_of(batch))
        (answer,) = task.explained(row, [], outputs, batch, None)
        token = int(answer.about)
        named: Explained = answer._replace(about=f"next token {tokenizer.decode([token])!r}")
        found = attribute(model, task, tokenizer, batch, named, wanted.method, reporter)
        yield found, {"place": place + 1}
        ids = [*ids, token]
        if token in ends:
            return


def _values(found: Attribution) -> dict[str, Any]:
    words = [
        {"word": word.text, "value": value, "is_special": word.is_special}
        for word, value in zip(found.words, found.values, strict=True)
    ]
    return {
        "answer": found.about, "score": found.score, "baseline": found.baseline, "completeness_error": found.error,
        "steps": found.steps, "words": words,
    }  # fmt: skip


def frequent_words(explanations: Sequence[dict[str, Any]], number: int = FREQUENT) -> dict[str, list[dict[str, Any]]]:
    """Answer -> the words that contribute most to it over all rows: `word`, `number` of times, and the sum and the mean
    of their values. Answers that occur once are left out."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    times: dict[str, int] = defaultdict(int)
    for one in explanations:
        times[one["answer"]] += 1
        for word in one["words"]:
            if not word["is_special"] and any(map(str.isalnum, word["word"])):
                values[one["answer"]][word["word"].lower()].append(word["value"])
    found = {}
    for answer, words in values.items():
        if times[answer] < 2:
            continue
        best = sorted(words.items(), key=lambda item: -math.fsum(item[1]))[:number]
        found[answer] = [
            {"word": word, "number": len(all_), "sum": math.fsum(all_), "mean": math.fsum(all_) / len(all_)}
            for word, all_ in best
            if math.fsum(all_) >= LEAST
        ]
    return found


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
