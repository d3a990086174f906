"""Load data sets of the hub as rows with class names."""

from __future__ import annotations

from typing import Any

from pefttools.data import class_names
from pefttools.data.settings import FileSettings
from pefttools.errors import UserError
from pefttools.reporter import Reporter
from pefttools.sources import hub


def rows(settings: FileSettings, reporter: Reporter) -> list[dict[str, Any]]:
    """The rows of a split of a data set of the hub. Raises UserError if it cannot be loaded."""
    from datasets import load_dataset

    split = str(settings.split or "train")
    rest = settings.name.removeprefix("hf:")
    name, revision = hub.split(rest)
    reporter.note(f"{settings.name}: loading its {split} split from the hub")
    try:
        table = load_dataset(name, settings.config, split=split, revision=revision)
    except (ValueError, RuntimeError) as error:  # no such configuration or split; a loading script
        raise UserError(f"{settings.name}: {error}") from error
    except Exception as error:
        raise hub.explained(rest, error) from error
    found, features = table.to_list(), dict(table.features.to_dict())
    for column, namer in class_names.of_features(features).items():
        for row in found:
            row[column] = namer(row[column])
    return found
