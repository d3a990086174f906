"""What makes a step of the gradients: one file an optimizer."""

from pefttools.registry import Registry

optimizers: Registry = Registry("optimizer", __name__, "Optimizer")
