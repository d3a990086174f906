"""Checks of rows and settings that cost little, so that `train` runs them and warns; `doctor` runs them too.

A check yields one `Finding` for each thing that is wrong, and nothing on sound rows.
"""
