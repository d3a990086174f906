"""What is learnt: one file a task, each with its fields, head, encoding, loss, decoding and metrics."""

from pefttools.registry import Registry

tasks: Registry = Registry("task", __name__, "Task")
