"""Imports for worker processes, done once by the server from which they are forked (see `subprocesses`)."""

import importlib
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that a terminal interrupts ends this one

from pefttools.bases.loading import prepare_libraries  # noqa: E402
from pefttools.imports import import_peft, importing  # noqa: E402

NEEDED = (
    "accelerate", "datasets", "evaluate", "sklearn.metrics", "pefttools.training.driver",
    "pefttools.training.weight_change", "pefttools.exporters.verify",
)  # fmt: skip
with importing():
    prepare_libraries()
    import_peft()
    for name in NEEDED:
        importlib.import_module(name)
