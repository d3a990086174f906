"""Imports for the process that verifies an artifact, done before it gets its work (see `subprocesses.begin`)."""

import importlib

from pefttools.bases.loading import prepare_libraries
from pefttools.imports import importing

with importing():
    prepare_libraries()
    for name in ("transformers.modeling_utils", "transformers.generation.utils", "pefttools.exporters.verify"):
        importlib.import_module(name)
