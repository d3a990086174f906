"""Sphinx' settings of the Chinese site; `make docs` builds it into the folder `zh` of the English one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from generator.places import chinese_start
from generator.shared_settings import shared_settings

globals().update(shared_settings())
language = "zh_CN"
root_doc = chinese_start()
html_title = "pefttools 中文文档"
locale_dirs = ["locale"]
exclude_patterns = ["locale"]
nitpicky = True
