"""Recipes: their sections and settings, overrides, and the origin of every value."""
