"""Experiments: what the inverses are good for, measured against what really happens."""
