"""Sequences of rows that need little memory: in a temporary file once there are many, and views that copy no rows.

The file lies in the cache folder and has no name there: no other program opens it, and it is gone when the process
ends.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
import weakref
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from pefttools.sources.cache import cache_dir

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
IN_MEMORY = 100_000
"""Number of items that stay in memory, as a list."""
CHUNK = 1024
"""Number of items that are written, and read back, together."""
DECODED = 8
"""Number of chunks that stay in memory after they were read."""


def spooled(items: Iterable[T]) -> Sequence[T]:
    """The items as a list, or as a `Spool` if there are more than `IN_MEMORY`. Raises OSError as `Spool.add` does."""
    found = Collector[T]()
    for item in items:
        found.add(item)
    return found.items


class Collector(Generic[T]):
    """Collects items: in a list, and from `IN_MEMORY` items on in a `Spool`."""

    def __init__(self) -> None:
        self.items: list[T] | Spool[T] = []

    def add(self, item: T) -> None:
        """Append an item. Raises OSError as `Spool.add` does."""
        if len(self.items) == IN_MEMORY and isinstance(self.items, list):
            few, self.items = self.items, Spool()
            for one in few:
                self.items.add(one)
        (self.items.append if isinstance(self.items, list) else self.items.add)(item)


class View(Sequence[T]):
    """A sequence that computes its items. A slice is a list of them."""

    def __iter__(self) -> Iterator[T]:
        return self.at(range(len(self)))

    @overload
    def __getitem__(self, key: int) -> T: ...
    @overload
    def __getitem__(self, key: slice) -> list[T]: ...
    def __getitem__(self, key: int | slice) -> T | list[T]:
        if isinstance(key, slice):
            return list(self.at(range(*key.indices(len(self)))))
        if not -len(self) <= key < len(self):
            raise IndexError(key)
        return self._item(key % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def at(self, indices: Iterable[int]) -> Iterator[T]:
        """Yield the items with these indices, counted from 0."""
        return map(self._item, indices)

    @abstractmethod
    def _item(self, index: int) -> T:
        """The item with this index, counted from 0."""


class Spool(View[T]):
    """Items in a temporary file, in chunks; those of the last chunk are in memory until it is full."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(dir=cache_dir(), buffering=0)  # noqa: SIM115 - as long as the sequence
        weakref.finalize(self, self.file.close)
        self.starts = [0]
        self.last: list[T] = []
        self.decoded: OrderedDict[int, list[T]] = OrderedDict()
        self.lock = threading.Lock()

    def add(self, item: T) -> None:
        """Append an item.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
        """
        self.last.append(item)
        if len(self.last) == CHUNK:
            data = memoryview(pickle.dumps(self.last, pickle.HIGHEST_PROTOCOL))
            self.starts.append(self.starts[-1] + len(data))
            while data:
                data = data[self.file.write(data) :]
            self.last = []

    def __len__(self) -> int:
        return (len(self.starts) - 1) * CHUNK + len(self.last)

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(map(self._read, range(len(self.starts))))

    def at(self, indices: Iterable[int]) -> Iterator[T]:
        """Yield the items with these indices; fast if many that follow each other are in one chunk."""
        chunk: list[T] = []
        last = -1
        for index in indices:
            number, place = divmod(index, CHUNK)
            if number != last:
                chunk, last = self._read(number), number
            yield chunk[place]

    def _item(self, index: int) -> T:
        number, place = divmod(index, CHUNK)
        with self.lock:
            if (chunk := self.decoded.get(number)) is None:
                chunk = self._read(number)
                if number < len(self.starts) - 1:
                    self.decoded[number] = chunk
                if len(self.decoded) > DECODED:
                    self.decoded.popitem(last=False)
        return chunk[place]

    def _read(self, number: int) -> list[T]:
        if number == len(self.starts) - 1:
            return self.last
        start, end = self.starts[number : number + 2]
        if hasattr(os, "pread"):  # independent of the position, which forked processes share
            return pickle.loads(os.pread(self.file.fileno(), end - start, start))
        self.file.seek(start)
        return pickle.loads(self.file.read(end - start))


class Taken(View[T]):
    """The items with these indices, in their order."""

    def __init__(self, items: Sequence[T], indices: NDArray[Any]) -> None:
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, indices: Iterable[int]) -> Iterator[T]:
        chosen = (int(self.indices[i]) for i in indices)
        return self.items.at(chosen) if isinstance(self.items, View) else map(self.items.__getitem__, chosen)

    def _item(self, index: int) -> T:
        return self.items[int(self.indices[index])]


class Joined(View[T]):
    """The items of several sequences, one after another."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self.parts = [part for part in parts if len(part)]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self.parts)

    def _item(self, index: int) -> T:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def take(items: Sequence[T], indices: NDArray[Any]) -> Sequence[T]:
    """The items with these indices: a list if the items are one, else a view."""
    if isinstance(items, list):
        return [items[i] for i in indices.tolist()]
    indices = indices.astype("uint32" if len(items) < 2**32 else "uint64")
    if isinstance(items, Taken):
        return Taken(items.items, items.indices[indices])
    return Taken(items, indices)


def join(*parts: Sequence[T]) -> Sequence[T]:
    """The items of several sequences, one after another: a list if all are lists, else a view."""
    filled = [part for part in parts if len(part)]
    if all(isinstance(part, list) for part in filled):
        return [item for part in filled for item in part]
    return filled[0] if len(filled) == 1 else Joined(*filled)
