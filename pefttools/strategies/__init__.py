"""Strategies: which weights are trained and how, one file each."""

from pefttools.registry import Registry
from pefttools.synonyms import unknown_strategy

strategies: Registry = Registry("strategy", __name__, "Strategy", unknown_strategy)
