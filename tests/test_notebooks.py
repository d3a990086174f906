"""The notebooks of `examples`, run cell by cell in a kernel of Jupyter, with tiny bases and few steps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_gguf_export import base as tiny_language_model  # noqa: F401  # a fixture
from test_gguf_export import converter  # noqa: F401  # a fixture

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def tagged(notebook: Any) -> int:
    """The place of the cell with the settings."""
    (place,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    return place


def executed(name: str, folder: Path, more: str = "", **settings: Any) -> Any:
    """The notebook after it ran in a copy of its folder, with other values of its settings.

    Args:
        more: code that runs after the settings.
    """
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    lines = [*(f"{key} = {value!r}" for key, value in settings.items()), more]
    notebook.cells.insert(tagged(notebook) + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    return notebook


def output(notebook: Any, source: str) -> str:
    """What the cell with this text in its source showed."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    found = [one.get("text") or one.get("data", {}).get("text/plain", "") for one in cell.outputs]
    return "\n".join(found)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels write nothing into the user's folders, and find this pefttools."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_clean_and_linked(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert tagged(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)
        links = [one for one in re.findall(r"\]\(([^)#]+)\)", cell.source) if "://" not in one]
        assert not [one for one in links if not (EXAMPLES / one).exists()]
    assert file.name in (EXAMPLES / "README.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_tickets(bases: Callable[[str], Path], tmp_path: Path) -> None:
    found = executed("tickets", tmp_path / "examples", base=str(bases("bert")), epochs=2)
    assert "lora, accuracy" in output(found, "pefttools.fit")
    assert "per_class" not in output(found, 'run.metrics["per_class"]')
    assert "prediction" in output(found, "requests.post")
    assert "billing" in output(found, "run.predict(new")
    assert (tmp_path / "examples/runs/tickets/export/merged/model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_entities(bases: Callable[[str], Path], tmp_path: Path) -> None:
    found = executed("entities", tmp_path / "examples", base=str(bases("bert")), epochs=2)
    assert "B-PER" in output(found, "read_text")
    assert "precision" in output(found, 'run.metrics["entities"]')
    assert re.search("start|Empty DataFrame", output(found, "run.predict(sentence)"))


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_instruct(tiny_language_model: Path, converter: Path, tmp_path: Path) -> None:  # noqa: F811
    base = shutil.copytree(tiny_language_model, tmp_path / "base")
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        values = json.loads((base / name).read_text("utf-8"))
        (base / name).write_text(json.dumps({**values, key: 512}), "utf-8")  # the conversation is longer than 64 tokens
    patch = f"gguf.fetch = lambda *_: pathlib.Path({str(converter)!r})"
    more = f"import pathlib\nfrom pefttools.exporters import gguf\n{patch}"
    found = executed("instruct", tmp_path / "examples", more, base=str(base), epochs=1)
    assert "before:" in output(found, "base=True")
    assert "model.gguf" in output(found, 'run.export("gguf"')
