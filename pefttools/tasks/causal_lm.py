"""causal_lm: a decoder is fine-tuned on instructions, on chats of many turns, or pretrained further on plain text.

A row is a chat in one of these forms, recognised by its columns (`data.columns` maps other names), or a `text`:

- `instruction`, `input` (may be empty) and `output`, as in Alpaca
- `conversations`, a list of `{from: human | gpt | system, value}`, as in ShareGPT
- `messages`, a list of `{role: user | assistant | system, content}`
- `prompt` and `completion`: `data.columns: {prompt: question, completion: answer}`
- `text` alone: continued pretraining on every token; long texts are cut into windows

Chats are formatted by the base model's chat template, or by `chat_template`. The loss covers the assistant's answers
only, each with the token that ends it. Metrics: perplexity of the tokens under the loss, and for the first
`generate_rows` rows, whose answers are generated, exact match, ROUGE (BLEU and chrF on request) and `stopped`, the
share of generated answers that end with an end token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from pefttools.bases import loading
from pefttools.data import chat as chats
from pefttools.data import chat_template, chat_tokens, packing
from pefttools.data.chat_parts import Part, parts_of
from pefttools.data.splitting import Row, Splits
from pefttools.errors import UserError
from pefttools.metrics import modules_of, text_metrics
from pefttools.reporter import SILENT, Reporter
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks import _vocabulary
from pefttools.tasks._explained import Explained, log_odds
from pefttools.tasks._vocabulary import PLACES
from pefttools.tasks.base import IGNORED, LABELS, Columns, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks._generation import Decoding

NUM_CHECKED = 500
"""Training rows that are checked for warnings."""


class CausalLM(Task):
    """Cross-entropy of every target token, given the tokens before it."""

    fields: ClassVar[Mapping[str, bool]] = dict.fromkeys(chats.FIELDS, False)
    inputs: ClassVar[tuple[str, ...]] = ("prompt",)
    targets: ClassVar[tuple[str, ...]] = ("output", "completion")
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"messages": [{"role": "user", "content": "red apple"}, {"role": "assistant", "content": "apple red"}]},
        {"prompt": "word1 word2", "completion": "word2 word1"},
        {"instruction": "word3", "input": "saw", "output": "saw word3"},
        {"conversations": [{"from": "human", "value": "pear"}, {"from": "gpt", "value": "pear plum"}]},
    )
    sample_settings: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 16}
    of_data: ClassVar[tuple[str, ...]] = ("max_length", "system", "generate_rows", "max_new_tokens", "answer_pattern")
    primary: ClassVar[str] = "perplexity"
    score_range: ClassVar[tuple[float, float] | None] = None
    lower_is_better: ClassVar[bool] = True
    compared_by_logarithm: ClassVar[bool] = True
    pipeline_tag: ClassVar[str | None] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_type: ClassVar[str | None] = "CAUSAL_LM"
    own_head: ClassVar[bool] = False
    texts_are_data: ClassVar[bool] = False
    model_inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", packing.POSITIONS)
    generates: ClassVar[bool] = True
    defers_output_layer: ClassVar[bool] = True

    max_length: int = Field(default=512, ge=4)
    """Maximum tokens of a chat, or of a window of plain text; longer chats are truncated, and their number is
    reported."""
    cut: chat_tokens.Cut = "end"
    """What to remove from a chat that is too long: its end, its start, or the end of the last question (such as the
    rest of an article to summarise), which leaves the answer whole."""
    chat_template: str | None = None
    """A file with a Jinja template, or the template itself; when null, the base model's own, or a simple built-in one
    if it has none."""
    system: str | None = None
    """The system message for chats without one."""
    train_on: Literal["answers", "all"] = "answers"
    """Which tokens of a chat count in the loss."""
    packing: bool = False
    """Pack several chats into one row of `max_length` tokens, for less padding; no chat attends to another."""
    generate_rows: int = Field(default=64, ge=0)
    """How many rows, from the first, to generate answers for in an evaluation."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Maximum tokens of a generated answer."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token each time; above 0, tokens are sampled, and higher values flatten the
    distribution."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of the beam search; 1 is greedy decoding."""
    answer_pattern: str | None = None
    """A regular expression, such as `"#### (.+)"`; exact match compares the first group of its last match in a text.
    The whole text is compared when null."""
    scores: tuple[str, ...] = ("rouge",)
    """Metrics of generated texts, besides exact match: rouge, bleu, chrf, or your own text metric."""
    chat: bool | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """Whether rows are chats; from the training rows when null. If they are, `predict` treats a `text` as a
    question."""
    parts: tuple[Part, ...] = Field(default=(), json_schema_extra=NOT_IN_DIGEST)
    """What chats contain besides texts (tools, calls, reasoning …); from the training rows. An exported chat template
    supports each of these."""

    @field_validator("chat_template")
    @classmethod
    def _template_from_file(cls, value: str | None) -> str | None:
        return None if value is None else chat_template.read_template(value)

    @field_validator("scores")
    @classmethod
    def _known_scores(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = text_metrics.names()
        if problems := [text_metrics.unknown_name(name, known) for name in value if name not in known]:
            raise ValueError("; ".join(problems))
        return value

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_has_a_group(cls, value: str | None) -> str | None:
        try:
            if value is not None and re.compile(value).groups < 1:
                raise ValueError("has no group to compare, such as (.+)")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return value

    @property
    def needed_modules(self) -> Mapping[str, str]:
        if not self.generate_rows or self.chat is False:
            return {}
        return dict.fromkeys(modules_of(*self.scores), f"scores=[{','.join(self.scores)}]")

    def read(self, values: Mapping[str, Any]) -> Row:
        unanswered = not chats.ANSWERED & {*values}
        return chats.read_row(values, self.system, bool(self.chat), unanswered)

    def read_unlabeled(self, values: Mapping[str, Any]) -> Row:
        """A row to predict on; a chat may end with the user's turn."""
        return chats.read_row(values, self.system, bool(self.chat), unanswered=True, predicting=True)

    def fit(self, splits: Splits) -> Self:
        problems = [p for name, rows in splits.named().items() for p in chats.without_answer(f"data.{name}", rows)]
        if problems := [*problems, *chats.mixed(splits)]:
            raise UserError(*problems)
        for name in self.scores:
            text_metrics.get(name)  # raises for a plug-in that is not a text metric; only its import shows that
        parts = {part for row in splits.train for part in parts_of(row.get("messages", ()), row.get("tools"))}
        return self.with_values(chat=chats.is_chat(splits), parts=tuple(sorted(parts)))

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        if problems := chats.without_answer(key, rows):
            raise UserError(*problems)

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        rows = splits.train[:NUM_CHECKED]
        how = self._writing(tokenizer)
        pieces = list(chat_tokens.pieces(rows, tokenizer, how))
        warnings = chat_tokens.training_warnings(pieces, self._ends(tokenizer), how.room)
        return warnings + (chat_template.remarks(rows, tokenizer, self.chat_template, self.parts) if self.chat else [])

    def generation_settings(self, tokenizer: PreTrainedTokenizerBase) -> chat_template.GenerationSettings:
        if not self.chat:
            return super().generation_settings(tokenizer)
        written = chat_template.standalone(tokenizer, self.chat_template, self.system, self.parts)
        return chat_template.GenerationSettings(written, tuple(self._ends(tokenizer)))

    def _ends(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens that end a target; empty if there is no end token."""
        if not self.chat:
            return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]  # type: ignore[list-item]
        return chat_tokens.ends(tokenizer, self.chat_template)

    def _writing(self, tokenizer: PreTrainedTokenizerBase) -> chat_tokens.Writing:
        room = min(self.max_length, tokenizer.model_max_length)
        return chat_tokens.Writing(self.chat_template, room, self.cut, learn_all=self.train_on == "all")

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        pieces = list(chat_tokens.pieces(rows, tokenizer, self._writing(tokenizer)))
        return {
            "input_ids": [piece.ids for piece in pieces],
            LABELS: [[i if one else IGNORED for i, one in zip(p.ids, p.learnt, strict=True)] for p in pieces],
            "num_targets": [sum(piece.learnt) for piece in pieces],
            "cut": [piece.cut for piece in pieces],
            "row": [piece.row for piece in pieces],
        }

    def collate(self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int) -> dict[str, Tensor]:
        batch = super().collate(columns, tokenizer, multiple)
        if LABELS in batch:
            batch[PLACES] = _vocabulary.places(columns[LABELS], batch[LABELS].shape[1], before=1)
        return batch

    def collate_training(
        self, columns: Columns, tokenizer: PreTrainedTokenizerBase, multiple: int
    ) -> dict[str, Tensor]:
        if not self.packing:
            return self.collate(columns, tokenizer, multiple)
        padding: Any = tokenizer.pad_token_id
        batch = packing.packed(columns, self._writing(tokenizer).room, multiple, padding, IGNORED)
        return {**batch, PLACES: _vocabulary.places(batch[LABELS].tolist(), batch[LABELS].shape[1], before=1)}

    @property
    def draws_inputs(self) -> bool:
        return self.packing

    def inputs_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs: dict[str, Any] = super().inputs_of(batch)
        if packing.POSITIONS in batch:
            inputs["use_cache"] = False
        return inputs

    def load(self, settings: loading.BaseSettings, reporter: Reporter = SILENT, empty: bool = False) -> loading.Base:
        base = super().load(settings, reporter, empty)
        if self.packing and not empty:
            packing.refuse_mixed_attention(base.model)
        return base

    def _targets(self, outputs: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The targets' states as in `_vocabulary`, and their token ids."""
        packing.refuse_virtual(outputs, batch)
        return self.logits(outputs, batch).flatten(0, 1)[batch[PLACES]], self.target_classes(batch)

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return _vocabulary.logits(outputs, self._targets(outputs, batch)[0])

    def target_classes(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch[LABELS].flatten()[batch[PLACES] + 1]

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return _vocabulary.loss(outputs, *self._targets(outputs, batch))

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        losses, _ = _vocabulary.scored(outputs, *self._targets(outputs, batch))
        numbers = (batch[LABELS][:, 1:] != IGNORED).sum(1).tolist()
        return [
            {"nll": part.sum().item(), "num_targets": number}
            for part, number in zip(losses.split(numbers), numbers, strict=True)
        ]

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        del row, encoded
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def generation_input(self, row: Row) -> dict[str, Any]:
        if "messages" not in row:
            return {"text": row["text"]}
        return {"messages": chats.question(row["messages"]), "tools": row.get("tools")}

    def prompts(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of each row up to the start of its answer."""
        return [chat_tokens.prompt(row, tokenizer, self._writing(tokenizer)) for row in rows]

    def truncated(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
        room = tokenizer.model_max_length - self.max_new_tokens
        return [len(ids) > room for ids in self.prompts(rows, tokenizer)]

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        """The next token, by its id."""
        del row, encoded
        token = int(self.logits(outputs, batch)[0, -1].argmax()) if of is None else int(of)
        return [
            Explained(str(token), 0, lambda outputs, batch: log_odds(self.logits(outputs, batch)[:, -1].float(), token))
        ]

    def decoding(self, tokenizer: PreTrainedTokenizerBase) -> Decoding:
        from pefttools.tasks._generation import Decoding

        return Decoding(self.max_new_tokens, self.num_beams, self.temperature, stop_ids=tuple(self._ends(tokenizer)))

    def generate(
        self, model: nn.Module, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[tuple[int, Prediction]]:
        from pefttools.tasks import _generation

        if not rows:
            return
        decoding = self.decoding(tokenizer)
        before, after = chat_tokens.around(tokenizer, self.chat_template) if self.chat else ("", "")
        for index, generated in _generation.generate(model, self.prompts(rows, tokenizer), tokenizer, decoding):
            answer = generated.text.removeprefix(before)
            yield index, {"prediction": answer.removesuffix(after), "finish": generated.finish}

    def num_generated(self, number: int) -> int:
        return min(number, self.generate_rows) if self.chat else 0  # plain texts have no answer to generate

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import _language, combined

        values, answered = _language.scored_and_answered(predictions, references)
        pairs = [(p, r) for p, r in answered if r]
        if not pairs:
            return values
        texts, expected = [p["prediction"].strip() for p, _ in pairs], [r.strip() for _, r in pairs]
        if self.scores:
            found = combined(*self.scores).compute(predictions=texts, references=expected) or {}
            values |= {name: value for name, value in found.items() if name not in ("rouge1", "rouge2")}
        answers = [_language.matched(text, self.answer_pattern) for text in texts]
        expected_answers = [_language.matched(text, self.answer_pattern) or text for text in expected]
        values |= combined("exact_match").compute(predictions=answers, references=expected_answers) or {}
        return {**values, "stopped": _language.stopped(pairs)}

    def reference(self, row: Row) -> Any:
        return row.get("completion", row.get("text"))

    def shown(self, encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        """An encoded row as text, with the target tokens between ⟦ and ⟧."""
        return chat_tokens.shown(encoded["input_ids"], [label != IGNORED for label in encoded[LABELS]], tokenizer)
