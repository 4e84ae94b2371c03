"""One set of figures per session, printed as a table when the session ends."""

from __future__ import annotations

import pytest

from benchmarks.figures import Figures

FIGURES = pytest.StashKey[Figures]()


def pytest_configure(config: pytest.Config) -> None:
    """Start an empty set of figures."""
    config.stash[FIGURES] = Figures()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Return the figures of this session."""
    return pytestconfig.stash[FIGURES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures, with their ratios to the machine's limits and to the recursions."""
    figures = config.stash[FIGURES]
    if figures:
        terminalreporter.section("mfac_linalg beside the machine's limits and the paper's recursion")
        terminalreporter.write_line(figures.table())
