"""Timings of mfac_linalg beside the paper's recursion and the machine's own limits; see README.md."""
