"""The data settings of a recipe."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pefttools.settings import DEFAULT_NOT_IN_DIGEST, Settings
from pefttools.sources import expanded, is_remote

Format = Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "arrow", "workbook", "conll", "lines", "folders"]
UTF8 = "utf-8-sig"


class FileSettings(Settings):
    """Files, a folder or a data set of the hub, and how to read them; a string or a list of strings is the `source`."""

    source: str | tuple[str, ...]
    """A local path, a pattern of paths (`data/*.csv`), `pypi:NAME==VERSION/PATH`, `hf:NAME[@REVISION]`, or a list.
    Files may be compressed (.gz, .bz2, .xz, .zst, a .zip of one file). A folder contains the files of one table, the
    output of `save_to_disk` of datasets, or one folder of text files per label."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The sha256 of the source's content; other content raises an error."""
    format: Format = "auto"
    """The format of the file; `auto` recognizes it by the ending. In `conll` a line is a token with its tags and a
    blank line ends a sentence; in `lines` a line is a row; in `folders` a folder is a label; `arrow` is the output of
    `save_to_disk` of datasets; `workbook` is a file of Excel or LibreOffice (xlsx, xls, ods)."""
    config: str | None = None
    """The configuration of a data set of the hub that has several."""
    split: str | None = None
    """The split to read from a data set of the hub, a folder with several, or the output of `save_to_disk`. When null,
    `train`, or for `data.validation` and `data.test` the split of that name."""
    sheet: str | None = None
    """The sheet of a workbook; the first one with content when null."""
    header: tuple[str, ...] | None = None
    """Column names of a csv or tsv file, or a sheet, without a header line, or of a conll file (by default tokens, …,
    tags)."""
    separator: str | None = None
    """The character between the columns of a csv or tsv file (`tab` for a tab); detected from the file's first lines
    when null."""
    quotes: bool | None = None
    """Whether double quotes enclose fields; when null they do in csv files, and are part of the text in tsv files."""
    escape: str | None = None
    """The escape character before a separator or quote in csv and tsv files, such as a backslash."""
    pattern: str | None = None
    """For `lines`: a regular expression whose named groups are the columns; when null, a line is the column `text`."""
    parallel_files: Mapping[str, str] = {}
    """For `lines`: column -> another file with one line for each line of this file: `{tags: train.seq.out}`."""
    encoding: str = UTF8
    """The text encoding (the default is UTF-8, or the encoding of a byte-order mark at the file's start)."""
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
            raise ValueError("is empty; give at least one file")
        if not isinstance(value, str) and (hubs := [one for one in value if one.startswith("hf:")]):
            raise ValueError(f"a list may only contain files, but {hubs[0]} is a data set of the hub")
        return value

    @field_validator("separator", "escape")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        value = "\t" if value in ("tab", "\\t") else value
        if value is not None and (len(value) != 1 or value in '\r\n"\0'):
            raise ValueError("must be one character (`tab` for a tab), but not a quote or line end")
        return value

    @field_validator("parallel_files", mode="before")
    @classmethod
    def _columns_with_files(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping of columns to files, like {tags: train.tags}")
        return value

    @field_validator("parallel_files")
    @classmethod
    def _absolute(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if hubs := [source for source in value.values() if source.startswith("hf:")]:
            raise ValueError(f"needs files, but {hubs[0]} is a data set of the hub")
        return {column: source if is_remote(source) else str(expanded(source)) for column, source in value.items()}

    @model_validator(mode="after")
    def _what_goes_with_lines(self) -> FileSettings:
        present = [name for name in ("pattern", "parallel_files") if getattr(self, name)]
        if present and self.format not in ("lines", "auto"):
            raise ValueError(f"`{present[0]}` is for `format: lines`, but this is {self.format}")
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
            raise ValueError("`sha256` pins one file or folder, but `source` is a list")
        if self.separator and self.separator == self.escape:
            raise ValueError("`separator` and `escape` are the same character")
        if self.sha256 and self.name.startswith("hf:"):
            raise ValueError("pin a data set of the hub by its revision, hf:NAME@REVISION, not by `sha256`")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources as a tuple."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def name(self) -> str:
        """The source's name in messages."""
        return self.sources[0] if len(self.sources) == 1 else f"{self.sources[0]} and {len(self.sources) - 1} more"

    @staticmethod
    def as_read_before(values: Mapping[str, Any], split: str) -> dict[str, Any]:
        """A file's settings in the form of earlier versions, so that digests do not change.

        Args:
            split: the file's split (`train`, `validation`, `test`).
        """
        former = {k: v for k, v in values.items() if k not in ("separator", "escape", "sheet") or v is not None}
        former["split"] = values["split"] or (split if str(values["source"]).startswith("hf:") else "train")
        former["beside"] = former.pop("parallel_files")
        if values["quotes"] is None:
            former["quotes"] = values["format"] != "tsv" and ".tsv" not in str(values["source"])
        return former


class BinSettings(Settings):
    """Classes from numbers: `edges` are the borders of the intervals, `names` their classes in ascending order."""

    edges: tuple[float, ...] = Field(min_length=1)
    """Borders between classes, ascending; a number on a border belongs to the class above."""
    names: tuple[str | None, ...]
    """One class per interval; null leaves out the interval's rows."""

    @model_validator(mode="after")
    def _one_name_a_piece(self) -> BinSettings:
        if len(self.names) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("needs ascending edges, and one name more than edges")
        return self


class ReplaySettings(Settings):
    """Rows of an earlier run that are trained on again."""

    share: float = Field(gt=0, le=1)
    """Share of the training rows of that run, and of each run before it, to add to the training rows."""
    run: str | None = None
    """The earlier run; null means the one that training goes on from (`--from`)."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The sha256 of the run's rows, which is filled in; other rows are refused."""


class DataSettings(Settings):
    """Sources of the rows, and how to split them."""

    only_with: ClassVar[Any] = {
        "validation_share": ("no data.validation", lambda data: data.validation is None),
        "test_share": ("no data.test", lambda data: data.test is None),
        "split_seed": ("no data.validation or no data.test", lambda data: not (data.validation and data.test)),
    }

    train: FileSettings
    """Rows to train on; validation and test rows are split off unless they have files of their own."""
    validation: FileSettings | None = None
    """Rows for the validation split, which selects the best checkpoint."""
    test: FileSettings | None = None
    """Rows for the test split, which is evaluated once, at the end."""
    columns: Mapping[str, str] = {}
    """Field -> column, for columns with other names than their field: `{text: question, label: category}`."""
    labels: Mapping[str, str] = {}
    """New names for labels: `{"0": ham, "1": spam}`."""
    bins: BinSettings | None = None
    """Convert numeric labels to classes."""
    invalid_rows: Literal["refuse", "skip"] = Field(default="refuse", json_schema_extra=DEFAULT_NOT_IN_DIGEST)
    """What to do with rows that the task cannot use (no text, no label): raise an error, or skip them and list their
    numbers."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training file's rows for validation, if there is no validation file. A row stays in its split when
    you add others. Each split of a small file gets at least one row, and one of each class that has enough rows."""
    test_share: float = Field(default=0.15, ge=0, lt=1)
    """Share of the training file's rows for the test split, if there is no test file."""
    split_seed: int = 0
    """The seed of the hash that assigns rows to splits."""
    deduplicate: Literal["overlap", "train", "all", "none"] = "overlap"
    """Which repeated rows to remove. `overlap`: training rows that are also in validation or test. `train`: also
    repeats within training. `all`: also repeats within validation and test splits from the training file. `none`:
    nothing, so rows may be both trained on and evaluated. Rows of a validation or test file are always evaluated, all
    of them. Two rows are repeats if their inputs (and, for tasks that generate, their targets) are equal. The default
    is `overlap` because published results count every row of a test file, and because the frequency of a text is
    information that the model can learn."""
    min_class_rows: int = Field(default=1, ge=1)
    """Leave out classes with fewer training rows than this."""
    train_rows: int | None = Field(default=None, ge=1)
    """Train on only this many rows; a smaller number selects a subset of the rows of a larger one."""
    replay: ReplaySettings | None = Field(default=None, json_schema_extra=DEFAULT_NOT_IN_DIGEST)
    """Also train on a share of an earlier run's training rows, so that the model forgets less."""

    @field_validator("deduplicate", mode="before")
    @classmethod
    def _from_bool(cls, value: Any) -> Any:
        """Accept the values true and false of earlier versions, also as text."""
        return {"true": "all", "false": "none"}.get(str(value).lower(), value)

    @property
    def digest(self) -> str:
        """sha256 of all values."""
        exclude = None if self.replay else {"replay"}  # added later, and must not change earlier digests
        return hashlib.sha256(self.model_dump_json(exclude=exclude).encode()).hexdigest()

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> DataSettings:
        taken = (0 if self.validation else self.validation_share) + (0 if self.test else self.test_share)
        if taken >= 1:
            raise ValueError("validation_share and test_share leave no rows to train on")
        return self
