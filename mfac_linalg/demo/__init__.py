"""The library at work on a small real network: ``python -m mfac_linalg.demo``."""
