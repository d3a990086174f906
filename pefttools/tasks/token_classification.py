"""Token classification: predict a tag for every word, for entities in BIO, IOB1, BMES or BILOU tags, or plain tags.

A file has columns `tokens` and `tags`: lists, or strings that are split at white space. A CoNLL file has both, and so
do two parallel files of lines: `{source: seq.in, parallel_files: {tags: seq.out}}`. A row to predict on may be a plain
`text`. Whatever the scheme of the file, the model learns and predicts BIO. A word's label belongs to its first
sub-word. Words that are truncated, or that the tokenizer drops, are predicted as O. Metrics: precision, recall and F1
of whole entities as in seqeval, overall, by type and by tag; for plain tags, accuracy and macro-F1.

A prediction has the BIO tags and `spans`: type, text, score (the mean probability of its tags), and start and end in
characters of the row's `text`, or, without one, of its tokens joined by spaces (Chinese and Japanese tokens without
spaces).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from pefttools.data import classes, tags, words, written_lists
from pefttools.data.alignment import NOWHERE, encode_words
from pefttools.data.fields import listed
from pefttools.data.splitting import LeftOut, Row, Splits
from pefttools.data.units import Piece, Units
from pefttools.errors import UserError, unknown
from pefttools.metrics import modules_of
from pefttools.settings import NOT_IN_DIGEST
from pefttools.tasks._explained import Explained, log_odds
from pefttools.tasks.base import IGNORED, Prediction, Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class TokenClassification(Task):
    """One tag per word; the loss is cross-entropy over words."""

    fields: ClassVar[Mapping[str, bool]] = {"tokens": False, "text": False, "tags": True, "id": False}
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    targets: ClassVar[tuple[str, ...]] = ("tags",)
    has_editable_words: ClassVar[bool] = True
    samples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"tokens": ["apple", "word1", "word2"], "tags": ["B-FRUIT", "O", "O"]},
        {"tokens": ["word3", "red", "hammer"], "tags": ["O", "B-TOOL", "I-TOOL"]},
        {"tokens": "word4 pear", "tags": "O B-FRUIT"},
        {"tokens": "drill", "tags": "B-TOOL"},
    )
    of_data: ClassVar[tuple[str, ...]] = ("max_length", "scheme", "types")
    only_with: ClassVar[Any] = dict.fromkeys(
        ("invalid_tags", "types"), ("tags with prefixes (task.scheme is none)", lambda task: task.scheme != "none")
    )
    primary: ClassVar[str] = "f1"
    pipeline_tag: ClassVar[str | None] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    peft_type: ClassVar[str | None] = "TOKEN_CLS"
    has_class_head: ClassVar[bool] = True

    scheme: Literal["auto", "bio", "iob1", "bmes", "bilou", "none"] = "auto"
    """The scheme of the file's tags; `none` means plain tags without entities; `auto` detects it from the training
    rows."""
    invalid_tags: Literal["repair", "refuse"] = "repair"
    """What to do with tags that break the scheme: start a new entity there and count them, or reject the data."""
    types: tuple[str, ...] = ()
    """Entity types to learn; other types become O. All types of the training rows when empty."""
    sub_word: Literal["first", "last"] = "first"
    """Which sub-word gets its word's tag; `last` suits decoders, where the first sub-word does not see the rest of the
    word."""
    read_as: tags.Scheme | None = Field(default=None, json_schema_extra=NOT_IN_DIGEST)
    """The scheme that `auto` detected; from the training rows when null."""
    labels: tuple[str, ...] = Field(default=(), json_schema_extra=NOT_IN_DIGEST)
    """The tags in the order of the model's outputs; from the training rows when empty."""

    @property
    def needed_modules(self) -> Mapping[str, str]:
        return dict.fromkeys(modules_of(*_metrics(self.read_as or self.scheme)), "")

    @classmethod
    def example(cls) -> Self:
        return cls(read_as="bio", labels=("O", "B-PER", "I-PER"))

    def read(self, values: Mapping[str, Any]) -> Row:
        row: Row = {}
        text = values.get("text")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"has a text that is not a string: {text!r}")
        if (tokens := values.get("tokens")) is not None:
            row["tokens"] = _listed(tokens, "tokens")
        elif text is not None:
            row["tokens"] = _listed(text.split() if "tags" in values else words.split(text), "text")
        else:
            raise ValueError("has no tokens")
        if "tags" in values:
            row["tags"] = tags.with_prefix_first(_listed(values["tags"], "tags"))
            if mark := tags.joined_by(row["tags"]):
                raise ValueError(
                    f"has tags that are separated by {mark!r}, {row['tags'][0][:80]!r}; write tokens and tags as"
                    " lists, or separate them by spaces"
                )
            if len(row["tags"]) != len(row["tokens"]):
                raise ValueError(f"has {len(row['tokens'])} tokens and {len(row['tags'])} tags")
            if "" in row["tags"]:
                raise ValueError(f"has an empty tag for {row['tokens'][row['tags'].index('')]!r}")
        if not row["tokens"]:
            raise LeftOut("without a word")
        if text is not None and words.places(text, row["tokens"]):
            row["text"] = text
        if values.get("id") is not None:
            row["id"] = str(values["id"])
        return row

    def editable_words(self, row: Row) -> list[Units]:
        return [tags.units(row["tokens"], self._bio(row))]

    def with_edits(self, row: Row, edits: Sequence[Sequence[Piece]]) -> Row:
        tokens, bio = tags.edited(row["tokens"], self._bio(row), edits[0])
        return {**{name: value for name, value in row.items() if name != "text"}, "tokens": tokens, "tags": bio}

    def fit(self, splits: Splits) -> Self:
        known = [row["tags"] for row in (*splits.train, *splits.spare)]
        try:
            read_as = (self.read_as or tags.detect(known)) if self.scheme == "auto" else self.scheme
        except ValueError as error:
            raise UserError(f"data.train: {error}; set task.scheme") from error
        fitted = self.with_values(read_as=read_as)
        normal = [fitted.reference({"tags": row}) for row in known]
        fitted = fitted.with_values(labels=self.labels or tags.labels(normal, read_as))
        problems = self._mistaken_types(known, read_as)
        for name, rows in splits.named().items():
            problems += fitted._problems(f"data.{name}", rows)
        seen = sorted({tag for row in normal for tag in row})
        if len(seen) < 2 and not problems:
            problems.append(f"data.train: every word has the tag {seen[0]!r}; there is nothing to learn")
        if problems:
            raise UserError(*problems)
        return fitted

    def with_classes(self, names: Sequence[str]) -> Self:
        read = [name for name in names if name == tags.OUTSIDE or tags.parts(name)[0] in ("B", "I")]
        usable = names if self.read_as == "none" else read
        return self.with_values(labels=tuple(name for name in usable if not self.types or name in self.labels))

    def _mistaken_types(self, known: Sequence[Sequence[str]], read_as: tags.Scheme) -> list[str]:
        if self.types and read_as == "none":
            return ["task.types: the tags have no prefixes (scheme none), so there are no entity types; remove it"]
        types = {tags.parts(tag)[1] for row in known for tag in row} - {""}
        return [
            f"task.types: {unknown('entity type', name, sorted(types))}" for name in self.types if name not in types
        ]

    def _problems(self, key: str, rows: Sequence[Row]) -> list[str]:
        """The problems with the tags of some rows, for the fitted task."""
        assert self.read_as is not None
        if odd := tags.outside_scheme((tag for row in rows for tag in row["tags"]), self.read_as):
            letters = ", ".join(tags.PREFIXES[self.read_as])
            return [
                f"{key}: tags outside the scheme {self.read_as} (O, or one of {letters}, a hyphen and a type):"
                f" {listed(odd)}; correct them or set task.scheme"
            ]
        problems = []
        if new := {tag for row in rows for tag in self.reference(row)} - set(self.labels):
            if plain := self.read_as == "none":
                lacking, known = sorted(new), sorted(self.labels)
            else:
                lacking, known = (sorted({tags.parts(tag)[1] for tag in some} - {""}) for some in (new, self.labels))
            problems.append(
                f"{key}: {'tags' if plain else 'entity types'} that the training rows lack: {listed(lacking)}."
                f" They have {listed(known)}{'' if plain else '; list the types to learn in task.types'}"
            )
        if self.invalid_tags == "refuse" and (message := self._breaches(key, rows)):
            problems.append(f"{message}; correct them or set task.invalid_tags=repair")
        return problems

    def _breaches(self, key: str, rows: Sequence[Row]) -> str:
        """A message with the number of tags that break the scheme, and an example; empty if none do."""
        assert self.read_as is not None
        found = [(row, breach) for row in rows for breach in tags.to_bio(row["tags"], self.read_as)[1]]
        if not found:
            return ""
        row, breach = found[0]
        near = " ".join(row["tokens"][max(0, breach.word - 4) : breach.word + 4])
        number = sum(len(row["tags"]) for row in rows)
        return (
            f"{key}: {len(found)} of {number} tags break the scheme {self.read_as}, for example"
            f" {breach.why} (at {row['tokens'][breach.word]!r} in {near!r})"
        )

    def remarks(self, splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        del tokenizer
        if self.read_as == "none" and (odd := tags.almost_prefixed(self.labels)):
            return [
                f"tags such as {odd[0]!r} look like entities in another notation, but are treated as plain tags, so no"
                " entities are scored; write them like B-PER, I-PER and O"
            ]
        if self.read_as == "none" and all(tag.removeprefix("-").isdigit() for tag in self.labels):
            return [
                f"the tags are the numbers {listed(self.labels)}, so no entities are scored; write the tags' names"
                " (B-PER, I-PER, O) if they are entities"
            ]
        messages = [self._breaches(f"data.{name}", rows) for name, rows in splits.named().items()]
        return [f"{message}; an entity ends or begins there" for message in messages if message]

    def notes(self, splits: Splits) -> list[str]:
        row = splits.train[0]
        pairs = list(zip(row["tokens"], row["tags"], strict=True))
        shown = " ".join(f"{token}/{tag}" for token, tag in pairs[:6]) + (" …" if len(pairs) > 6 else "")
        scheme = "plain, without entities" if self.read_as == "none" else f"of the scheme {self.read_as}"
        return [f"tags are {scheme}; the first sentence as token/tag: {shown}"]

    def check_scorable(self, key: str, rows: Sequence[Row]) -> None:
        if problems := self._problems(key, rows):
            raise UserError(*problems)

    def config_values(self) -> dict[str, Any]:
        return classes.config_values(self.labels)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        columns = encode_words([row["tokens"] for row in rows], tokenizer, self.max_length, self.sub_word == "last")
        if rows and all("tags" in row for row in rows):
            ids = {name: i for i, name in enumerate(self.labels)}
            columns["labels"] = [[IGNORED] * len(tokens) for tokens in columns["input_ids"]]
            for row, labels, places in zip(rows, columns["labels"], columns["places"], strict=True):
                for tag, place in zip(self.reference(row), places, strict=True):
                    if place != NOWHERE:
                        labels[place] = ids[tag]
        return {**columns, "num_targets": [sum(i != NOWHERE for i in places) for places in columns["places"]]}

    def target_logits(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return self.logits(outputs, batch)[batch["labels"] != IGNORED].float()

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        logits = self.logits(outputs, batch).float()
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def predict(self, outputs: Any, batch: Mapping[str, Tensor]) -> list[Prediction]:
        """The best label of every sub-word, and its probability; `aggregate` selects those of words."""
        best = self.logits(outputs, batch).float().softmax(-1).max(-1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"labels": ids, "probabilities": values} for ids, values in rows]

    def aggregate(self, row: Row, encoded: Sequence[Mapping[str, Any]], parts: Sequence[Prediction]) -> Prediction:
        places = encoded[0]["places"]
        found = [self.labels[parts[0]["labels"][i]] if i != NOWHERE else self._unseen for i in places]
        if self.read_as == "none":
            return {"prediction": found}
        found = tags.to_bio(found, "bio")[0]
        scores = [parts[0]["probabilities"][i] if i != NOWHERE else 0.0 for i in places]
        text, offsets = words.join(row["tokens"])
        if "text" in row:
            text, offsets = row["text"], words.places(row["text"], row["tokens"]) or offsets
        spans = []
        for kind, first, end in tags.spans(found):
            start, stop = offsets[first][0], offsets[end - 1][1]
            score = sum(scores[first:end]) / (end - first)
            spans.append({"type": kind, "start": start, "end": stop, "text": text[start:stop], "score": score})
        return {"prediction": found, "spans": spans}

    @property
    def _unseen(self) -> str:
        """The prediction for a word that the model does not see: O; for plain tags, the most frequent tag."""
        return tags.OUTSIDE if tags.OUTSIDE in self.labels else self.labels[0]

    def shown(self, encoded: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
        pieces = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        labels = encoded.get("labels") or [IGNORED] * len(pieces)
        pairs = zip(pieces, labels, strict=True)
        return " ".join(piece if label == IGNORED else f"{piece}/{self.labels[label]}" for piece, label in pairs)

    def explained(
        self, row: Row, encoded: Sequence[Mapping[str, Any]], outputs: Any, batch: Mapping[str, Tensor], of: str | None
    ) -> list[Explained]:
        """The tag of the first word of each entity, or of each word in `of`."""
        if of is not None and of not in row["tokens"]:
            raise UserError(f"--of: {unknown('word', of, row['tokens'])}")
        parts = self.predict(outputs, batch)
        spans = tags.spans(self.aggregate(row, encoded, parts)["prediction"]) if self.read_as != "none" else []
        chosen = [(first, kind) for kind, first, _ in spans]
        if of is not None:
            chosen = [(i, "") for i, word in enumerate(row["tokens"]) if word == of]
        elif self.read_as == "none":
            chosen = [(i, "") for i in range(len(row["tokens"]))]
        found = []
        for word, kind in chosen:
            if (place := encoded[0]["places"][word]) == NOWHERE:
                continue
            tag = parts[0]["labels"][place]
            found.append(Explained(f"{kind or self.labels[tag]}: {row['tokens'][word]}", 0, self._score(place, tag)))
        return found

    def _score(self, place: int, tag: int) -> Callable[[Any, Mapping[str, Tensor]], Tensor]:
        """The log-odds of the tag of the token at a place."""
        return lambda outputs, batch: log_odds(self.logits(outputs, batch)[:, place].float(), tag)

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> dict[str, Any]:
        from pefttools.metrics import combined

        names = _metrics(self.read_as)
        predicted = [p["prediction"] for p in predictions]
        values = combined(*names).compute(predictions=predicted, references=list(references))
        assert values is not None
        tag_f1 = values.pop("tag_f1")
        return {"f1": tag_f1, **values} if self.read_as == "none" else values

    def majority_baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
        tag = tags.OUTSIDE
        if self.read_as == "none":
            tag = classes.most_frequent(tag for row in train for tag in self.reference(row))
        return self.scores_of([[tag] * len(row["tags"]) for row in rows], rows)

    def reference(self, row: Row) -> Any:
        return tags.without(self._bio(row), self.types) if "tags" in row else None

    def _bio(self, row: Row) -> list[str]:
        """A row's tags in BIO, of all types."""
        assert self.read_as is not None
        return tags.to_bio(row["tags"], self.read_as)[0]


def _metrics(scheme: str | None) -> tuple[str, ...]:
    return ("per_tag",) if scheme == "none" else ("entities", "per_tag")


def _listed(value: Any, name: str) -> list[str]:
    """The list of words in a list or a text; raises ValueError if there is none."""
    if value is None:
        raise ValueError(f"has no {name}")
    if isinstance(value, str):
        written = written_lists.parsed(value)
        value = written if isinstance(written, list) else value.split()
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (str, int)) for v in value):
        raise ValueError(f"has {name} that are not a list of words: {str(value)[:80]}")
    found = [str(v) for v in value]
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a character (a lone surrogate) in its {name}") from error
    return found
