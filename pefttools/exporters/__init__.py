"""What leaves the house: one file an exporter, each proven by `verify` before it appears."""

from pefttools.registry import Registry

exporters: Registry = Registry("exporter", __name__, "Exporter")
