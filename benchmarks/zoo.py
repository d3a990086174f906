"""The suite zoo with more sets: those of a folder of files, as benchmarks/tasks.py names them.

python benchmarks/zoo.py --files FOLDER --workers 2     # -> runs/zoo-files; further words go to `pefttools bench`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import yaml
from tasks import SETS

from pefttools.data.settings import DataSettings
from pefttools.recipe import shipped
from pefttools.recipe.overrides import pairs

FROM_FILES = ("banking77", "snips-intents", "stsb", "semeval2010-8", "snips-slots", "wnut17")


def with_files(files: Path) -> dict[str, object]:
    """The suite's values, with a task for each set of files."""
    suite = yaml.safe_load((shipped.folder("suites") / "zoo.yaml").read_text("utf-8"))
    for name in FROM_FILES:
        recipe, *overrides = SETS[name].command(files.absolute())
        values, problems = pairs([word for word in overrides if not word.startswith("train.")])
        assert not problems, problems
        for split in ("validation", "test"):
            if f"data.{split}" in values:  # the suite's share would have no effect
                values[f"data.{split}_share"] = DataSettings.model_fields[f"{split}_share"].default
        suite["axes"]["tasks"][name] = {"recipe": recipe, "set": values}
    return {**suite, "name": "zoo-files", "description": f"{suite['description']}, and {len(FROM_FILES)} from files"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/zoo-files"))
    arguments, words = parser.parse_known_args()
    file = arguments.out.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(with_files(arguments.files), sort_keys=False, allow_unicode=True), "utf-8")
    command = [sys.executable, "-m", "pefttools", "bench", str(file), "--out", str(arguments.out), *words]
    raise SystemExit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
