"""Files of the repository that no command reads: what they name exists, and they can be parsed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "name", ["CITATION.cff", ".pre-commit-config.yaml", ".github/workflows/ci.yaml", "examples/several_gpus.yaml"]
)
def test_yaml_can_be_parsed(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text("utf-8")), dict)


def test_the_workflow_runs_what_exists() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text("utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "docs/tree.md"])
def test_files_that_a_page_names_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:pefttools|tests|benchmarks|\.ci)/[\w./]+)`", text)
    assert links or paths
    missing = [one for one in links if not ((ROOT / name).parent / one).exists()]
    missing += [one for one in paths if "NAME" not in one and not (ROOT / one).exists()]
    assert not missing


def test_examples_of_every_kind_exist() -> None:
    rows = re.findall(
        r"^\| \w+ \| `pefttools/(\w+)/NAME.py`[^|]*\| `(\w+\.py)`", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert len(rows) == 6
    assert not [f"{kind}/{file}" for kind, file in rows if not (ROOT / "pefttools" / kind / file).exists()]
