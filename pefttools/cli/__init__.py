"""The command line. Commands import heavy libraries only when they need them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError

from pefttools import extras
from pefttools.cli import (
    calibration,
    compare,
    completion,
    display,
    environment,
    explaining,
    inspect,
    new,
    proofs,
    reports,
    runs,
    serving,
    tuning,
)
from pefttools.cli.base import app
from pefttools.device import is_out_of_memory
from pefttools.errors import EnvironmentFault, Interrupted, UserError
from pefttools.registry import plugin_problems

FULL = (errno.ENOSPC, errno.EDQUOT)

# importing a module registers its commands
__all__ = [
    "app",
    "calibration",
    "compare",
    "completion",
    "environment",
    "explaining",
    "inspect",
    "main",
    "new",
    "proofs",
    "reports",
    "run",
    "runs",
    "serving",
    "tuning",
]


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    # cyclopts would read a lone - as an option
    words = ["/dev/stdin" if w == "-" and i and arguments[i - 1] != "--text" else w for i, w in enumerate(arguments)]
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        display.problems([" ".join(str(error).split())])
        return 2
    except UserError as error:
        display.problems(error.problems)
        return 2
    except ModuleNotFoundError as error:
        if (message := extras.failed_import(error)) is None:
            raise
        display.problems([message])
        return 2
    except Interrupted as error:
        display.interrupted(str(error))
        return 130
    except KeyboardInterrupt:
        display.interrupted("interrupted")
        return 130
    except BrokenPipeError:
        return 0
    except EnvironmentFault as error:
        display.problems([str(error)])
        return 3
    except OSError as error:
        if error.errno not in FULL:
            raise
        display.problems([f"{error.filename or 'the disk'}: {error.strerror}"])
        return 3
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        display.problems([f"there is not enough memory: {str(error).strip().partition(chr(10))[0] or 'MemoryError'}"])
        return 3
    return 0


def main() -> int:
    """Run the command line in `sys.argv`; returns its exit code."""
    display.accept_any_character()
    display.warnings(plugin_problems())
    code = run(sys.argv[1:])
    return display.flushed() or code
