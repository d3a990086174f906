"""causal_lm: a language model learns to answer, from instructions, chats of many turns, or goes on with plain text.

A row is a chat in any of these forms, told by its columns (others are named by `data.columns`), or a `text`:

- `instruction`, `input` (may be empty) and `output`, as in Alpaca
- `conversations`, a list of `{from: human | gpt | system, value}`, as in ShareGPT
- `messages`, a list of `{role: user | assistant | system, content}`
- `prompt` and `completion`: `data.columns: {prompt: question, completion: answer}`
- `text` alone: pretraining goes on, every token is learnt, and long texts are cut into windows

A chat is written by the base's own chat template, or by `chat_template`; only answers are learnt, each with the token
that ends it. Metrics: perplexity of what is learnt, and of the first `generate_rows` rows, answered by generation,
exact match, ROUGE (BLEU and chrF on request) and `stopped`, the share of answers that ended by themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from pefttools import models
from pefttools.data import chat as chats
from pefttools.data import chat_tokens, packing
from pefttools.data.fields import text
from pefttools.data.splitting import Row, Splits
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.tasks.base import IGNORED, LABELS, Columns, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

LOOKED_AT = 500
"""Training rows that are looked at for remarks."""
ANSWERED = frozenset({"messages", "conversations", "output", "completion"})
"""Fields that hold answers: a row with one of them must have its answer."""


class CausalLM(Task):
    """Cross-entropy of every learnt token, given those before it."""

    fields: ClassVar[Mapping[str, bool]] = dict.fromkeys(
        ("messages", "conversations", "instruction", "input", "output", "prompt", "completion", "system", "text", "id"),
        False,
    )
    inputs: ClassVar[tuple[str, ...]] = ("prompt",)
    targets: ClassVar[tuple[str, ...]] = ("output", "completion")
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"messages": [{"role": "user", "content": "red apple"}, {"role": "assistant", "content": "apple red"}]},
        {"prompt": "word1 word2", "completion": "word2 word1"},
        {"instruction": "word3", "input": "saw", "output": "saw word3"},
        {"conversations": [{"from": "human", "value": "pear"}, {"from": "gpt", "value": "pear plum"}]},
    )
    sample_settings: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 16}
    primary: ClassVar[str] = "perplexity"
    lower_is_better: ClassVar[bool] = True
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_type: ClassVar[str | None] = "CAUSAL_LM"
    own_head: ClassVar[bool] = False
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", packing.POSITIONS)
    generates: ClassVar[bool] = True

    max_length: int = Field(default=512, ge=4)
    """Tokens a chat may have, and a window of plain text; longer chats are cut, and counted."""
    cut: chat_tokens.Cut = "end"
    """What a chat that is too long loses: its end, its start, or the end of its last question (the rest of an article
    to be summed up), so that the answer stays whole."""
    chat_template: str | None = None
    """A file with a Jinja template, or the template itself; the base's own when null, a plain one if it has none."""
    system: str | None = None
    """The system message of chats that have none."""
    train_on: Literal["answers", "all"] = "answers"
    """Which tokens of a chat are learnt."""
    packing: bool = False
    """Lay several chats into one row of `max_length` tokens, none of which sees another: less padding."""
    generate_rows: int = Field(default=64, ge=0)
    """How many rows, from the first, are answered by generation when a model is scored."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens an answer may have."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time; above, tokens are drawn, from a flatter distribution the higher it is."""
    num_beams: int = Field(default=1, ge=1)
    """Answers that are followed at once; 1 follows one."""
    answer_pattern: str | None = None
    """A regular expression whose first group is compared for exact match, at its last place in a text:
    `"#### (.+)"`; the whole text when null."""
    scores: tuple[Literal["rouge", "bleu", "chrf"], ...] = ("rouge",)
    """What generated texts are scored by, beside exact match."""
    chat: bool | None = Field(default=None, json_schema_extra={"digest": False})
    """Whether rows are chats; from the training rows when null. Then a `text` to predict on is a question."""

    @field_validator("chat_template")
    @classmethod
    def _template_from_file(cls, value: str | None) -> str | None:
        if value is None or "{" in value:
            return value
        if not (path := Path(value).expanduser()).is_file():
            raise ValueError("is neither a Jinja template nor a file that holds one")
        return path.read_text("utf-8")

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_has_a_group(cls, value: str | None) -> str | None:
        try:
            if value is not None and re.compile(value).groups < 1:
                raise ValueError("has no group, like (.+), that is compared")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value

    def read(self, values: Mapping[str, Any]) -> Row:
        return self._row(values, unanswered=not ANSWERED & {*values})

    def question(self, values: Mapping[str, Any]) -> Row:
        """A row to predict on: a chat may end on the user's turn."""
        return self._row(values, unanswered=True)

    def _row(self, values: Mapping[str, Any], unanswered: bool) -> Row:
        messages = chats.read_chat(values, self.system, unanswered)
        if messages is None and "text" not in values:
            raise ValueError(
                "has none of messages, conversations, instruction and output, prompt and completion, or text;"
                " data.columns names the columns that hold them"
            )
        if messages is None and self.chat:
            asked = {"prompt": text(values["text"], "text"), "system": values.get("system")}
            messages = chats.read_chat(asked, self.system, unanswered=True)
        if messages is None:
            said = text(values["text"], "text")
            row: Row = {"text": said, "prompt": said}
        else:
            row = {"messages": messages, "prompt": chats.transcript(chats.question(messages))}
            if messages[-1]["role"] == "assistant":
                row["completion"] = messages[-1]["content"]
        if values.get("id") is not None:
            row["id"] = str(values["id"])
        return row

    def fit(self, splits: Splits) -> Self:
        chat = "messages" in splits.train[0]
        problems = [p for name, rows in splits.named().items() for p in _unanswered(f"data.{name}", rows)]
        problems += [
            f"data.{name}: some rows are chats and some are plain text; train on one after the other"
            for name, rows in splits.named().items()
            if any(("messages" in row) != chat for row in rows)
        ]
        if problems:
            raise UserError(*problems)
        return self.with_values(chat=chat)

    def refuse_strange(self, key: str, rows: Sequence[Row]) -> None:
        if problems := _unanswered(key, rows):
            raise UserError(*problems)

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        rows = splits.train[:LOOKED_AT]
        columns = self.encode(rows, tokenizer)
        said, ends = [], self._ends(rows[0], tokenizer)
        if not ends:
            said.append(
                "no end of text is learnt: the chat template writes no special token after an answer, so answers will"
                " run on to task.max_new_tokens; give a task.chat_template that ends answers with {{ eos_token }}"
            )
        elif not any(label in ends for labels in columns[LABELS] for label in labels):
            said.append(
                f"no end of text is learnt: no row is short enough to hold the end of its answer within"
                f" {self._room(tokenizer)} tokens; raise task.max_length, or set task.cut"
            )
        if idle := sum(number == 0 for number in columns["num_targets"]):
            said.append(
                f"{idle} of {len(rows)} rows are cut before their answer begins and teach nothing;"
                " raise task.max_length, or set task.cut=question"
            )
        if self.chat and any(chats.marked(row["messages"], tokenizer, self.chat_template).rewritten for row in rows):
            said.append(
                "the chat template writes earlier turns otherwise once more follow: of such chats only the last answer"
                " is learnt"
            )
        return said

    def _ends(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens that end what is learnt of such a row; none where nothing special does."""
        if not self.chat:
            return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]  # type: ignore[list-item]
        asked = [*chats.question(row["messages"]), {"role": "assistant", "content": "yes"}]
        marked = chats.marked(asked, tokenizer, self.chat_template)
        ((ids, offsets),) = chat_tokens.tokens([marked.text], tokenizer)
        return chat_tokens.supervised(marked, ids, offsets, frozenset(tokenizer.all_special_ids))[1][-1:]

    def _room(self, tokenizer: PreTrainedTokenizerBase) -> int:
        return min(self.max_length, tokenizer.model_max_length)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        marks = [
            chats.marked(row["messages"], tokenizer, self.chat_template) if "messages" in row else None for row in rows
        ]
        texts = [row["text"] if mark is None else mark.text for row, mark in zip(rows, marks, strict=True)]
        columns: dict[str, list[Any]] = {name: [] for name in ("input_ids", LABELS, "num_targets", "cut", "row")}
        special, end = frozenset(tokenizer.all_special_ids), tokenizer.eos_token_id
        for number, (ids, offsets) in enumerate(chat_tokens.tokens(texts, tokenizer)):
            mark = marks[number]
            if mark is None:
                ids = [*ids, end] if end is not None else ids
                pieces = [(window, window) for window in chat_tokens.windows(ids, self._room(tokenizer))]
            else:
                learnt, _ = chat_tokens.supervised(mark, ids, offsets, special)
                labels = [
                    i if self.train_on == "all" or is_learnt else IGNORED
                    for i, is_learnt in zip(ids, learnt, strict=True)
                ]
                asked = chats.question(rows[number]["messages"])[-1]["content"]
                kept = chat_tokens.kept(offsets, self._room(tokenizer), self.cut, mark.text, asked)
                pieces = [([ids[i] for i in kept], [labels[i] for i in kept])]
            for piece, labels in pieces:
                columns["input_ids"].append(piece)
                columns[LABELS].append([IGNORED, *labels[1:]])  # nothing comes before the first token
                columns["num_targets"].append(sum(label != IGNORED for label in labels[1:]))
                columns["cut"].append(mark is not None and len(piece) < len(ids))
                columns["row"].append(number)
        return columns

    def collate_training(
        self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int
    ) -> dict[str, Tensor]:
        if not self.packing:
            return self.collate(columns, tokenizer, multiple)
        padding: Any = tokenizer.pad_token_id
        return packing.packed(columns, self._room(tokenizer), multiple, padding, IGNORED)

    def inputs_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs: dict[str, Any] = super().inputs_of(batch)
        if packing.POSITIONS in batch:
            inputs["use_cache"] = False
        return inputs

    def load(self, settings: models.BaseSettings, reporter: Reporter = SILENT, empty: bool = False) -> models.Base:
        base = super().load(settings, reporter, empty)
        if self.packing and not empty and not packing.keeps_apart(base.model):
            raise UserError(
                f"task.packing: a {base.model.config.model_type} model reads packed rows as one text, measured on two"
                " rows; set task.packing=false"
            )
        return base

    def _guessed(self, outputs: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of what is learnt, in fp32: shape (targets, vocabulary); what it is; and how many there are a row."""
        if packing.POSITIONS in batch and (
            getattr(outputs, "past_key_values", None) is not None
            or outputs.logits.shape[1] != batch["input_ids"].shape[1]
        ):
            raise UserError(
                "task.packing: virtual tokens stand before a row, not before each packed one; set it to false"
            )
        labels = batch[LABELS][:, 1:]
        asked = labels != IGNORED
        return self.logits(outputs, batch)[:, :-1][asked].float(), labels[asked], asked.sum(1)

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        logits, targets, _ = self._guessed(outputs, batch)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        import torch

        logits, targets, numbers = self._guessed(outputs, batch)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").split(numbers.tolist())
        return [
            {"nll": part.sum().item(), "num_targets": number}
            for part, number in zip(losses, numbers.tolist(), strict=True)
        ]

    def join(self, row: Row, encoded: Sequence[Mapping[str, Any]], said: Sequence[Prediction]) -> Prediction:
        del row, encoded
        return {name: sum(part[name] for part in said) for name in said[0]}

    def prompts(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids up to where each row's answer begins."""
        made = []
        for row in rows:
            messages = chats.question(row["messages"]) if "messages" in row else []
            said = chats.rendered(messages, tokenizer, self.chat_template, ask=True) if messages else row["text"]
            ((ids, offsets),) = chat_tokens.tokens([said], tokenizer)
            if messages and self.cut == "question":
                asked = messages[-1]["content"]
                ids = [ids[i] for i in chat_tokens.kept(offsets, self._room(tokenizer), self.cut, said, asked)]
            made.append(ids)
        return made

    def generate(
        self, model: nn.Module, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, Prediction]]:
        from pefttools import generation

        if not rows:
            return
        decoding = generation.Decoding(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            temperature=self.temperature,
            stop_ids=tuple(self._ends(rows[0], tokenizer)),
        )
        for index, said in generation.generate(model, self.prompts(rows, tokenizer), tokenizer, decoding):
            yield index, {"prediction": said.text, "finish": said.finish}

    def num_generated(self, number: int) -> int:
        return min(number, self.generate_rows) if self.chat else 0  # a text that is whole has nothing to add

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import combined

        values: dict[str, Any] = {}
        if scored := [p for p in predictions if "nll" in p]:
            mean = sum(p["nll"] for p in scored) / max(1, sum(p["num_targets"] for p in scored))
            values["perplexity"] = math.exp(min(mean, 700.0))  # e^710 is no number
        pairs = [(p, r) for p, r in zip(predictions, references, strict=True) if "prediction" in p and r]
        if not pairs:
            return values
        texts, wanted = [p["prediction"] for p, _ in pairs], [r for _, r in pairs]
        if self.scores:
            found = combined(*self.scores).compute(predictions=texts, references=wanted) or {}
            values |= {name: value for name, value in found.items() if name not in ("rouge1", "rouge2")}
        answers = {
            "predictions": [self._answer(said) for said in texts],
            "references": [self._answer(said) or said for said in wanted],
        }
        values |= combined("exact_match").compute(**answers) or {}
        return {**values, "stopped": sum(p["finish"] == "stop" for p, _ in pairs) / len(pairs)}

    def _answer(self, said: str) -> str:
        """What of a text is compared; nothing where the pattern is not in it."""
        if self.answer_pattern is None:
            return said
        *_, last = [None, *re.finditer(self.answer_pattern, said)]
        return (last[1] or "").strip() if last else ""

    def reference(self, row: Row) -> Any:
        return row.get("completion", row.get("text"))

    def shown(self, encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        """An encoded row as text, what is learnt of it between ⟦ and ⟧."""
        return chat_tokens.shown(encoded["input_ids"], [label != IGNORED for label in encoded[LABELS]], tokenizer)


def _unanswered(key: str, rows: Sequence[Row]) -> list[str]:
    """The problem, if there is one."""
    if not (missing := sum("messages" in row and "completion" not in row for row in rows)):
        return []
    return [
        f"{key}: {missing} of {len(rows)} rows have no answer to learn from;"
        " data.columns.output or data.columns.completion names the column that holds it"
    ]
