"""Tokenise rows once: store them as Arrow files in the cache, keyed by content, tokenizer and settings, and memory-map
them."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pefttools import atomic
from pefttools.data import arrow_parts
from pefttools.data.rows import Fields, Row, rows_digest
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Finding, Reporter
from pefttools.sources.cache import entry, stored

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


CHUNK = 1000
MUCH_UNKNOWN = 0.01
"""Share of unknown tokens from which on to warn."""
MUCH_CUT = 0.01
"""Share of truncated rows from which on they matter; a few very long rows may well be cut."""
COMPARED = 64
"""Number of rows to check for identical tokens."""
SPELLED = "spells_special_tokens"
"""The key of a training row whose texts contain special tokens, such as `[MASK]`, that are not plain text."""


class Encoder(Fields, Protocol):
    """The part of a task that turns rows into tokens."""

    @property
    def max_length(self) -> int: ...
    @property
    def truncation(self) -> str: ...
    def as_dict(self) -> dict[str, Any]: ...
    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]: ...
    def encode_training(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]: ...


class HasTokenizer(Protocol):
    """The part of a base that turns rows into tokens."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def source(self) -> str: ...
    @property
    def sha256(self) -> str: ...


def encode(
    rows: Sequence[Row],
    task: Encoder,
    base: HasTokenizer,
    title: str,
    reporter: Reporter = SILENT,
    training: bool = False,
) -> Dataset:
    """The rows as the task encodes them, memory-mapped from the cache, with at least `input_ids`, `length` and `cut`
    per row.

    Raises:
        UserError: rows are too long and `task.truncation` is `refuse`; or truncation leaves no targets.
    """
    limit = min(task.max_length, base.tokenizer.model_max_length)  # virtual tokens lower model_max_length
    tokenizer: Any = base.tokenizer
    tokenizer_state = [len(tokenizer), tokenizer.model_input_names, tokenizer.split_special_tokens]
    inputs = [rows_digest(rows), task.as_dict(), base.sha256, tokenizer_state, limit, training]
    folder = entry("tokenised", inputs, code_files(task))

    def create() -> None:
        with atomic.new_folder(folder) as part, arrow_parts.writer(part) as writer:
            for columns in _chunks(rows, task, base, title, reporter, training):
                writer.write(columns)

    encoded = arrow_parts.read(stored(folder, create, "tokenised rows", reporter))
    if cut := sum(encoded["cut"]):
        message = f"{cut} of {len(rows)} {title} rows are longer than {limit} tokens"
        if task.truncation == "refuse":
            raise UserError(f"data.{title}: {message}; raise task.max_length, or set task.truncation=cut")
        longer = min(2 * limit, base.tokenizer.model_max_length)
        reporter.warn(
            Finding(
                "truncated rows",
                f"{message}; they were truncated",
                f"{cut / len(rows):.1%} of the rows lose text",
                f"pefttools train RECIPE {f'task.max_length={longer}' if longer > limit else 'base=OTHER_BASE'}",
                is_fault=cut >= MUCH_CUT * len(rows),
            )
        )
    if rows and not sum(encoded["num_targets"]):
        raise UserError(
            f"data.{title}: none of its {len(rows)} rows has a target within the first {limit} tokens;"
            " raise task.max_length, or run `pefttools show RECIPE --sample 3` to see the truncated rows"
        )
    refuse_identical_tokens(encoded, rows, task, base, title)
    warn_of_unknown_tokens(encoded, base, title, reporter)
    return encoded


def encode_once(
    rows: Sequence[Row],
    task: Encoder,
    base: HasTokenizer,
    title: str,
    reporter: Reporter = SILENT,
    training: bool = False,
) -> Dataset:
    """The rows as the task encodes them, in memory."""
    from datasets import Dataset, concatenate_datasets

    return concatenate_datasets([
        Dataset.from_dict(columns) for columns in _chunks(rows, task, base, title, reporter, training)
    ])  # fmt: skip


def _chunks(
    rows: Sequence[Row], task: Encoder, base: HasTokenizer, title: str, reporter: Reporter, training: bool
) -> Iterator[dict[str, list[Any]]]:
    """Yield the encoded columns of `CHUNK` rows after another."""
    with reporter.bar(f"tokenising {title}", len(rows), "rows") as bar:
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            yield columns_of(part, task, base.tokenizer, training, start)
            bar.advance(len(part))


