"""The tasks, one file each: fields of a row, head, encoding, loss, decoding and metrics."""

from pefttools.registry import Registry

tasks: Registry = Registry("task", __name__, "Task")
