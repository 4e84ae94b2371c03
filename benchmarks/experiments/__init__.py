"""What people do with the library, on real models: ``python -m benchmarks.experiments.NAME --help``."""
