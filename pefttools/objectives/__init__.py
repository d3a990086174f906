"""Objectives: changes of a training step's loss or gradient, one file per objective."""

from pefttools.registry import Registry

objectives: Registry = Registry("objective", __name__, "Objective")
