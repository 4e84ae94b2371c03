"""Fixtures over the one list of backends, the Hypothesis profiles, and the options that leave tests out."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.backends import AVAILABLE, BACKENDS, FLAVOURS, Backend, flavour_name
from tests.cases import BUILT, Built, build, built_name

collect_ignore = [path.name for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_")]
"""Modules that the tests import, and programs: not tests, and some need libraries that are not installed."""

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
REPEATABLE = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": QUIET}
settings.register_profile("deterministic", max_examples=40, **REPEATABLE)
settings.register_profile("brief", max_examples=15, **REPEATABLE)
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


@pytest.fixture(params=AVAILABLE, ids=repr)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each library and device that can run here."""
    return request.param


@pytest.fixture(params=FLAVOURS, ids=flavour_name)
def flavour(request: pytest.FixtureRequest) -> tuple[Backend, str]:
    """Each backend with each of its dtypes."""
    return request.param


@pytest.fixture(params=BUILT, ids=built_name)
def built(request: pytest.FixtureRequest) -> Built:
    """Each case on each backend in each dtype, with its oracle."""
    return build(*request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``pytest --leave-out=numpy --leave-out=array_api_strict``: the tests on other backends, and those on none."""
    parser.addoption(
        "--leave-out",
        action="append",
        default=[],
        choices=sorted({backend.library.partition(".")[0] for backend in BACKENDS}),
        help="no tests on arrays of this library; may be repeated",
    )
    parser.addoption(
        "--passed",
        type=Path,
        help="what `pytest -rp` printed elsewhere: no tests that passed there, but those marked `surroundings`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The mark of tests that `--passed` does not leave out."""
    config.addinivalue_line("markers", "surroundings: what it tests depends on which libraries are installed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse names of tests that differ from process to process: those that run in parallel would not agree."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        msg = f"a name of a test must not contain an address; got {unstable[0]}. Pass `ids`."
        raise pytest.UsageError(msg)
    left_out, passed = set(config.getoption("--leave-out")), _passed(config.getoption("--passed"))
    kept, deselected = [], []
    for item in items:
        libraries = set(_libraries_of(item))
        is_elsewhere = libraries and libraries <= left_out
        is_repeated = item.nodeid in passed and item.get_closest_marker("surroundings") is None
        (deselected if is_elsewhere or is_repeated else kept).append(item)
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = kept


def _passed(output: Path | None) -> set[str]:
    """The names of the tests that a run of ``pytest -rp`` says have passed."""
    lines = output.read_text(encoding="utf-8").splitlines() if output is not None else []
    return {line.removeprefix("PASSED ") for line in lines if line.startswith("PASSED ")}


def _libraries_of(item: pytest.Item) -> Iterator[str]:
    """The libraries of the backends among the parameters of a test."""
    parameters: Iterable[Any] = item.callspec.params.values() if hasattr(item, "callspec") else ()
    for parameter in parameters:
        for part in parameter if isinstance(parameter, tuple) else (parameter,):
            if isinstance(part, Backend):
                yield part.library.partition(".")[0]
