"""`pefttools`, and `python -m pefttools`, which launchers need."""

import sys

from pefttools import signals


def main() -> None:
    """Run the command line in `sys.argv`; exits with its exit code."""
    signals.install()
    try:
        from pefttools.cli import main as command

        code = command()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
