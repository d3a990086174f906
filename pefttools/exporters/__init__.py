"""Exporters: what a run can be written as, one file each. Every artifact is checked before its folder appears."""

from pefttools.registry import Registry

exporters: Registry = Registry("exporter", __name__, "Exporter")
