"""Which strategy works on which architecture for which task: tried on tiny models, and kept as a matrix."""
