"""Cold starts: seconds from the start of a new process to the end of its first step, or to its end.

pefttools is timed with and without tokenised rows in its cache; the script with Trainer tokenises every time. The
system's page cache contains the files, and base and data are already downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cases import Order, recipe_of
from processes import measure_in_process

from pefttools.sources.cache import cache_dir

COMMANDS = {
    "python": ("-c", "pass"),
    "import": ("-c", "import pefttools"),
    "help": ("-m", "pefttools", "--help"),
}
TOKENISED = "tokenised"


def measure(order: Order) -> dict[str, Any]:
    """`seconds` from the start of the process, and `scoring_seconds`, the part of the baseline evaluation."""
    if order.contender in COMMANDS:
        begun = time.perf_counter()
        subprocess.run([sys.executable, *COMMANDS[order.contender]], check=True, capture_output=True)
        return {"seconds": time.perf_counter() - begun}
    cache = Path(order.folder) / "cold" / "cache"
    _linked(cache)
    if order.contender == "pefttools_empty":
        shutil.rmtree(cache / TOKENISED, ignore_errors=True)
    elif order.contender == "pefttools_cached" and not (cache / TOKENISED).exists():
        _started(order, cache)
    return _started(order, cache)


def _started(order: Order, cache: Path) -> dict[str, Any]:
    begun = time.time()
    found = measure_in_process(order, {"PEFTTOOLS_CACHE": str(cache.absolute())}, first_step=True)
    return {"seconds": found["first_step"] - begun, "scoring_seconds": found["scoring_seconds"]}


def _linked(cache: Path) -> None:
    """Make a cache folder with links to everything in the usual one except tokenised rows."""
    cache.mkdir(parents=True, exist_ok=True)
    for entry in cache_dir().iterdir() if cache_dir().exists() else ():
        if entry.name not in (TOKENISED, "runs") and not (cache / entry.name).exists():
            (cache / entry.name).symlink_to(entry)


def first_step(order: Order) -> dict[str, float]:
    """Runs in the new process: `time.time()` at the end of its first step, and the seconds of evaluations before it."""
    recipe = recipe_of(order, "train.log_every=1", "train.epochs=0.000001")
    ahead = time.time() - time.perf_counter()
    if order.contender == "trainer":
        import trainer

        return {"first_step": ahead + trainer.first_step(recipe), "scoring_seconds": 0.0}
    import ours
    from clock import Clock

    clock = Clock()
    ours.run(recipe, clock=clock)
    return {"first_step": ahead + clock.training.last, "scoring_seconds": clock.scoring_seconds}
