"""The page of figures is written from the file of figures alone."""

import copy
import json
import re

import pytest

from benchmarks.report import __main__ as command
from benchmarks.report import words
from benchmarks.report.cases import LIBRARY, Results
from benchmarks.report.page import PICTURES, written


@pytest.fixture(scope="module")
def held():
    return json.loads(command.FIGURES.read_text(encoding="utf-8"))


@pytest.fixture
def report(tmp_path):
    """The page of a file with these contents."""

    def make(contents):
        path = tmp_path / "peers.json"
        path.write_text(json.dumps(contents), encoding="utf-8")
        return written(Results.read(path))

    return make


def faster(held, seconds, error):
    """The contents, with one peer at one size who takes these seconds and makes this error."""
    changed = copy.deepcopy(held)
    case = next(case for case in changed["cases"] if case["query"] == "random")
    peer = next(c for c in case["contenders"] if "seconds" in c and not c["name"].startswith(LIBRARY))
    peer.update(name="a new peer", seconds=seconds, R=error)
    return changed


def test_the_page_is_that_of_the_figures(capsys):
    """``python -m benchmarks.report`` writes it."""
    assert command.main(["--check"]) == 0
    assert "is written" in capsys.readouterr().out


def test_the_check_sees_a_changed_page(tmp_path):
    page = tmp_path / "performance.md"
    assert command.main(["--check", "--page", str(page)]) == 1
    page.write_text(command.PAGE.read_text(encoding="utf-8").replace("µs", "ms", 1), encoding="utf-8")
    assert command.main(["--check", "--page", str(page)]) == 1
    assert "ms" in page.read_text(encoding="utf-8")


def test_every_row_of_a_table_has_the_cells_of_its_head(held, report):
    sizes = (((8, 100), 5e4), ((8, 100), 1e2))
    cases = [{**case, "m": m, "d": d, "kappa": kappa} for case in held["cases"][:9] for (m, d), kappa in sizes]
    for page in (report(held), report({**held, "cases": cases})):
        for lines in re.findall(r"(?:^\|.*\n)+", page, re.M):
            assert len({line.count("|") for line in lines.splitlines()}) == 1, lines


def test_a_faster_peer_is_listed_by_itself(held, report):
    """With its digits or without them, and in the table of the question."""
    section = report(faster(held, 2e-8, 1.0)).partition("## Where a peer is faster")[2]
    assert re.search(r"\| `matvec`, v random \|.*\| a new peer \| 0\.0200 µs \| 1 \|", section)
    section = report(faster(held, 2e-8, 4321.0)).partition("With R over 30")[2]
    assert re.search(r"\| `matvec`, v random \| a new peer \| 1 \|.*\| 4\.3e3 \|", section)
    assert "a new peer" not in report(faster(held, 1e9, 1.0)).partition("## Where a peer is faster")[2]


def test_a_figure_taken_on_a_busy_machine_is_marked(held, report):
    quiet = copy.deepcopy(held)
    for case in quiet["cases"]:
        for contender in case["contenders"]:
            contender["others"] = 0.0
    assert "~" not in report(quiet)
    case = next(case for case in quiet["cases"] if case["query"] == "build")
    next(c for c in case["contenders"] if c["name"] == LIBRARY)["others"] = 0.3
    assert "unreliable" in report(quiet)
    assert "| ~ " in report(quiet)


def test_a_contender_that_did_not_answer_is_named_with_its_reason(held, report):
    changed = copy.deepcopy(held)
    changed["cases"][0]["contenders"].append({"name": "a new peer", "reason": "needs no_such_library"})
    assert "- a new peer: needs no_such_library (" in report(changed)


def test_a_file_with_one_question_has_a_page(held, report):
    case = next(case for case in held["cases"] if case["query"] == "random")
    page = report({**held, "cases": [case]})
    assert words.TITLES["random"] in page
    assert words.TITLES["step"] not in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.0, "3.00 s"), (0.0123, "12.3 ms"), (4.5e-5, "45.0 µs"), (1e-9, "0.0010 µs"), (123.4, "123 s")],
)
def test_times_have_units(value, text):
    assert words.seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.031, "0.031"), (9.5e4, "9.5e4"), (123, "1.2e2"), (99, "99")])
def test_errors_have_two_digits(value, text):
    assert words.error(value) == text


def test_the_pictures_can_be_drawn_and_are_there(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.report.pictures import draw

    draw(Results.read(command.FIGURES), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(PICTURES)
    assert all((command.PAGE.parent / name).stat().st_size > 10_000 for name in PICTURES)
