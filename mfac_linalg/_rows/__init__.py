"""Gradient rows: everything d-sized, behind one small protocol."""
