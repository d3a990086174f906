"""Sphinx' settings of the English site, whose source folder is the repository; `make docs` builds it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generator.places import ENGLISH_START, ROOT
from generator.shared_settings import shared_settings

globals().update(shared_settings())
language = "en"
root_doc = ENGLISH_START
html_title = "pefttools"
FOLDERS = ("docs", "benchmarks", "examples")
include_patterns = ["*.md", *(f"{folder}/**.md" for folder in FOLDERS)]
exclude_patterns = [
    *(folder.name for folder in ROOT.iterdir() if folder.is_dir() and folder.name not in FOLDERS),
    "docs/zh",
]
default_role = "code"  # docstrings have code in single backquotes
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!pefttools\.).*"),  # names of other libraries, whose sites are elsewhere
    ("py:class", r".*\.[A-Z]"),  # type variables
]
