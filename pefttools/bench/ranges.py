"""What a search varies: `--search KEY=RANGE`.

train.learning_rate=1e-4..1e-2   numbers; on a logarithmic scale if they span a decade and start above 0
strategy.rank=4..64              whole numbers, because the setting is one
strategy.dropout=0..0.5:linear   the scale can be given: `:linear` or `:log`
strategy=lora,bitfit,adapter     choices; lists are written in brackets: strategy.targets=[query,value],[all]
train.learning_rate=auto         the range that each strategy declares (`lr_range`)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from pefttools.errors import UserError, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

AUTO, LEARNING_RATE = "auto", "train.learning_rate"
DECADE = 10.0
"""From this quotient of its ends on, a range has a logarithmic scale."""
DIGITS = 3
"""Significant digits of a number that is drawn, so that it can be read and typed again."""
MOST_WHOLE = 1000
"""Whole numbers of a range up to which it counts as finite."""
NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
BETWEEN = re.compile(rf"{NUMBER}\.\.{NUMBER}(?::(\w+))?")
LIKE_BETWEEN = re.compile(r"[^,\[\]{}/]*\.\.[^,\[\]{}/]*")
"""What is meant as a range of numbers, though perhaps wrong."""


@dataclass(frozen=True)
class Choices:
    """Values of which one is chosen, as the texts of overrides."""

    texts: tuple[str, ...]

    def ends(self) -> tuple[str, ...]:
        """The texts to check before a search."""
        return self.texts

    def all(self) -> tuple[str, ...]:
        return self.texts

    def draw(self, trial: Trial, name: str) -> str:
        return trial.suggest_categorical(name, self.texts)

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.texts)

    def value(self, text: str) -> Any:
        """The value of a text for Optuna."""
        return text

    def place(self, text: str) -> float:
        """Where it lies on an axis from 0 to 1."""
        return self.texts.index(text) / (len(self.texts) - 1)

    def __str__(self) -> str:
        return ", ".join(self.texts)


@dataclass(frozen=True)
class Numbers:
    """All numbers between two, both included."""

    low: float
    high: float
    is_whole: bool
    is_log: bool

    def ends(self) -> tuple[str, ...]:
        return self.text(self.low), self.text(self.high)

    def all(self) -> tuple[str, ...] | None:
        """All texts; None if they are not finitely many."""
        if not self.is_whole or self.high - self.low >= MOST_WHOLE:
            return None
        return tuple(map(str, range(int(self.low), int(self.high) + 1)))

    def draw(self, trial: Trial, name: str) -> str:
        if self.is_whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high), log=self.is_log))
        return self.text(trial.suggest_float(name, self.low, self.high, log=self.is_log))

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.is_log)
        return FloatDistribution(self.low, self.high, log=self.is_log)

    def value(self, text: str) -> Any:
        return int(text) if self.is_whole else float(text)

    def contains(self, value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high

    def place(self, text: str) -> float:
        low, high, value = (math.log(x) if self.is_log else x for x in (self.low, self.high, float(text)))
        return (value - low) / (high - low)

    def text(self, value: float) -> str:
        """A value, rounded, as the text of an override."""
        if self.is_whole:
            return str(int(value))
        if value not in (self.low, self.high):
            value = min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)
        return repr(float(value))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}, {'logarithmic' if self.is_log else 'linear'}"


Range = Choices | Numbers


def split(word: str) -> tuple[str, str]:
    """Key and range of a `--search` word. Raises UserError when it has no key or no range."""
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"--search: {shown(word)} is not KEY=RANGE; write e.g. train.learning_rate=1e-4..1e-2 or strategy.rank=4,8"
        )
    if not text.strip():
        raise UserError(f"--search: {key}: its range is empty; write e.g. {key}=1e-4..1e-2, or values: {key}=4,8,16")
    return key.strip(), text.strip()


def parse(key: str, text: str, takes_whole: bool, takes_fractions: bool) -> Range:
    """The range of a key.

    Args:
        takes_whole: whether the setting can be a whole number.
        takes_fractions: whether it can be another number.

    Raises:
        UserError: the range is upside down, has one value only, or cannot be read.
    """
    if found := BETWEEN.fullmatch(text):
        low, high, scale = found.groups()
        return _numbers(key, low, high, scale, takes_whole, takes_fractions)
    if LIKE_BETWEEN.fullmatch(text):
        raise UserError(f"--search: {key}: {shown(text)} is not a range; write two numbers, e.g. {key}=1e-4..1e-2")
    texts = tuple(_split_choices(key, text))
    if twice := [one for one in dict.fromkeys(texts) if texts.count(one) > 1]:
        raise UserError(f"--search: {key}: lists {twice[0]} twice; remove one")
    if len(texts) < 2:
        raise UserError(
            f"--search: {key}: has one value only, {shown(text)}; give several ({key}=A,B), a range (A..B), or set it"
            f" for all trials, before --search: {key}={text}"
        )
    return Choices(texts)


def _numbers(key: str, low: str, high: str, scale: str | None, takes_whole: bool, takes_fractions: bool) -> Numbers:
    first, last = float(low), float(high)
    if not (takes_whole or takes_fractions):
        raise UserError(f"--search: {key}: is not a number, so {low}..{high} is no range of it; list values: {key}=A,B")
    if first > last:
        raise UserError(f"--search: {key}: {low}..{high} is upside down; write {key}={high}..{low}")
    if first == last:
        raise UserError(f"--search: {key}: {low}..{high} is one value only; set it for all trials: {key}={low}")
    if math.isinf(last - first):
        raise UserError(f"--search: {key}: {low}..{high} has no end")
    if scale not in (None, "log", "linear"):
        raise UserError(f"--search: {key}: unknown scale {scale!r}; use :log or :linear")
    is_whole = not takes_fractions
    if is_whole and not (first.is_integer() and last.is_integer()):
        raise UserError(f"--search: {key}: is a whole number, so the ends of its range must be; got {low}..{high}")
    if scale == "log" and first <= 0:
        raise UserError(
            f"--search: {key}: {low}..{high} has no logarithmic scale, which starts above 0; start higher"
            f" (e.g. {last / 1000:g}), or write {low}..{high}:linear"
        )
    is_log = scale == "log" or (scale is None and first > 0 and last / first >= DECADE)
    return Numbers(first, last, is_whole, is_log)


def _split_choices(key: str, text: str) -> Iterator[str]:
    """The texts between commas; those inside brackets and quotes do not count."""
    line = f"[{text}]"
    try:
        node = yaml.compose(line, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--search: {key}: {shown(text)} cannot be read ({reason}); put values in quotes") from error
    assert isinstance(node, yaml.SequenceNode)
    for one in node.value:
        is_quoted = isinstance(one, yaml.ScalarNode) and one.style is not None
        part = one.value if is_quoted else line[one.start_mark.index : one.end_mark.index].strip()
        if not part and not is_quoted:
            raise UserError(f"--search: {key}: {shown(text)} has an empty value")
        yield part
