"""What the process that proves an artifact needs of the libraries, imported before it is asked (see `fresh.begin`)."""

import importlib

from pefttools.imports import importing
from pefttools.models import prepare_libraries

with importing():
    prepare_libraries()
    for name in ("transformers.modeling_utils", "transformers.generation.utils", "pefttools.exporters.verify"):
        importlib.import_module(name)
