"""Rewritten copies of the rows to train on: one file a way of rewriting a text."""

from pefttools.registry import Registry

augmentations: Registry = Registry("augmentation", __name__, "Augmentation")
