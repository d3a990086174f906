"""What a trial's process needs, imported once by the server that trials are forked from."""

import importlib

from pefttools.models import prepare_libraries

prepare_libraries()  # before peft imports bitsandbytes, which says what it lacks
for name in ("peft", "accelerate", "evaluate", "sklearn.metrics", "pefttools.train", "pefttools.bench.moved"):
    importlib.import_module(name)
