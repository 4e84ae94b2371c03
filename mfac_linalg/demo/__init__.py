"""The library applied to a small real network: ``python -m mfac_linalg.demo``."""
