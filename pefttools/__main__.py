"""`pefttools`, and `python -m pefttools`, which launchers need."""

import gc
import sys

from pefttools import imports, signals


def main() -> None:
    """Run the command line in `sys.argv`; exits with its exit code."""
    signals.install()
    try:
        with imports.importing():
            from pefttools.cli import main as command

        code = command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    gc.freeze()  # or Python would look through every library for garbage before it ends
    sys.exit(code)


if __name__ == "__main__":
    main()
