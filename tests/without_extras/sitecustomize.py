"""Hides the modules named in HIDDEN_MODULES, as if they were not installed; see tests/test_extras.py.

Python imports this file at its start if its folder is on PYTHONPATH, also in processes that the first one starts.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

HIDDEN = {*os.environ["HIDDEN_MODULES"].split(",")}


class Hiding(PathFinder):
    """Finds what is on the path except the hidden modules."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
