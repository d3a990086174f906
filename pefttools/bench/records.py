"""The form of a trial's record, checked when it is read: a damaged record is refused before anything is computed of it.

Only what the table and the report use is described; records may contain more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pefttools.errors import shown

Count = Annotated[int, Field(ge=0, le=2**63)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Duration = Annotated[float, Field(ge=0, le=1e12)]
Scores = dict[str, Any]


class _Form(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Costs(_Form):
    seconds: Duration
    tokens_per_second: Duration
    peak_bytes: Count
    cpu_seconds: Duration | None = None


class _Files(_Form):
    adapter_bytes: Count


class _Hardware(_Form):
    kind: str
    threads: Annotated[int, Field(ge=1, le=2**31)]


class _Data(_Form):
    digest: str
    rows: dict[str, Count]


class _Evaluation(_Form):
    step: Count
    progress: Number
    score: float
    loss: float


class _Before(_Form):
    majority: dict[str, Number | None]


class _Params(_Form):
    trainable: Count
    adapter: Count
    head: Count


class _Rows(_Form):
    ids: list[str]
    references: list[Any]
    predictions: list[Any]


class _Change(_Form):
    blocks: list[Number]
    relative: Number
    effective_rank: Number | None


class _Forgetting(_Form):
    before: Number
    after: Number


class _Unmeasured(_Form):
    reason: str


class _Record(_Form):
    format: int
    digest: str = Field(min_length=16)
    versions: dict[str, str]


class _Failed(_Record):
    reason: str


class _Stopped(_Record):
    """A trial that was paused, or pruned."""

    metric: str
    lower_is_better: bool
    curve: list[_Evaluation]
    stopped_after: Count | None
    step_seconds: Duration
    wall: Duration


class _Done(_Record):
    seed: int
    metric: str
    lower_is_better: bool
    score_range: Annotated[list[float | None], Field(min_length=2, max_length=2)] | None
    measured_on: Literal["test", "validation"]
    merges: bool
    learning_rate: float | None
    params: _Params
    data: _Data
    before: _Before
    validation: Scores
    test: Scores | None
    train: _Costs
    files: _Files
    hardware: _Hardware
    curve: list[_Evaluation]
    wall: Duration
    final: bool
    units: list[Number] | None = None
    rows: _Rows | None = None
    moved: _Change | _Unmeasured | None = None
    forgetting: _Forgetting | _Unmeasured | None = None

    @model_validator(mode="after")
    def _has_scores(self) -> Self:
        for split in ("validation", self.measured_on):
            score = (getattr(self, split) or {}).get(self.metric)
            if isinstance(score, bool) or not isinstance(score, (int, float)):
                raise ValueError(f"{split} has no score of {self.metric}")
        if not isinstance(self.validation.get("loss"), (int, float)):
            raise ValueError("validation has no loss")
        if self.final and not self.units:
            raise ValueError("units are missing")
        return self


_KINDS: Mapping[str, type[_Record]] = {"done": _Done, "failed": _Failed, "paused": _Stopped, "pruned": _Stopped}


def check(record: Mapping[str, Any]) -> None:
    """Raises ValueError, with the first problem in one sentence, when this is not a record."""
    status = record.get("status")
    kind = _KINDS.get(status) if isinstance(status, str) else None
    if kind is None:
        raise ValueError(f"status: must be one of {', '.join(_KINDS)}, got {shown(status)}")
    try:
        kind.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "record"
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
