"""``docs/performance.md`` and its pictures, from the file of figures alone: ``python -m benchmarks.report``."""
