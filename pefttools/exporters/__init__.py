"""Exporters: one module each. `verify` checks every artifact before its folder appears."""

from pefttools.registry import Registry

exporters: Registry = Registry("exporter", __name__, "Exporter")