class Encoded:
    """Encoded rows in memory with the interface of `Dataset`: a column by its name, all columns of rows by indices."""

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns = columns

    def __getitem__(self, key: str | Sequence[int]) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return {name: [values[i] for i in key] for name, values in self.columns.items()}


def columns_of(
    rows: Sequence[Row], task: Encoder, tokenizer: PreTrainedTokenizerBase, training: bool = False, start: int = 0
) -> dict[str, list[Any]]:
    """The encoded columns of some rows with `length` and `row`, the index of the source row counted from `start`."""
    if any(SPELLED in row for row in rows):
        return _with_special_tokens(rows, task, tokenizer, training, start)
    columns = (task.encode_training if training else task.encode)(rows, tokenizer)
    ids = columns["input_ids"]
    columns.setdefault("length", [len(row) for row in ids])
    columns["row"] = [start + i for i in columns.get("row", range(len(ids)))]
    return columns


def _with_special_tokens(
    rows: Sequence[Row], task: Encoder, tokenizer: PreTrainedTokenizerBase, training: bool, start: int
) -> dict[str, list[Any]]:
    """Like `columns_of`; in rows with `SPELLED`, the spelling of a special token is that token."""
    parts: list[dict[str, list[Any]]] = []
    splits: Any = tokenizer.split_special_tokens
    for is_spelled, group in itertools.groupby(rows, lambda row: SPELLED in row):
        some = [{name: value for name, value in row.items() if name != SPELLED} for row in group]
        try:
            tokenizer.split_special_tokens = splits and not is_spelled
            parts.append(columns_of(some, task, tokenizer, training, start))
        finally:
            tokenizer.split_special_tokens = splits
        start += len(some)
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def cut_rows(columns: Mapping[str, Sequence[Any]], number: int) -> list[bool]:
    """Whether each of `number` rows lost text to truncation, from the columns that a task encoded."""
    lost = {i for i, cut in zip(columns.get("row", range(number)), columns["cut"], strict=True) if cut}
    return [i in lost for i in range(number)]


def refuse_identical_tokens(
    encoded: Dataset, rows: Sequence[Row], task: Encoder, base: HasTokenizer, title: str
) -> None:
    """Raises UserError if different texts become the same tokens, which happens if transformers loads the wrong
    tokenizer class.

    transformers chooses some tokenizer classes by the model type, and then ignores most of `tokenizer.json`.
    """
    first: Any = encoded[:COMPARED]
    if any(first["cut"]) or any(ids != first["input_ids"][0] for ids in first["input_ids"]):
        return
    texts = {json.dumps([rows[number].get(name) for name in task.inputs], default=str) for number in first["row"]}
    if len(texts) > 1:
        kind = type(base.tokenizer).__name__
        raise UserError(
            f"base: the tokenizer of {base.source} makes the same {len(first['input_ids'][0])} tokens of different"
            f" {title} texts; transformers loads it as {kind}, which may be the wrong class"
        )


def warn_of_unknown_tokens(encoded: Dataset, base: HasTokenizer, title: str, reporter: Reporter) -> None:
    """Warn if many tokens of the text are unknown to the vocabulary."""
    import numpy
    import pyarrow

    unknown = base.tokenizer.unk_token_id
    if unknown is None or unknown in (base.tokenizer.eos_token_id, base.tokenizer.pad_token_id):
        return
    number = total = 0
    for chunk in encoded.data.column("input_ids").chunks:
        while pyarrow.types.is_list(chunk.type) or pyarrow.types.is_large_list(chunk.type):
            chunk = chunk.flatten()
        number += int(numpy.sum(chunk.to_numpy(zero_copy_only=False) == unknown))
        total += len(chunk)
    share = number / max(1, total)
    if share >= MUCH_UNKNOWN:
        reporter.warn(
            Finding(
                "unknown tokens",
                f"{share:.1%} of the {title} tokens are unknown to the tokenizer of {base.source}; it was not trained"
                " on this language or script",
                f"{number:,} of {total:,} tokens are {base.tokenizer.unk_token}",
                "pefttools train RECIPE base=OTHER_BASE",
            )
        )


def code_files(task: Encoder) -> list[Path]:
    """The source files that determine the encoding: those of the task's classes, and all files of this package."""
    own = [Path(inspect.getfile(c)) for c in type(task).__mro__ if c.__module__.startswith("pefttools.tasks.")]
    return [*dict.fromkeys(own), *sorted(Path(__file__).parent.glob("*.py"))]
