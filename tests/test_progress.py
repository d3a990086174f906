"""Progress of a run: the bar, its width, and TensorBoard."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import train_tiny
from rich.console import Console
from rich.table import Table

from pefttools import progress
from pefttools.cli import narrow_tables
from pefttools.progress import RichReporter
from pefttools.recipe import recipes
from pefttools.reporter import Bar, Reporter
from pefttools.training.driver import train


@pytest.mark.slow
def test_tensorboard_shows_a_run_once_with_the_recipe_as_hyperparameters(recipe_file: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    run, _ = train_tiny(recipe_file, tmp_path / "run", "train.trackers=[tensorboard]", "train.epochs=1")
    (file,) = (path for path in (run / "tensorboard").rglob("*") if path.is_file())
    found = EventAccumulator(str(file)).Reload().summary_metadata["_hparams_/session_start_info"]
    values = parse_session_start_info_plugin_data(found.plugin_data.content).hparams
    assert values["strategy.name"].string_value == "lora"
    assert values["train.epochs"].number_value == 1
    assert values["train.trackers"].string_value == "tensorboard"


@pytest.mark.slow
def test_the_bar_moves_at_every_step_and_shows_the_last_validation_score(recipe_file: Path, tmp_path: Path) -> None:
    moves: list[float] = []
    shown: dict[str, float] = {}

    class Meter(Bar):
        def advance(self, amount: float) -> None:
            moves.append(amount)

        def show(self, **fields: float) -> None:
            shown.update(fields)

    class Listener(Reporter):
        @contextmanager
        def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> Iterator[Bar]:
            yield Meter() if title == "training" else Bar()

    resolved = recipes.load(str(recipe_file), ["train.epochs=2", "train.log_every=7"]).recipe
    values = train(resolved, tmp_path / "run", reporter=Listener())
    assert moves == [1] * values["train"]["steps"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert shown["accuracy"] == [line["validation"]["accuracy"] for line in lines if "validation" in line][-1]
    assert {"loss", "tokens_per_second"} <= shown.keys()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_progress_bar_fits_the_terminal(width: int) -> None:
    reporter = RichReporter()
    reporter.console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    with reporter.bar("training", 12345, "steps", 100) as bar:
        assert isinstance(bar, progress._Moving)
        bar.advance(500)
        bar.show(loss=0.12345, tokens_per_second=34000.1)
        bar.show(accuracy=0.9876)
        line = Console(width=width, file=io.StringIO(), record=True)
        line.print(bar.progress.get_renderable())
    text = line.export_text()
    assert text.count("\n") == 1
    for part in ("training", "600/12345", "loss 0.1235", "accuracy 0.9876", ":"):
        assert part in text


@pytest.mark.parametrize("width", [44, 60, 80, 200])
def test_no_column_of_a_table_is_lost_on_a_narrow_terminal(width: int) -> None:
    table = Table(title="a title")
    names = ("tier", "method", "test accuracy", "interval", "trained parameters", "seconds")
    for name in names:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=name != "method")
    table.add_row("1", "last blocks", "0.9093", "0.8959 to 0.9227", "22,699,078", "11")
    table.add_row("2", "lora", "0.9042", "0.8604 to 0.9480", "481,926", "19")
    console = Console(width=width, file=io.StringIO(), record=True)
    parts = narrow_tables.parts(table, console)
    console.print(*parts, sep="\n")
    text = console.export_text()
    for part in (*names, "0.8959 to 0.9227", "22,699,078", "481,926"):
        assert part in text
    assert text.count("method") == len(parts)
    assert (len(parts) == 1) == (width == 200)


def test_a_bar_in_a_notebook_needs_no_widgets_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython import display

    class Handle:
        shown: list[str] = []

        def update(self, values: dict[str, str], raw: bool) -> None:
            self.shown.append(values["text/plain"])

    def first(values: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert "<progress " in values["text/html"]
        Handle.shown.append(values["text/plain"])
        return Handle()

    monkeypatch.setattr(display, "display", first)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.0)
    reporter = progress.RichReporter()
    reporter.console.is_jupyter = True
    with reporter.bar("training", 4, "steps") as bar:
        bar.show(loss=0.5)
        bar.advance(1)
        bar.advance(1)
    assert [line.split("  ")[0] for line in Handle.shown] == ["training: 1 of 4 steps", "training: 2 of 4 steps", ""]
    assert "loss 0.5" in Handle.shown[1]
