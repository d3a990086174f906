"""What fresh processes need, imported once by the server that they are forked from (see `fresh`)."""

import importlib
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C here too; the starting process ends this one

from pefttools.models import prepare_libraries  # noqa: E402

prepare_libraries()  # before peft imports bitsandbytes, which says what it lacks
NEEDED = (
    "peft", "accelerate", "evaluate", "sklearn.metrics", "pefttools.train", "pefttools.bench.moved",
    "pefttools.exporters.verify",
)  # fmt: skip
for name in NEEDED:
    importlib.import_module(name)
