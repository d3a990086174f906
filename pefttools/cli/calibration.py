"""The command that calibrates a run's probabilities: calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pefttools.cli import calibration_table, display
from pefttools.cli.base import Json, app
from pefttools.cli.runs import GROUP
from pefttools.errors import UserError
from pefttools.progress import RichReporter


@app.command(group=GROUP)
def calibrate(
    run: Path,
    /,
    *,
    precision: float | None = None,
    recall: float | None = None,
    of: str | None = None,
    remove: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Calibrate a finished run on its validation rows, so that 80% of predictions with a probability of 0.8 are right.

    The temperature and the thresholds are stored in the run; predict, evaluate and export use them. The score of a task
    with one class per row does not change. For `predict --error-rate`, the errors of validation rows are stored, too.

    Args:
        run: a run folder.
        precision: choose thresholds with this precision and the best recall. Without --precision and --recall, only
            tasks with several labels per row get thresholds, those with the best F1.
        recall: choose thresholds with this recall and the best precision.
        of: the class that must reach it; with several labels per row, all classes by default.
        remove: forget the calibration instead.
        json: print one JSON object.
    """
    from pefttools.inference import calibration
    from pefttools.inference.thresholds import Wanted

    reporter = RichReporter()
    if remove:
        if (precision, recall, of) != (None, None, None):
            raise UserError("--remove: cannot be combined with --precision, --recall or --of")
        was = calibration.remove(run)
        if json:
            display.as_json({"removed": was})
        else:
            reporter.note(f"{run}: the calibration was removed" if was else f"{run}: there was no calibration")
        _tell_of_exports(run, reporter)
        return
    wanted = None if (precision, recall, of) == (None, None, None) else Wanted(precision, recall, of)
    values = calibration.calibrate_run(run, wanted, reporter)
    _tell_of_exports(run, reporter)
    display.as_json(values) if json else display.parts(calibration_table.shown(values))


def _tell_of_exports(run: Path, reporter: RichReporter) -> None:
    """Exports keep the calibration that the run had when they were written."""
    if found := sorted(one.name for one in (run / "export").glob("*") if one.is_dir()):
        reporter.note(f"exports made before ({', '.join(found)}) stay as they are; export them again")
