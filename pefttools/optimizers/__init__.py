"""Optimizers, one file each."""

from pefttools.registry import Registry

optimizers: Registry = Registry("optimizer", __name__, "Optimizer")
