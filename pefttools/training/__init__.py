"""A training run: its folder, its preparation, the training loop, and speedups."""
