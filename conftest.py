"""Which modules have doctests to collect: those whose library is there."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("jax") else ["mfac_linalg/jax/*"]
