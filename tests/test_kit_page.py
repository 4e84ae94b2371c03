"""docs/testing.md: its figures are those of `python -m benchmarks.kit`."""

import json

from benchmarks.kit.__main__ import PAGE, RESULTS
from benchmarks.kit.defects import DEFECTS
from benchmarks.kit.page import with_figures

FIGURES = json.loads(RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_written_from_the_figures():
    """``python -m benchmarks.kit --page`` writes it."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_figures(page, FIGURES) == page


def test_every_defect_was_looked_for_and_found():
    assert [case["name"] for case in FIGURES["defects"]] == [defect.make.__name__ for defect in DEFECTS]
    assert all(f"FAILED {case['check']}" in case["text"] for case in FIGURES["defects"])


def test_other_packages_were_looked_at():
    assert [peer["package"] for peer in FIGURES["peers"]] == ["linear_operator", "curvlinops-for-pytorch"]
