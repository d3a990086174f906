"""A training run: its folder, what is prepared for it, the loop, and what makes its steps fast."""
