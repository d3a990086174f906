"""Near-duplicates of test and validation rows among the training rows, by MinHash (Broder 1997) and banding.

A text is the set of its sequences of five characters, in lower case and without punctuation. Pairs that MinHash takes
for similar are compared exactly: every input must have a Jaccard similarity of `SAME` or more, so that two questions
about one paragraph are not the same row. Rows whose texts are equal are repeats; `data.deduplicate` treats these.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.data.rows import Fields, Row, key
from pefttools.reporter import Finding, Reporter
from pefttools.training.preparation import Prepared

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE = 5
"""Number of characters in an element of a text's set."""
SAME = 0.9
"""Least Jaccard similarity of near-duplicates."""
BANDED = 0.8
"""Similarity from which on a pair is compared exactly."""
PERMUTATIONS = 64
"""Number of hash functions of MinHash."""
MAX_TRAIN, MAX_SCORED, MAX_CHARACTERS = 20_000, 2_000, 1_000
"""Numbers of rows, and of characters of a text, that are compared."""
SHARE = 0.01
"""Share of an evaluation's rows from which on they matter for the score."""
WORD = re.compile(r"\w+")


def near_duplicates(prepared: Prepared, reporter: Reporter) -> Iterator[Finding]:
    """Findings for test and validation rows of which training has nearly the same row."""
    splits, task = prepared.splits, prepared.recipe.task
    train = splits.train[:MAX_TRAIN]
    compared = _Index(train, task, reporter)
    for name in ("test", "validation"):
        rows, ids = splits.named()[name][:MAX_SCORED], splits.ids_of(name)
        pairs = [(i, near) for i, row in enumerate(rows) if (near := compared.nearest(row)) is not None]
        if len(pairs) < 2 or len(pairs) < SHARE * len(rows):
            continue
        i, near = pairs[0]
        yield Finding(
            "overlap of train and test",
            f"data.{name}: {len(pairs)} rows are nearly the same as a training row, so the score is too optimistic",
            f"{len(pairs) / len(rows):.1%} of {len(rows)} {name} rows have a training row with a Jaccard similarity of"
            f" {SAME} or more, for example row {ids[i]} and training row {splits.ids_of('train')[near]}",
            f"pefttools train RECIPE data.{name}=OTHER_ROWS",
        )


class _Index:
    """Training rows by their similarity."""

    def __init__(self, rows: Sequence[Row], task: Fields, reporter: Reporter) -> None:
        from datasketch import MinHashLSH

        self.rows, self.task = rows, task
        self.lsh = MinHashLSH(threshold=BANDED, num_perm=PERMUTATIONS)
        with reporter.bar("comparing rows", len(rows), "rows") as bar, self.lsh.insertion_session() as session:
            for number, row in enumerate(rows):
                session.insert(number, _minhash(self._texts(row)))
                bar.advance(1)

    def nearest(self, row: Row) -> int | None:
        """Index of a training row that is nearly the same, but not equal."""
        texts = self._texts(row)
        candidates: list[Any] = self.lsh.query(_minhash(texts))
        for number in sorted(candidates):
            other = self.rows[number]
            if key(other, self.task) != key(row, self.task) and _alike(texts, self._texts(other)):
                return number
        return None

    def _texts(self, row: Row) -> list[str]:
        return [" ".join(WORD.findall(part[:MAX_CHARACTERS].lower())) for part in key(row, self.task)]


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def _minhash(texts: Sequence[str]) -> MinHash:
    from datasketch import MinHash

    made = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    made.update_batch([one.encode() for text in texts for one in _shingles(text)])
    return made


def _alike(texts: Sequence[str], others: Sequence[str]) -> bool:
    """Whether each text is nearly the same as its counterpart."""
    if len(texts) != len(others):
        return False
    pairs = ((_shingles(one), _shingles(other)) for one, other in zip(texts, others, strict=True))
    return all(len(a & b) >= SAME * len(a | b) for a, b in pairs)
