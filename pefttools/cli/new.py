"""The command that writes a first recipe for a file of rows: new."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pefttools import atomic
from pefttools.cli.base import app
from pefttools.cli.inspect import GROUP
from pefttools.errors import UserError
from pefttools.progress import RichReporter


@app.command(group=GROUP)
def new(
    file: Path,
    /,
    *,
    base: str | None = None,
    out: Path | None = None,
    header: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    encoding: str | None = None,
    sheet: str | None = None,
) -> None:
    """Write a recipe for a file of rows: guess the task, columns and lengths from the rows, and say what was guessed.

    Args:
        file: the training rows, in any format that recipes can read.
        base: the pretrained model; by default the one of the shipped recipes for such tasks.
        out: the recipe to write; by default FILE's name with .yaml, in this folder.
        header: names of the columns of a csv or tsv file that has no line of names.
        encoding: of the text, if it is not UTF-8.
        sheet: the sheet of a workbook, if it is not the first one.
    """
    import yaml

    from pefttools.api.settings import usual_base
    from pefttools.data.headers import missing_header
    from pefttools.data.reading import stream
    from pefttools.data.settings import FileSettings
    from pefttools.planning import guessing
    from pefttools.recipe import recipes

    recipe = out or Path(f"{file.name.partition('.')[0] or 'rows'}.yaml")
    if recipe.exists():
        raise UserError(f"--out: {recipe} exists already; name another file, or remove it")
    reporter = RichReporter()
    given = {name: value for name, value in (("header", header), ("encoding", encoding), ("sheet", sheet)) if value}
    source = FileSettings.model_validate({"source": str(file), **given})
    try:
        read = list(islice(stream(source, "new", reporter), guessing.ROWS))
    except UserError as error:
        raise UserError(*(problem.replace("set `encoding`", "add --encoding") for problem in error.problems)) from error
    rows = [row for row in read if isinstance(row, dict)]
    if not rows:
        raise UserError(f"new: {file} has no rows")
    if why := missing_header(rows, "new", source):
        raise UserError(f"{file}: {why.replace('set new.header to', 'add --header with')}")
    found = guessing.guess(rows, str(file), has_base=base is not None)
    train: Any = str(file.absolute())
    if given:
        train = {"source": train, **given}
    try:
        chosen = {"source": base} if base else usual_base(found.task)
    except UserError as error:
        raise UserError(
            f"--base: is required, because the rows are for {found.task} and no shipped base fits"
        ) from error
    values: dict[str, Any] = {
        "base": chosen,
        "data": {"train": train, **({"columns": found.columns} if found.columns else {})},
        "task": {"name": found.task, **found.settings},
        "strategy": "lora",
        "train": {"epochs": 3},
    }
    recipes.from_values({"name": recipe.stem, **values})  # raises what `train` would
    notes = "".join(f"# - {note}\n" for note in found.notes)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    atomic.write_text(
        recipe, f"# pefttools train {recipe}\n# Guessed from the first {len(rows):,} rows:\n{notes}{text}"
    )
    for note in found.notes:
        reporter.note(note)
    reporter.note(f"task: {found.task}; correct what is wrong in {recipe}, then look at it and train:")
    reporter.note(f"pefttools show {recipe} --sample 2\npefttools doctor {recipe}\npefttools train {recipe}")
