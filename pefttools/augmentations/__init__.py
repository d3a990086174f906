"""Augmentations: rewritten copies of training rows, one file per method."""

from pefttools.registry import Registry

augmentations: Registry = Registry("augmentation", __name__, "Augmentation")
