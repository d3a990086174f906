"""The commands `pefttools` and `python -m pefttools`; launchers (torchrun, accelerate) need the latter."""

import gc
import sys

from pefttools import imports, signals


def main() -> None:
    """Run the command line in `sys.argv`, then exit with its exit code."""
    signals.install()
    try:
        with imports.importing():
            from pefttools.cli import main as command

        code = command()
    except (KeyboardInterrupt, Exception) as error:
        if not isinstance(error, KeyboardInterrupt) and not signals.came:  # a library may turn one into another error
            raise
        sys.stderr.write("interrupted\n")
        code = 130
    gc.freeze()  # saves time at exit: Python does not search the libraries for garbage
    sys.exit(code)


if __name__ == "__main__":
    main()
