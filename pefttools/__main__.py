"""`python -m pefttools`, which launchers need."""

from pefttools.cli import main

if __name__ == "__main__":
    main()
