"""mfac_linalg.plot: what is drawn, on every library, and what is refused."""

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg.pruning import Pruned, prune
from mfac_linalg.pruning.loop import Step
from tests.backends import AVAILABLE

pytest.importorskip("matplotlib", reason="needs matplotlib")
from mfac_linalg import plot

LIBRARIES = [b for b in AVAILABLE if b.name in ("numpy", "strict:device1", "torch:cpu", "jax", "dask")]
GRADIENTS = np.random.default_rng(0).standard_normal((5, 12)).astype("float32")


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def inverse(backend):
    return ml.WoodburyRankOneInverse(backend.asarray(GRADIENTS), 0.5)


def line(ax, label):
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found.get_data()


@pytest.mark.parametrize("backend", LIBRARIES, ids=repr)
def test_a_spectrum_shows_the_eigenvalues_the_damping_and_the_rank(backend, ax):
    assert plot.spectrum(inverse(backend), ax=ax) is ax
    index, values = line(ax, "eigenvalues of F")
    expected = 0.5 + np.linalg.svd(GRADIENTS, compute_uv=False) ** 2 / 5
    assert np.array_equal(index, np.arange(1, 6))
    assert np.allclose(values, expected, rtol=1e-5)
    assert "damping 0.5" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert ax.get_xlabel() == "index (the other 7 equal the damping)"
    assert ax.get_ylabel() == "eigenvalue (squared gradients)"
    rank = next(text.get_text() for text in ax.get_legend().get_texts() if "rank" in text.get_text())
    assert rank == f"effective rank {np.sum(1 - 0.5 / expected):.0f}"


@pytest.mark.parametrize("backend", LIBRARIES, ids=repr)
def test_a_damping_path_shows_the_sizes_of_the_answers(backend, ax):
    plot.damping_path(inverse(backend), backend.asarray(GRADIENTS[0]), [0.1, 1.0, 10.0], ax=ax)
    dampings, sizes = line(ax, "‖F(λ)⁻¹v‖")
    dense = GRADIENTS.T.astype("float64") @ GRADIENTS / 5
    expected = [np.linalg.norm(np.linalg.solve(dense + t * np.eye(12), GRADIENTS[0])) for t in dampings]
    assert np.allclose(dampings, [0.1, 1.0, 10.0])
    assert np.allclose(sizes, expected, rtol=1e-4)
    assert np.allclose(line(ax, "‖v‖/λ, no gradients")[1], np.linalg.norm(GRADIENTS[0]) / dampings)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("λ (squared gradients)", "‖F(λ)⁻¹v‖")


def test_the_dampings_of_a_path_are_around_that_of_the_inverse(ax):
    plot.damping_path(inverse(LIBRARIES[0]), GRADIENTS[0], ax=ax)
    dampings = line(ax, "‖F(λ)⁻¹v‖")[0]
    assert dampings[0] == pytest.approx(0.005)
    assert dampings[-1] == pytest.approx(50)


@pytest.mark.parametrize("draw", [plot.spectrum, lambda i, ax: plot.damping_path(i, GRADIENTS[0], ax=ax)])
def test_a_damping_per_parameter_is_refused(draw, ax):
    general = ml.WoodburyRankOneInverse(GRADIENTS, np.ones(12, "float32"))
    with pytest.raises(ValueError, match="damping"):
        draw(general, ax=ax)


def pruned():
    weights = np.arange(1.0, 13)
    return prune(
        weights,
        lambda w, step: GRADIENTS.astype("float64"),
        0.75,
        steps=3,
        damping=0.5,
        loss_fn=lambda w: float(np.sum((w - weights) ** 2)),
    )


def test_pruning_shows_the_loss_after_each_step(ax):
    result = pruned()
    plot.pruning(result, ax=ax)
    (drawn,) = ax.lines
    assert np.array_equal(drawn.get_xdata(), [100 * step.sparsity for step in result.steps])
    assert np.array_equal(drawn.get_ydata(), [step.loss for step in result.steps])
    assert ax.get_legend() is None
    assert ax.get_xlim()[1] < 100


def test_several_results_have_a_legend(ax):
    plot.pruning({"one": pruned(), "two": pruned()}, ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]


def test_everything_pruned_can_be_drawn(ax):
    plot.pruning(Pruned(np.zeros(2), np.zeros(2, bool), (Step(0.5, 1.0, 1.0, 2.0), Step(1.0, 1.0, 1.0, 3.0))), ax=ax)
    ax.figure.savefig("/dev/null", format="png")


def test_results_without_losses_are_refused(ax):
    result = prune(np.arange(1.0, 13), lambda w, step: GRADIENTS.astype("float64"), 0.5, damping=0.5)
    with pytest.raises(ValueError, match=r"without any in 'mine'. Pass `loss_fn`"):
        plot.pruning({"mine": result}, ax=ax)


@pytest.mark.parametrize("backend", LIBRARIES, ids=repr)
def test_influences_are_sorted_from_helpful_to_harmful(backend, ax):
    values = backend.asarray(np.array([0.5, -2.0, 0.0, 3.0, -1.0, 0.25], "float32"))
    plot.influence(values, labels=list("abcdef"), most=2, ax=ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["d", "a", "e", "b"]
    assert [patch.get_width() for patch in ax.patches] == [3.0, 0.5, -1.0, -2.0]
    assert ax.yaxis_inverted()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((np.ones((2, 3)), None), r"shape \(2, 3\)"), ((np.ones(3), ["a"]), "one name per sample, 3; got 1")],
)
def test_invalid_influences_are_refused(arguments, words, ax):
    with pytest.raises(ValueError, match=words):
        plot.influence(arguments[0], labels=arguments[1], ax=ax)


def test_without_axes_there_is_a_new_figure():
    from matplotlib import pyplot

    ax = plot.spectrum(inverse(LIBRARIES[0]))
    other = plot.spectrum(inverse(LIBRARIES[0]))
    assert ax.figure is not other.figure
    pyplot.close("all")
