"""The support matrix: which strategy works on which architecture for which task, measured on tiny models."""
