"""Pretrained models: where their files are, how they are loaded, and their heads, vocabularies and quantised matrices."""
