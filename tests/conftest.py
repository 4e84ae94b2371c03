"""Fixtures over the one list of backends, and the Hypothesis profiles."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.backends import AVAILABLE, FLAVOURS, Backend, flavour_name
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names of tests that differ from process to process: those that run in parallel would not agree."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        msg = f"a name of a test must not contain an address; got {unstable[0]}. Pass `ids`."
        raise pytest.UsageError(msg)
