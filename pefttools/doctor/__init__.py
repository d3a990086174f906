"""Silent failures of a recipe or a run: what is wrong, the figures that show it, and a command that corrects it.

`check_up` examines a recipe or a run. The checks that cost little are in `pefttools.checks`, because `train` runs them.
Those here run the model (`near_duplicates` only compares texts).
"""
