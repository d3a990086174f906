"""Runs one part of the benchmark in this process and writes its status and values to a file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
HERE = Path(__file__).parent
sys.path[:0] = [str(place) for place in (HERE, HERE.parent / "speed", HERE.parent, HERE.parents[1])]

import sizes  # noqa: E402
from parts import Skipped, parts_of  # noqa: E402

from pefttools import atomic  # noqa: E402
from pefttools.errors import UserError  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path, help="shared by all parts: models and rows")
    parser.add_argument("answer", type=Path)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    chosen = sizes.SMOKE if arguments.smoke else sizes.FULL
    with tempfile.TemporaryDirectory() as own:
        try:
            values = parts_of(chosen)[arguments.name].run(chosen, arguments.folder, Path(own))
            answer = {"status": "ok", "values": values}
        except Skipped as reason:
            answer = {"status": "skipped", "message": str(reason)}
        except UserError as error:
            answer = {"status": "failed", "message": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"status": "failed", "message": f"{type(error).__name__}: {error}"[:1500]}
    atomic.write_json(arguments.answer, answer)


if __name__ == "__main__":
    main()
