"""Which files hold tests, and one line at the end about what was not there to test with."""

import re
from importlib.util import find_spec
from typing import Any

collect_ignore_glob = [f"mfac_linalg/{library}/*" for library in ("torch", "jax") if find_spec(library) is None]


def wanting(reason: str) -> str:
    """The library, device or folder that a skipped test asked for; the whole reason where it names none."""
    found = re.match(r"Skipped: (?:needs |could not import ')([^':]+)", reason)
    return found[1].partition(".")[0] if found else reason.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in one line what the tests that did not run were waiting for; ``-rs`` names them one by one."""
    skipped = terminalreporter.stats.get("skipped", [])
    if reasons := sorted({wanting(report.longrepr[2]) for report in skipped}, key=str.lower):
        terminalreporter.write_line(f"Not tested, because it is not here: {', '.join(reasons)}.")
