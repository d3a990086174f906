"""How little of the model changes: one file a strategy."""

from pefttools.registry import Registry

strategies: Registry = Registry("strategy", __name__, "Strategy")
