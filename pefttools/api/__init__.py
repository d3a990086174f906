"""The Python interface, whose names `import pefttools` offers."""
