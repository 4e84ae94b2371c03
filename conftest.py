"""Which files hold tests, and one line at the end about what was not there to test with."""

import os
import re
from importlib.util import find_spec
from typing import Any

NEEDS = {"torch/*": "torch", "jax/*": "jax", "plot.py": "matplotlib"}
collect_ignore_glob = [f"mfac_linalg/{files}" for files, library in NEEDS.items() if find_spec(library) is None]
os.environ.setdefault("MPLBACKEND", "Agg")  # pictures without a window
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run in as many processes as there are cores: one thread in each
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


def wanting(reason: str) -> set[str]:
    """The libraries, the device or the folder that a skipped test asked for; the whole reason where it names none."""
    text = reason.removeprefix("Skipped: ")
    if text.startswith("got empty parameter set"):  # of backends that are not here, which are named themselves
        return set()
    found = re.search(r"needs (.+?)(?:, which|$)", text) or re.match(r"could not import '([^'.]+)", text)
    return set(found[1].split(", ")) if found else {text}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in one line what the tests that did not run were waiting for; ``-rs`` names them one by one."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    texts = {why[2] if isinstance(why, tuple) else str(why) for why in skipped}
    if reasons := sorted(set().union(*map(wanting, texts)), key=str.lower):
        terminalreporter.write_line(f"Not tested, because it is not here: {', '.join(reasons)}.")
