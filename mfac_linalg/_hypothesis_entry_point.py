"""What Hypothesis calls when it is imported; installed as a module of its own, so that it imports nothing heavy."""

import sys
from importlib import import_module


def register() -> None:
    """Register strategies if mfac_linalg is there already; if not, it does so itself when it is imported."""
    if "mfac_linalg" in sys.modules:
        import_module("mfac_linalg.testing._registration")
