"""Timings of mfac_linalg, the paper's recursion and the limits of the machine; see README.md."""
