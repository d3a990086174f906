"""What a training step minimizes besides the task's own loss, or how it takes its gradient: one file an objective."""

from pefttools.registry import Registry

objectives: Registry = Registry("objective", __name__, "Objective")
