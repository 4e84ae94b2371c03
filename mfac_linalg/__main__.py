"""``python -m mfac_linalg``: versions, and a check of every installed array library against dense inverses."""

import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ._show_versions import show_versions
from ._static.woodbury import WoodburyRankOneInverse
from .testing import CheckResult, Problem, check_inverse, default_problems

LIBRARIES = {
    "numpy": ("numpy", "asarray"),
    "torch": ("torch", "asarray"),
    "jax": ("jax.numpy", "asarray"),
    "cupy": ("cupy", "asarray"),
    "dask": ("dask.array", "asarray"),
    "array_api_strict": ("array_api_strict", "asarray"),
}
"""Packages, and the function of each that takes NumPy's arrays."""
ARRAYS = ("right formula: *", "stable: *", "dtype", "inputs", "diagonal", "factor")


def main() -> int:
    """Print what is installed and what it answers; 1 if an answer is wrong."""
    show_versions()
    print()
    is_right = True
    for name, asarray in _installed():
        start = time.perf_counter()
        results = check_inverse(_maker(asarray), _problems(), checks=ARRAYS, on_fail=None, asarray=asarray)
        failed = [result for result in results if result.status == "failed"]
        seconds = time.perf_counter() - start
        print(f"{name:<22}{_verdict(results, failed)} in {seconds:.1f} s", flush=True)
        print("".join(f"{result}\n" for result in failed), end="")
        is_right &= not failed
    return int(not is_right)


def _problems() -> list[Problem]:
    return default_problems("float32")[1::2]


def _maker(asarray: Callable[[Any], Any]) -> Callable[[Problem], WoodburyRankOneInverse]:
    return lambda problem: WoodburyRankOneInverse(asarray(problem.gradients), problem.damping)


def _verdict(results: list[CheckResult], failed: list[CheckResult]) -> str:
    done = sum(result.status != "skipped" for result in results)
    return f"{done} checks passed" if not failed else f"{len(failed)} of {done} checks FAILED"


def _installed() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Each library that can be used, with the way to its arrays; why another one cannot is printed."""
    for name, (module, function) in LIBRARIES.items():
        if find_spec(name) is None:
            print(f"{name:<22}is not installed")
            continue
        try:
            asarray = getattr(import_module(module), function)
            asarray(default_problems()[0].gradients)
        except Exception as error:  # CuPy without a device, for one
            print(f"{name:<22}cannot be used: {': '.join([type(error).__name__, *str(error).splitlines()[:1]])}")
            continue
        yield name, asarray


if __name__ == "__main__":
    sys.exit(main())
