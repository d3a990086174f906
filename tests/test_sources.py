"""Sources: pinned hashes, fetching once, and errors."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from conftest import Listener

from pefttools.atomic import new_file, new_folder
from pefttools.errors import UserError
from pefttools.reporter import Bar, Reporter
from pefttools.sources import fetch, pypi
from pefttools.sources.pins import content_sha256


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is a folder with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "some_rows-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_rows/__init__.py", "raise RuntimeError('a wheel is never imported')")
        wheel.writestr("some_rows/data/a.csv", "text,label\nx,1\n")
        wheel.writestr("some_rows/data/deep/b.txt", "b")
        wheel.writestr("some_rows-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-rows\nVersion: 1.2\n")
        wheel.writestr(
            "some_rows-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("some_rows-1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PEFTTOOLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.slow
def test_file_and_folder_of_a_wheel_are_fetched(index: Path) -> None:
    file = fetch("pypi:some-rows==1.2/some_rows/data/a.csv")
    assert file.read_text() == "text,label\nx,1\n"
    folder = fetch("pypi:some-rows==1.2/some_rows/data")  # one cached file does not make the folder complete
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == ["a.csv", "deep/b.txt"]
    (index / "some_rows-1.2-py3-none-any.whl").unlink()
    assert fetch("pypi:some_rows==1.2/some_rows/data/deep/b.txt").read_text() == "b"  # from the cached wheel


@pytest.mark.slow
def test_download_reports_progress_once(index: Path) -> None:
    seen: list[str] = []

    class Progress(Reporter):
        def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> AbstractContextManager[Bar]:
            seen.append(f"{title} {unit}")
            return super().bar(title, total, unit)

    fetch("pypi:some-rows==1.2/some_rows/data/a.csv", reporter=Progress())
    fetch("pypi:some-rows==1.2/some_rows/data/a.csv", reporter=Progress())
    assert seen == ["downloading some-rows==1.2 bytes"]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def swap(file: Path) -> None:
    """Change the content of a.csv in the wheel, but not its checksum."""
    flip(file, file.read_bytes().index(b"text,label"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [halve, swap], ids=lambda it: it.__name__)
def test_a_damaged_wheel_is_downloaded_again(damage: Callable[[Path], None], index: Path, tmp_path: Path) -> None:
    source, listener = "some-rows==1.2/some_rows/data", Listener()
    first = fetch(f"pypi:{source}/deep/b.txt")
    (wheel,) = (tmp_path / "cache" / "wheels").glob("*.whl")
    damage(wheel)
    assert pypi.licence(f"{source}/a.csv") is None
    assert fetch(f"pypi:{source}/a.csv", reporter=listener).read_text() == "text,label\nx,1\n"
    assert any("is damaged" in note and "downloaded again" in note for note in listener.notes)
    flip(first, 0)  # an extracted file
    assert fetch(f"pypi:{source}/deep/b.txt", reporter=listener).read_text() == "b"
    assert "so it is made again" in listener.notes[-1]


def test_progress_is_read_from_the_output_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    amounts: list[float] = []

    class Meter(Bar):
        def advance(self, amount: float) -> None:
            amounts.append(amount)

    class Listener(Reporter):
        @contextmanager
        def bar(self, title: str, total: float | None, unit: str, done: float = 0) -> Iterator[Bar]:
            yield Meter()

    monkeypatch.setattr(pypi.sys, "executable", str(tmp_path / "pip"))
    (tmp_path / "pip").write_text("#!/bin/sh\necho Progress 0 of 10\necho Progress 4 of 10\necho Progress 10 of 10\n")
    (tmp_path / "pip").chmod(0o755)
    pypi._download("x==1", str(tmp_path), Listener())
    assert amounts == [0, 4, 6]


def test_installed_distribution_is_used_first() -> None:
    version = metadata.version("pip")
    assert fetch(f"pypi:pip=={version}/pip/py.typed").parent.name == "pip"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "pypi:some-rows==1.2/some_rows/data/c.csv",
            "the wheel does not contain this path; did you mean 'some_rows/data/a.csv'",
        ),
        ("pypi:some-rows==9/some_rows/data/a.csv", "pip could not download its wheel"),
        ("pypi:other==1.2/a", "no network, or the index does not have it"),
        ("pypi:some-rows==1.2/../../etc/passwd", "the path is outside of the wheel"),
        ("pypi:some-rows/data", "is malformed; write pypi:NAME==VERSION/PATH"),
        ("hf:not/a/name", "this is not a repository name"),
        ("hf:some/model", "cannot be reached, and the repository is not in the cache"),
    ],
)
def test_unavailable_sources_are_refused(source: str, message: str, index: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch(source)
    assert "://" not in str(caught.value)


def test_hub_model_is_found_in_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("a" * 40)
    assert fetch("hf:some/model") == snapshot
    assert fetch(f"hf:some/model@{'a' * 40}") == snapshot


def test_content_that_differs_from_the_pinned_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n")
    pin = hashlib.sha256(b"a\n").hexdigest()
    assert fetch(str(tmp_path / "rows.csv"), pin) == tmp_path / "rows.csv"
    with pytest.raises(UserError, match=f"the content's sha256 is {pin}, but the recipe pins {'0' * 64}"):
        fetch(str(tmp_path / "rows.csv"), "0" * 64)


def test_hash_of_a_folder_equals_that_of_the_shell_command(tmp_path: Path) -> None:
    for name in ("b/x.txt", "B.txt", "a.txt", ".hidden/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    command = r"find . -type f ! -path '*/.*' | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    shell = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert content_sha256(tmp_path) == shell.stdout.split()[0]


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_file(tmp_path / "file") as part:
        part.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), new_folder(tmp_path / "folder") as part:
        (part / "file").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for text in ("one", "two"):
        with new_folder(tmp_path / "folder") as part:
            (part / text).write_text(text)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["folder", "folder/two"]
