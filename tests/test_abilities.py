"""The table of docs/backends.md: every cell tried on what is installed."""

import re

import pytest

from tests import abilities
from tests.backends import BACKENDS

TEXT = abilities.PAGE.read_text(encoding="utf-8")
CELLS = abilities.cells(TEXT)
PRESENT = [(i, name) for i, name in enumerate(abilities.COLUMNS.values()) if not abilities.BY_NAME[name].missing]


@pytest.mark.parametrize("ability", abilities.ABILITIES)
@pytest.mark.parametrize(("column", "name"), PRESENT, ids=lambda part: str(part))
def test_a_cell_says_what_a_trial_finds(ability, column, name):
    try:
        found = abilities.outcome(ability, abilities.BY_NAME[name])
    except ModuleNotFoundError as error:  # ml_dtypes
        pytest.skip(f"needs {error.name}")
    stated = CELLS[ability][column]
    assert found == stated or stated == "not run"


def test_the_table_has_every_ability_and_no_other_row():
    others = ["", "lowest version", "newest version tested", "has run on a GPU"]
    assert sorted(CELLS) == sorted([*others, *abilities.ABILITIES])
    assert CELLS[""] == list(abilities.COLUMNS)
    assert {cell for name in abilities.ABILITIES for cell in CELLS[name]} <= {"yes", "no", "–", "not run"}


def test_every_library_of_the_tests_has_a_column():
    tried = {abilities.BY_NAME[name].library for name in abilities.COLUMNS.values()}
    assert tried == {backend.library for backend in BACKENDS}


def test_what_has_not_been_tried_is_on_a_gpu():
    for name in abilities.ABILITIES:
        for cell, column in zip(CELLS[name], abilities.COLUMNS.values(), strict=True):
            assert cell != "not run" or abilities.BY_NAME[column].needs_gpu, (name, column)


def test_versions_and_runs_on_a_gpu_are_those_of_the_files():
    assert CELLS["lowest version"] == abilities.lowest_versions()
    assert CELLS["has run on a GPU"] == [abilities.has_run_on_gpu(name) for name in abilities.COLUMNS.values()]
    for low, high in zip(CELLS["lowest version"], CELLS["newest version tested"], strict=True):
        if low != "any" and high != "not run":
            assert [int(x) for x in re.findall(r"\d+", low)] <= [int(x) for x in re.findall(r"\d+", high)]
