"""The recipe: its sections and their settings, overrides, and where every value came from."""
