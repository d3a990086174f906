"""Pretrained models: where their files lie, how they are loaded, and what a head, a vocabulary or a quantised matrix is."""
