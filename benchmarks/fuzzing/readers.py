"""One reader under test: its valid inputs, how one is mutated and read, and what the outcome is."""

from __future__ import annotations

import random
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing.mutations import mutated_bytes, mutated_json

READ, REFUSED, DIFFERENT, UNCLEAR = "read", "refused", "other rows", "unclear"
TRACEBACK = "traceback: "
LONGEST = 1500
"""Characters of a message that is still one sentence, with the names of files and columns in it."""


@dataclass(frozen=True)
class Reader:
    """A reader of files or folders."""

    name: str
    valid: Callable[[], Sequence[bytes | Mapping[str, bytes]]]
    """Returns valid files, or folders as a mapping of paths to contents."""
    read: Callable[[Path], Any]
    """Reads a file or folder completely; the result is comparable."""
    file: str
    """The file's or folder's name."""
    json: bool = False
    """Whether the content is JSON, whose values are mutated besides its bytes."""
    exact: bool = False
    """Whether the format has checksums, so that a damaged file must be refused or read like the valid one."""
    keyed: bool = False
    """Whether messages may name a key of the file instead of the file."""
    targets: tuple[str, ...] = ()
    """In folders: patterns of the files to mutate; all files when empty."""

    def prepare(self) -> None:
        """Make the valid inputs, and check that they are read."""
        for content in _cached(self):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, self.file)
                _write(path, content)
                self.read(path)

    def attempt(self, number: int, folder: Path) -> str:
        """The outcome for input `number`, which is made anew in `folder` and always the same."""
        draw, valid = random.Random(f"{self.name} {number}"), _cached(self)
        chosen = draw.randrange(len(valid))
        path = folder / self.file
        _remove(path)
        _write(path, self.mutated(valid[chosen], valid, draw))
        outcome, found = outcome_of(lambda: self.read(path), "" if self.keyed else path.name)
        if outcome == READ and self.exact and found != self._expected(chosen, folder):
            return DIFFERENT
        return outcome

    def mutated(self, content: Any, valid: Sequence[Any], draw: random.Random) -> Any:
        """The content of a file, or the contents of a folder's files, after mutation."""
        if not isinstance(content, bytes):
            return self._mutated_folder(content, draw)
        if self.json and draw.random() < 0.5:
            return mutated_json(content.decode(), draw).encode()
        return mutated_bytes(content, draw, [one for one in valid if isinstance(one, bytes)])

    def _mutated_folder(self, content: Mapping[str, bytes], draw: random.Random) -> Mapping[str, bytes]:
        names = [name for name in content if not self.targets or any(Path(name).match(t) for t in self.targets)]
        name = draw.choice(names)
        rest = {other: value for other, value in content.items() if other != name}
        if draw.random() < 0.02:
            return rest
        if name.endswith(".json") and draw.random() < 0.5:
            return {**rest, name: mutated_json(content[name].decode(), draw).encode()}
        return {**rest, name: mutated_bytes(content[name], draw)}

    def _expected(self, chosen: int, folder: Path) -> Any:
        key = (self.name, chosen)
        if key not in _EXPECTED:
            path = folder / "valid" / self.file
            _write(path, _cached(self)[chosen])
            _EXPECTED[key] = self.read(path)
        return _EXPECTED[key]


_VALID: dict[str, Sequence[Any]] = {}
_EXPECTED: dict[tuple[str, int], Any] = {}


def _cached(reader: Reader) -> Sequence[Any]:
    if reader.name not in _VALID:
        _VALID[reader.name] = reader.valid()
    return _VALID[reader.name]


def outcome_of(read: Callable[[], Any], name: str) -> tuple[str, Any]:
    """The outcome of a call, and what it returned.

    Args:
        name: the name that a message must contain; empty for none.
    """
    from pefttools.errors import UserError

    try:
        return READ, read()
    except UserError as error:
        clear = all(problem and "\n" not in problem and len(problem) <= LONGEST for problem in error.problems)
        is_named = name in str(error) or str(error).startswith("data.train: ")
        return (REFUSED if error.problems and clear and is_named else f"{UNCLEAR}: {str(error)[:300]}"), None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(last) if "pefttools" in f.filename), last[-1])
        place = f"{Path(ours.filename).name}:{ours.lineno} in {ours.name}"
        return f"{TRACEBACK}{type(error).__name__} at {place}: {' '.join(str(error).split())[:120]}", None


def _write(path: Path, content: bytes | Mapping[str, bytes]) -> None:
    for name, data in {"": content}.items() if isinstance(content, bytes) else content.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
