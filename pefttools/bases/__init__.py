"""Pretrained models: where their files are, how they are loaded, their heads, vocabularies and quantised matrices."""
