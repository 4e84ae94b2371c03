"""The programs in the documentation run as they stand."""

import re
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("optimizer.md", "pruning.md", "recipes.md")
PROGRAMS = {
    f"{page}-{index}": text
    for page in PAGES
    for index, text in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S))
}


@pytest.fixture(params=PROGRAMS)
def ran(request):
    """The name of a program, and the names that it leaves."""
    for library in set(re.findall(r"^import (torch|jax|optax)$", PROGRAMS[request.param], re.M)):
        pytest.importorskip(library)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(PROGRAMS[request.param], request.param, "exec"), names)
    return request.param, names


def test_a_program_runs_and_finds_what_the_text_says(ran):
    name, names = ran
    if name == "optimizer.md-0":
        assert len(names["optimizer"].windows[0]) == 8
    if name == "optimizer.md-1":
        assert float(names["params"]["w"].max()) < 1
    if name == "pruning.md-0":
        assert names["found"].steps[-1].sparsity == 0.5
    if name == "pruning.md-1":
        assert names["two_of_four"].sum() == 500
        assert (names["pruned"] == 0).sum() == 500
    if name == "recipes.md-0":
        inside, outside = names["variances"]
        assert outside > 10 * inside
        assert names["best"] not in (min(names["dampings"]), max(names["dampings"]))
    if name == "recipes.md-1":
        assert names["losses"][-1] < 0.8 * names["losses"][0]
