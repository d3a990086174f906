"""calibration.json of a run: what `pefttools calibrate` found, and applying it to the loaded model.

    temperature   the head's last layer is divided by it, so every artifact has it, too (`nn.temperature`)
    thresholds    class -> the probability from which on it is predicted (`task.thresholds`)
    errors        what split conformal prediction needs: sorted, one for each validation row, 1 minus the probability of
                  the right class, or the absolute error of a predicted number

The file belongs to one trained adapter and has a checksum of its own, so that `hashes.json` need not change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import atomic
from pefttools.errors import UserError, damage_of
from pefttools.nn import temperature as scaling
from pefttools.sources.pins import content_sha256

if TYPE_CHECKING:
    from torch import nn

    from pefttools.tasks.base import Task

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """What was found on validation rows."""

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    errors: Sequence[float] = ()
    rows: int = 0
    """Number of validation rows."""

    def write(self, folder: Path, adapter: Path | None) -> None:
        """Write the file for the model whose trained weights are in the folder `adapter`; None in an artifact."""
        values = {**asdict(self), "of": content_sha256(adapter) if adapter else None}
        atomic.write_json(folder / FILE, {**values, "sha256": _sha256(values)})

    def apply(self, model: nn.Module, head: Sequence[str], task: Task) -> Task:
        """Divide the model's logits by the temperature, in place; returns the task with the thresholds.

        Raises:
            UserError: the head has no last linear layer.
        """
        if self.temperature != 1.0 and task.num_calibrated is not None:
            scaling.divide(layers(model, head, task), self.temperature)
        elif self.temperature != 1.0:
            before: Any = getattr(task, "temperature", 1.0)
            task = task.with_values(temperature=before * self.temperature)
        return task.with_values(thresholds=self.thresholds) if self.thresholds else task

    @property
    def changes_predictions(self) -> bool:
        """Whether other classes may be predicted."""
        return bool(self.thresholds)

    @property
    def of_artifact(self) -> Calibration:
        """The calibration of a model that is divided by the temperature already."""
        return Calibration(1.0, {}, self.errors, self.rows)


def layers(model: nn.Module, head: Sequence[str], task: Task) -> list[nn.Linear]:
    """The layers that make the logits. Raises UserError when the head's last layer is not linear."""
    assert task.num_calibrated is not None, f"{task.name} has no head with logits"
    if found := scaling.last_layers(model, head, task.num_calibrated):
        return found
    raise UserError(
        f"calibrate: no linear layer of the head ({', '.join(head) or 'none'}) has {task.num_calibrated} outputs, so"
        " its logits cannot be divided by a temperature"
    )


def read(folder: Path, adapter: Path | None) -> Calibration | None:
    """The calibration of the model in `adapter`, or of the artifact in `folder`; None if there is none.

    Raises:
        UserError: the file is damaged, or belongs to another trained model.
    """
    file = folder / FILE
    if not file.exists():
        return None
    again = f"remove it, or write it again with `pefttools calibrate {folder}`"
    with damage_of(file, again):
        values: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if values.pop("sha256") != _sha256(values):
            raise ValueError("its content does not have its checksum")
        of = values.pop("of")
        found = Calibration(**values)
    if adapter and of != content_sha256(adapter):
        raise UserError(f"{file}: it belongs to another trained model; {again}")
    return found


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
