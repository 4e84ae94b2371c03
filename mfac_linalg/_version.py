"""The version, for the package, its build and the files that it writes."""

__version__ = "0.1.0"
