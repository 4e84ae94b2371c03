"""The part `suite`: the tests whose names have a backend of the tests' list in them."""

from __future__ import annotations

import importlib.util
import time

import pytest

from benchmarks.gpu.device import processes
from benchmarks.gpu.libraries import Library
from benchmarks.gpu.record import Record

MOST_JOBS, SHOWN, SAVE_SECONDS = 16, 20, 2.0
DRY_FILES = ("tests/test_backends.py",)
LAST_LINES = 12


class Recorder:
    """A plugin of pytest that saves the outcomes as they come, and stops when no time is left.

    Parameters
    ----------
    record : Record
        Where they are saved.
    """

    def __init__(self, record: Record) -> None:
        self.record, self.saved = record, time.monotonic()
        self.counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
        self.failures: list[dict[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: when it was called, or when it did not come to that."""
        if report.when == "call" or not report.passed:
            self.counts[report.outcome] += 1
        if report.failed and len(self.failures) < SHOWN:
            lines = report.longreprtext.splitlines()
            self.failures.append({"test": report.nodeid, "text": "\n".join(lines[-LAST_LINES:])})
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()
        if self.record.is_late:
            pytest.exit("out of time", returncode=pytest.ExitCode.INTERRUPTED)

    def save(self) -> None:
        """Save what there is."""
        self.saved = time.monotonic()
        self.record.update(**self.counts, failures=self.failures)


def suite(library: Library, record: Record) -> None:
    """Run the tests of a library on its device; in several processes where pytest-xdist is installed."""
    recorder = Recorder(record)
    arguments = ["-q", "--tb=short", "-p", "no:cacheprovider", "-k", library.backend]
    arguments += ["tests"] if library.on_gpu else DRY_FILES
    if library.on_gpu and importlib.util.find_spec("xdist"):
        arguments += ["-n", str(processes(MOST_JOBS))]
    code = pytest.main(arguments, plugins=[recorder])
    recorder.save()
    if code == pytest.ExitCode.OK:
        record.update(status="passed")
    else:
        record.update(status="out of time" if code == pytest.ExitCode.INTERRUPTED else "failed", pytest_exit=int(code))
