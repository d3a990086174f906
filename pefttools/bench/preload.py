"""What fresh processes need, imported once by the server that they are forked from (see `fresh`)."""

import importlib
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C here too; the starting process ends this one

from pefttools.bases.loading import prepare_libraries  # noqa: E402
from pefttools.imports import import_peft, importing  # noqa: E402

NEEDED = (
    "accelerate", "datasets", "evaluate", "sklearn.metrics", "pefttools.training.driver",
    "pefttools.bench.weight_change", "pefttools.exporters.verify",
)  # fmt: skip
with importing():
    prepare_libraries()
    import_peft()
    for name in NEEDED:
        importlib.import_module(name)
