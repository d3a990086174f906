"""What fresh processes need, imported once by the server that they are forked from (see `fresh`)."""

import importlib

from pefttools.models import prepare_libraries

prepare_libraries()  # before peft imports bitsandbytes, which says what it lacks
NEEDED = (
    "peft", "accelerate", "evaluate", "sklearn.metrics", "pefttools.train", "pefttools.bench.moved",
    "pefttools.exporters.verify",
)  # fmt: skip
for name in NEEDED:
    importlib.import_module(name)
