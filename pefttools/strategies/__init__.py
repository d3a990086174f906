"""How little of the model changes: one file a strategy."""

from pefttools.registry import Registry
from pefttools.synonyms import unknown_strategy

strategies: Registry = Registry("strategy", __name__, "Strategy", unknown_strategy)
