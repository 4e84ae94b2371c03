"""What public objects look like in a notebook: tables of HTML that parses, with what matters."""

from html.parser import HTMLParser

import numpy as np
import pytest

import mfac_linalg as ml
from benchmarks.kit.defects import Textbook
from mfac_linalg.pruning import prune
from mfac_linalg.testing import Oracle, check_inverse, make_problem


class Cells(HTMLParser):
    """The texts of a page by element, and whether every element that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1], data))

    def of(self, tag):
        return [text for element, text in self.texts if element == tag]


def pruned():
    rng = np.random.default_rng(0)
    return prune(rng.standard_normal(12), lambda *_: rng.standard_normal((5, 12)), sparsity=0.5, steps=2, damping=0.1)


def state():
    return pytest.importorskip("mfac_linalg.jax", reason="needs jax").SlidingWindowState(3, 5, 0.1)


def unravel():
    return pytest.importorskip("mfac_linalg.torch", reason="needs torch").Unravel({"a<b": (2, 3), "bias": (4,)})


def optimizer():
    torch = pytest.importorskip("torch", reason="needs torch")
    return pytest.importorskip("mfac_linalg.torch").MFAC(torch.nn.Linear(3, 2).parameters(), lr=0.25)


OBJECTS = {
    "static": (lambda: ml.WoodburyRankOneInverse(np.eye(2, 5), 0.5), "WoodburyRankOneInverse", ["m", "2", "d", "5"]),
    "blocks": (lambda: ml.BlockDiagonalInverse(np.eye(2, 6), 0.5, block_sizes=3), "BlockDiagonalInverse", ["6", "0.5"]),
    "window": (lambda: ml.SlidingWindowInverse(4, 7, 0.5), "SlidingWindowInverse", ["m", "0", "7"]),
    "forward": (lambda: ml.WoodburyRankOneInverse(np.eye(2, 5), 0.5).forward, "", ["d", "5", "damping", "0.5"]),
    "state": (state, "SlidingWindowState", ["d", "5", "damping", "0.1"]),
    "top-k": (lambda: ml.TopK(0.25, dtype="bfloat16"), "TopK", ["0.25", "65,536", "bfloat16", "yes"]),
    "pruned": (pruned, "Pruned: 12 weights, 2 steps", ["sparsity", "1", "2", "0.5", "not computed"]),
    "step": (lambda: pruned().steps[-1], "Step", ["sparsity", "0.5"]),
    "unravel": (unravel, "Unravel: d = 10", ["a<b", "2 × 3", "6", "bias", "4"]),
    "optimizer": (optimizer, "MFAC", ["parameters", "8", "lr", "0.25"]),
    "problem": (lambda: make_problem(3), "Problem", ["m", "6", "κ", "100"]),
    "result": (
        lambda: check_inverse(Textbook, make_problem(0), checks=["symmetric"])[0],
        "symmetric",
        ["passed", "limit", "30"],
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_a_table_with_its_facts(name):
    make, caption, facts = OBJECTS[name]
    page = Cells(make()._repr_html_())
    assert page.texts
    (title,) = page.of("caption")
    assert caption in title
    assert set(facts) <= {*page.of("th"), *page.of("td")}


def test_results_are_a_list_and_a_table_with_a_row_a_check_and_the_lines_of_its_failures():
    problems = [make_problem(seed, kappa=1e5, dtype="float32") for seed in range(3)]
    results = check_inverse(Textbook, problems, on_fail=None, expected_failures={"refusal": "it checks nothing"})
    assert isinstance(results, list)
    page = Cells(results._repr_html_())
    (title,) = page.of("caption")
    statuses = [result.status for result in results]
    failed = {result.check for result in results if result.status == "failed"}
    heading = f"{statuses.count('failed')} of {len(statuses) - statuses.count('skipped')} checks failed"
    assert title == f"{heading}, {len(failed)} of them different"
    cells = page.of("td")
    assert [cell for cell in cells if cell in {r.check for r in results}] == list(
        dict.fromkeys(r.check for r in results)
    )
    assert "3 failed" in cells
    assert "3 expected failure" in cells
    (lines,) = page.of("pre")
    assert len(lines.splitlines()) == len(failed)
    assert all(line.startswith("check_inverse(make, make_problem(") for line in lines.splitlines())


def test_results_without_a_failure_say_so():
    page = Cells(check_inverse(lambda p: p.oracle.solve, make_problem(0), checks=["stable: *"])._repr_html_())
    assert page.of("caption") == ["4 checks passed"]
    assert not page.of("pre")


def test_a_long_table_shows_its_ends():
    torch = pytest.importorskip("mfac_linalg.torch", reason="needs torch")
    page = Cells(torch.Unravel({f"layer{i}": (i + 1,) for i in range(200)})._repr_html_())
    cells = page.of("td")
    assert {"layer0", "layer199", "…"} <= set(cells)
    assert "layer100" not in cells


def test_a_state_of_jax_has_a_table_as_a_batch_in_a_trace_and_as_a_tree():
    jax = pytest.importorskip("jax", reason="needs jax")
    batch = jax.vmap(lambda g: state().append(g))(jax.numpy.ones((3, 5)))
    seen = [batch._repr_html_(), jax.tree.map(lambda _: None, state())._repr_html_()]
    jax.jit(lambda traced: seen.append(traced._repr_html_()))(state())
    pages = [Cells(text) for text in seen]
    assert [page.of("caption") for page in pages] == [["SlidingWindowState"]] * 3
    assert [("kappa" in page.of("th")) for page in pages] == [True, False, True]
    near = state().append(100 * jax.numpy.ones(5))
    assert "near the limit 8.4e+05 of float32" in near._repr_html_()


def test_the_oracle_shows_its_facts_and_no_values():
    oracle = Oracle(np.full((2, 5), 0.123), np.full(5, 0.5), normalization="sum")
    (text,) = Cells(oracle._repr_html_()).of("code")
    assert text == repr(oracle)
    for fact in ("m=2", "d=5", "one per parameter", "normalization='sum'"):
        assert fact in text
    assert "0.123" not in text
