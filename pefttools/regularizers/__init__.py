"""Regularizers: terms of the loss, or changes of weights, that keep weights small or near their start; one file
each."""

from pefttools.registry import Registry

regularizers: Registry = Registry("regularizer", __name__, "Regularizer")
