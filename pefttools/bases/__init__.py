"""Pretrained models: finding and loading their files, heads, vocabularies and quantised matrices."""
