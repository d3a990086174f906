"""Question answering: predict the span of a context that answers a question, or that there is none.

A row is `question`, `context` and `answers`, a list of `{text, answer_start}` with positions in characters of the
context (SQuAD's json files work unchanged). Or it has one `answer` and its exact position `answer_start`. An empty list
or answer, or `is_impossible`, means that the context has no answer. An answer of a list that is not at its position is
searched for in the context; rows whose answers are not in the context are skipped and counted. Long contexts are read
in overlapping windows. Training uses a row's first answer, evaluation all of them.

In every window the model gives each token a logit as start and as end of the answer. The softmax runs over the
context's tokens and the first token (CLS), which stands for "not in this window" (Devlin et al. 2019, section 4.3,
whose softmax runs over all tokens). This makes the probabilities of windows comparable. Metrics: exact match and F1 as
in SQuAD's script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from pefttools.data import spans
from pefttools.data.batching import padded
from pefttools.data.fields import text as text_of
from pefttools.data.splitting import LeftOut, Row, Splits
from pefttools.data.units import Piece, SplitText, Units
from pefttools.errors import UserError
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks._explained import Explained
from pefttools.tasks.base import LABELS, Columns, Prediction, Task, without_virtual

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

CONTEXT, NOT_HERE = "context", "not_here"
"""Tensors of a batch besides the model's inputs: a mask of the context's tokens, and the position that means no
answer."""
CANDIDATES = 20
"""Candidate spans of a window."""
PLACE = ("start", "end", "probability")


class QuestionAnswering(Task):
    """One start and one end per window; the loss is the mean of their cross-entropies."""

    fields: ClassVar[Mapping[str, bool]] = {
        "question": True, "context": True, "answers": False, "answer": False, "answer_start": False,
        "is_impossible": False, "id": False, "title": False,
    }  # fmt: skip
    inputs: ClassVar[tuple[str, ...]] = ("context", "question")
    targets: ClassVar[tuple[str, ...]] = ("answers", "answer", "answer_start", "is_impossible")
    has_editable_words: ClassVar[bool] = True
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"question": "word1 fruit", "context": "word2 apple word3", "answers": [{"text": "apple", "answer_start": 6}]},
        {"question": "word1 tool", "context": "red hammer", "answers": [{"text": "red hammer", "answer_start": 0}]},
        {"question": "word1 colour", "context": "saw blue", "answers": {"text": ["blue"], "answer_start": [4]}},
        {"question": "word1 tool", "context": "word4 pear", "answers": []},
    )
    of_data: ClassVar[tuple[str, ...]] = (
        "max_length", "stride", "max_question_length", "max_answer_length", "null_threshold",
    )  # fmt: skip
    only_with: ClassVar[Any] = {
        "null_threshold": (
            "task.unanswerable=true or null",
            lambda task: task.unanswerable is not False,
        )
    }
    primary: ClassVar[str] = "f1"
    pipeline_tag: ClassVar[str | None] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    peft_type: ClassVar[str | None] = None  # peft's class for QUESTION_ANS takes token_type_ids and drops them

    max_length: int = Field(default=384, ge=16)
    """Maximum tokens of a window, question and context together; longer contexts are split into several windows."""
    stride: int = Field(default=128, ge=0)
    """Context tokens that a window shares with the previous one; at most half of its context."""
    max_question_length: int = Field(default=64, ge=1)
    """Maximum tokens of a question, at most half of a window; longer questions are truncated and counted."""
    max_answer_length: int = Field(default=30, ge=1)
    """Maximum tokens of a predicted answer."""
    num_best: int = Field(default=5, ge=1, le=CANDIDATES)
    """Number of answers to report per row, the best first."""
    null_threshold: float = 0.0
    """Predict no answer if its log-probability exceeds that of the best answer by more than this."""
    unanswerable: bool | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """Whether the model may predict that there is no answer; when null, whether training rows without an answer
    exist."""

    @classmethod
    def example(cls) -> Self:
        return cls(unanswerable=True)

    def read(self, values: Mapping[str, Any]) -> Row:
        context = text_of(values.get("context"), "context")  # not stripped: positions of answers count from its start
        row: Row = {"context": context, "question": text_of(values.get("question"), "question")}
        row |= {name: str(values[name]) for name in ("id", "title") if values.get(name) is not None}
        if not {"answers", "answer"} & {*values}:
            return row
        if _truth(values.get("is_impossible")):
            answers: list[tuple[str, int | None]] = []
        elif "answer_start" in values:
            answers = spans.at_one_place(context, values.get("answer", values.get("answers")), values["answer_start"])
        else:
            answers = list(spans.listed_answers(values.get("answers", values.get("answer"))))
        found = [a for a in (spans.locate(context, *answer) for answer in answers) if a is not None]
        if answers and not found:
            raise LeftOut("an answer that is not in its context")
        row["answers"] = [{"text": a.text, "answer_start": a.start} for a in found]
        return row

    def editable_words(self, row: Row) -> list[Units]:
        return [spans.split_around(row["context"], row["answers"]).units, SplitText.of(row["question"]).units]

    def with_edits(self, row: Row, edits: Sequence[Sequence[Piece]]) -> Row:
        context, answers = spans.edited(row["context"], row["answers"], edits[0])
        question = SplitText.of(row["question"]).edited(edits[1])[0]
        return {**row, "context": context, "question": question, "answers": answers}

    def fit(self, splits: Splits) -> Self:
        without = [name for name, rows in splits.named().items() if any("answers" not in row for row in rows)]
        if without:
            raise UserError(
                *(f"data.{name}: rows have no answers; name their column in data.columns.answers" for name in without)
            )
        if not any(row["answers"] for row in splits.train):
            raise UserError("data.train: no question has an answer; there is nothing to learn")
        none = any(not row["answers"] for row in (*splits.train, *splits.spare))
        return self.with_values(unanswerable=none if self.unanswerable is None else self.unanswerable)

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        if any("answers" not in row for row in rows):
            raise UserError(f"{key}: rows have no answers; name their column in data.columns.answers")

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        del tokenizer
        messages = []
        for name, rows in splits.named().items():
            number = sum(not row["answers"] for row in rows)
            if number and not self.unanswerable:
                messages.append(
                    f"{number} of {len(rows)} {name} questions have no answer, but no training question is"
                    " like that, so the model always predicts one (task.unanswerable=true lets it predict none)"
                )
        return messages

    def config_values(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        limit = min(self.max_length, tokenizer.model_max_length)
        questions, contexts = ([row[name] for row in rows] for name in ("question", "context"))
        try:
            made = spans.windows(questions, contexts, tokenizer, limit, self.stride, self.max_question_length)
        except ValueError as error:
            raise UserError(f"task: {error}") from error
        not_here = [_position(ids, tokenizer.cls_token_id) for ids in made.columns["input_ids"]]
        columns: dict[str, list[Any]] = {
            **made.columns, "row": made.rows, "starts": made.starts, "ends": made.ends, NOT_HERE: not_here,
            "num_targets": [1] * len(made.rows), "cut": made.cut,
        }  # fmt: skip
        if rows and all("answers" in row for row in rows):
            columns[LABELS] = [
                list(_place(rows[row]["answers"], starts, ends) or (nowhere, nowhere))
                for row, starts, ends, nowhere in zip(made.rows, made.starts, made.ends, not_here, strict=True)
            ]
        return columns

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        import torch

        batch = super().collate({k: v for k, v in columns.items() if k != LABELS}, tokenizer, multiple)
        batch[CONTEXT] = padded(columns["starts"], batch["input_ids"].shape[1], spans.OUTSIDE) != spans.OUTSIDE
        batch[NOT_HERE] = torch.tensor(columns[NOT_HERE])
        if LABELS in columns:
            batch[LABELS] = torch.tensor(columns[LABELS])
        return batch

    def shown(self, encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        text = f"{tokenizer.decode(encoded['input_ids'])}"
        if LABELS not in encoded:
            return text
        first, last = encoded[LABELS]
        answer = tokenizer.decode(encoded["input_ids"][first : last + 1]) if first != encoded[NOT_HERE] else "not here"
        return f"{text}\n-> tokens {first} to {last}: {answer}"

    def repeat_to_length(self, row: Mapping[str, Any], length: int) -> dict[str, Any]:
        longer = super().repeat_to_length(row, length)
        return {**longer, LABELS: [longer[NOT_HERE]] * 2} if LABELS in row else longer  # the target may lie outside

    def logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits of every token as start and as end; shape (rows, tokens, 2)."""
        import torch

        return without_virtual(torch.stack([outputs.start_logits, outputs.end_logits], dim=-1), batch)

    def _possible(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits in fp32 of the context's tokens and `NOT_HERE`, −inf elsewhere; shape (rows, tokens, 2)."""
        possible = batch[CONTEXT].scatter(1, batch[NOT_HERE][:, None], True)
        logits = self.logits(outputs, batch).float()
        return logits.masked_fill(~possible[..., None], float("-inf"))

    def _log_probabilities(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits as log-probabilities over the context's tokens and `NOT_HERE`."""
        return self._possible(outputs, batch).log_softmax(1)

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        targets = batch[LABELS][:, None]  # (rows, 1, start and end)
        return -self._log_probabilities(outputs, batch).gather(1, targets).mean(-1).sum()

    def divergence(self, outputs: Any, others: Any, batch: Mapping[str, Tensor]) -> Tensor:
        from pefttools.nn import divergence

        both = self._possible(outputs, batch), self._possible(others, batch)
        return divergence.of_classes(*both, dim=1).mean(-1).sum()

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        """For every window the best spans as (first token, last token, log-probability), and the log-probability of no
        answer."""
        from torch.nn import functional

        scores = self._log_probabilities(outputs, batch)
        nowhere = scores.gather(1, batch[NOT_HERE][:, None, None].expand(-1, 1, 2)).sum((1, 2))
        scores = scores.masked_fill(~batch[CONTEXT][..., None], float("-inf"))
        length = min(self.max_answer_length, scores.shape[1])
        ends = functional.pad(scores[..., 1], (0, length - 1), value=float("-inf")).unfold(1, length, 1)
        both = scores[..., 0, None] + ends  # (rows, first token, number of further tokens)
        best = both.flatten(1).topk(min(CANDIDATES, both[0].numel()))
        return [
            {
                "spans": [
                    (place // length, place // length + place % length, score)
                    for place, score in zip(places, values, strict=True)
                    if score > float("-inf")
                ],
                "nowhere": none,
            }
            for places, values, none in zip(best.indices.tolist(), best.values.tolist(), nowhere.tolist(), strict=True)
        ]

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        """The best distinct spans of all windows, as texts and character positions in the context."""
        best: dict[tuple[int, int], float] = {}
        for window, one in zip(encoded, parts, strict=True):
            for first, last, score in one["spans"]:
                place = _stripped(row["context"], window["starts"][first], window["ends"][last])
                if place[0] < place[1]:
                    best[place] = max(score, best.get(place, score))
        nowhere = min(one["nowhere"] for one in parts)
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[: self.num_best]
        all_scores = [score for _, score in ranked] + ([nowhere] if self.unanswerable or not ranked else [])
        total = sum(math.exp(score - max(all_scores)) for score in all_scores)
        share = [math.exp(score - max(all_scores)) / total for score in all_scores]
        nbest = [
            {"text": row["context"][start:end], "start": start, "end": end, "probability": p}
            for ((start, end), _), p in zip(ranked, share, strict=False)
        ]
        margin = nowhere - ranked[0][1] if self.unanswerable and ranked else None
        null_margin = {"null_margin": margin} if self.unanswerable else {}
        if ranked and (margin is None or margin <= self.null_threshold):
            return {"prediction": nbest[0]["text"], **{k: nbest[0][k] for k in PLACE}, **null_margin, "nbest": nbest}
        return {"prediction": "", "start": None, "end": None, "probability": share[-1], **null_margin, "nbest": nbest}

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        """The log-probability of the best span."""
        if of is not None:
            raise UserError("--of: the answer is a part of the text; leave --of out to explain the predicted one")
        parts = self.predict(outputs, batch)
        spans = [
            (score, window, first, last) for window, one in enumerate(parts) for first, last, score in one["spans"]
        ]
        if not spans or not self.aggregate(row, encoded, parts)["prediction"]:
            return []
        _, window, first, last = max(spans)
        text = row["context"][encoded[window]["starts"][first] : encoded[window]["ends"][last]]
        return [Explained(f"answer {text.strip()}", window, self._score(first, last))]

    def _score(self, first: int, last: int) -> Callable[[Any, Mapping[str, Tensor]], Tensor]:
        """The log-probability of a span."""

        def score(outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
            found = self._log_probabilities(outputs, batch)
            return found[:, first, 0] + found[:, last, 1]

        return score

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import combined

        values = combined("squad").compute(
            predictions=[p["prediction"] for p in predictions], references=[list(r) for r in references]
        )
        assert values is not None
        return values

    def reference(self, row: Row) -> Any:
        return [answer["text"] for answer in row["answers"]] if "answers" in row else None


def _truth(value: Any) -> bool:
    """The boolean value of a field; raises ValueError if it is neither true nor false."""
    word = str(value).strip().lower()
    if word in ("", "none", "false", "no", "0", "0.0", "nan"):
        return False
    if word in ("true", "yes", "1", "1.0"):
        return True
    raise ValueError(f"has an is_impossible that is neither true nor false: {value!r}")


def _position(ids: Sequence[int], token: Any) -> int:
    """The position of CLS; 0 if there is none."""
    return ids.index(token) if token in ids else 0


def _place(answers: Sequence[Mapping[str, Any]], starts: Sequence[int], ends: Sequence[int]) -> tuple[int, int] | None:
    """First and last token of a row's first answer in a window; None if it is not in the window."""
    return (
        spans.tokens_of(spans.Answer(answers[0]["text"], answers[0]["answer_start"]), starts, ends) if answers else None
    )


def _stripped(context: str, start: int, end: int) -> tuple[int, int]:
    """The span without surrounding spaces, which some tokenizers include in a word."""
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), start + len(text.rstrip())
