"""What is added to the loss, or done to the weights, so that they stay small or close: one file a penalty."""

from pefttools.registry import Registry

regularizers: Registry = Registry("regularizer", __name__, "Regularizer")
