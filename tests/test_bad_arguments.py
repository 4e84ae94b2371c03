"""Every public callable x every argument x bad values: a refusal that names the argument, or a value that is legal.

A refusal is a TypeError, ValueError, IndexError or OverflowError whose text has the argument in backticks, and leaves
the object as it was. What is legal is listed by argument; what is neither fails.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import mfac_linalg as ml
from mfac_linalg import influence, pruning
from tests.backends import PRESENT
from tests.bad_values import BAD, D, G, M, V

MASK = np.arange(D) > 1


class Rows(ml.GradientRows):
    """G behind the protocol for rows that are not in an array."""

    def __init__(self):
        self.shape = (M, D)
        self.gram = lambda: G @ G.T
        self.project = lambda v: G @ v
        self.combine = lambda a: G.T @ a
        self.columns = lambda j: G[:, j]
        self.panels = lambda: [G]


INVERSES = {
    "static": lambda: ml.WoodburyRankOneInverse(G, 0.1),
    "kept": lambda: ml.WoodburyRankOneInverse(G, 0.1, whiten=False),
    "blocks": lambda: ml.BlockDiagonalInverse(G, 0.1, block_sizes=3),
    "window": lambda: ml.SlidingWindowInverse.from_gradients(G, 0.1, window=5),
    "compressed": lambda: ml.SlidingWindowInverse.from_gradients(G, 0.1, window=5, compression=ml.TopK(0.5)),
}
QUERIES = {
    "matvec": {"v": V},
    "rmatvec": {"v": V},
    "matmat": {"V": np.ones((D, 2))},
    "rmatmat": {"V": np.ones((D, 2))},
    "matvec_gradients": {"coefficients": np.ones(M)},
    "dual_coefficients": {"v": V},
    "sqrt_matvec": {"v": V},
    "sample": {"size": 2, "seed": 0},
    "damping_path": {"v": V, "dampings": [0.1, 1.0]},
    "element": {"i": 0, "j": 1},
    "columns": {"j": [0, 1]},
    "submatrix": {"rows": [0, 1], "cols": [1]},
    "quadratic_form": {"v": V},
    "backward_error": {"v": V, "x": V},
    "relative_residual": {"v": V, "x": V},
    "to_device": {"device": "cpu"},
    "astype": {"dtype": "float32"},
    "with_damping": {"damping": 0.2},
}
FORWARD = {
    "matvec": {"x": V},
    "rmatvec": {"x": V},
    "matmat": {"X": np.ones((D, 2))},
    "rmatmat": {"X": np.ones((D, 2))},
}
CHANGES = {
    "append": {"g": V},
    "append_matvec": {"g": V},
    "extend": {"gradients": G},
    "replace": {"age": 0, "g": V},
    "remove": {"age": 0},
}
STATIC = {"gradients": G.copy(), "damping": 0.1, "weights": None, "normalization": "mean", "precision": "default"}
STREAMED = {"xp": None, "device": None, "memory_limit": None, "out": None, "resume": False}
FLAGS = {"whiten": None, "overwrite_gradients": False, "progress": False}
WINDOW = {"damping": 0.1, "normalization": "mean", "decay": 1.0, "precision": "default", "compression": None}
PLACED = {"window": 4, "dim": D, **WINDOW, "dtype": "float64", "device": "cpu", "xp": np}
PRUNE = {
    "weights": V,
    "gradients_fn": lambda weights, step: G,
    "sparsity": 0.5,
    "steps": 1,
    "schedule": "geometric",
    "moves": 0,
    "damping": 0.1,
    "relative": False,
    "selection": "scores",
    "update": "joint",
    "compensation_damping": "auto",
    "layer_sizes": None,
    "block_sizes": None,
    "slope": 0.1,
    "slope_damping": None,
    "mask": None,
    "lengths": (1.0,),
    "loss_fn": None,
    "progress": False,
}
BLOCKS = {"block_size": 64, "progress": False}
SCORED = {"weights": V, "inverse": INVERSES["static"](), "slope": 0.1}
FUNCTIONS = {
    "WoodburyRankOneInverse": (ml.WoodburyRankOneInverse, STATIC | FLAGS | STREAMED),
    "BlockDiagonalInverse": (ml.BlockDiagonalInverse, {**STATIC, "block_sizes": 3}),
    "SlidingWindowInverse": (ml.SlidingWindowInverse, PLACED),
    "a window without a place": (ml.SlidingWindowInverse, {**PLACED, "dtype": None, "device": None, "xp": None}),
    "from_gradients": (ml.SlidingWindowInverse.from_gradients, {"gradients": G, "window": None, **WINDOW}),
    "TopK": (ml.TopK, {"density": 0.5, "block_size": 100, "dtype": None, "error_feedback": True}),
    "obs_scores": (pruning.obs_scores, SCORED),
    "group_scores": (pruning.group_scores, {**SCORED, "groups": 2}),
    "n_m_mask": (pruning.n_m_mask, {**SCORED, "n": 1, "m": 2, "groups": None}),
    "obs_update": (pruning.obs_update, {**SCORED, "mask": MASK}),
    "group_update": (pruning.group_update, {**SCORED, "groups": [[0, 1]]}),
    "joint_update": (pruning.joint_update, {**SCORED, "mask": MASK, "compensation_damping": 0.1}),
    "joint_objective": (pruning.joint_objective, {**SCORED, "mask": MASK}),
    "exchange": (pruning.exchange, {**SCORED, "mask": MASK, "groups": None, "steps": 2}),
    "relative_damping": (pruning.relative_damping, {"gradients": G, "ratio": 0.1}),
    "prune": (pruning.prune, PRUNE),
    "influence": (
        influence.influence,
        {"inverse": SCORED["inverse"], "test_gradients": G, "train_gradients": None, **BLOCKS},
    ),
    "self_influence": (
        influence.self_influence,
        {"inverse": SCORED["inverse"], "gradients": None, **BLOCKS},
    ),
}

VECTOR = {"float16", "negative", "a subclass"}  # 16 bits are widened
POSITIVE = {"5", "1.5", "10**30", "a fraction", "0-d"}
SEQUENCE = {"wrong length", "float16", "longdouble", "another library", "a subclass"}  # of positive numbers, any length
LEGAL = {
    **dict.fromkeys(("v", "x", "g", "weights"), VECTOR),
    "damping": POSITIVE | {"float16", "a subclass"},
    "dampings": SEQUENCE,
    **{key: {"5", "-1", "0", "no list"} for key in ("i", "j")},
    **{key: {"5", "0"} for key in ("size", "seed", "moves")},
    "age": {"-1", "0"},
    "decay": {"a fraction"},
    "density": {"a fraction"},
    "sparsity": {"a fraction", "0"},
    "ratio": {"5", "1.5", "10**30", "a fraction", "0-d"},
    "lengths": {"5", "1.5"},
    "compensation_damping": {"a fraction", "0"},
    "slope": {"5", "1.5", "10**30", "a fraction", "0"},
    "prune.slope": {"5", "1.5", "10**30", "a fraction", "0", "a class", "a class of numbers"},  # functions of the step
    "slope_damping": {"5", "1.5", "10**30", "a fraction", "0-d", "None"},
    "gradients": {"wrong matrix"},  # is another right one
    **{key: {"no list"} for key in ("rows", "cols")},
    **{key: {"5"} for key in ("block_size", "steps", "window", "dim")},
    **{key: {"5", "objects"} for key in ("block_sizes", "layer_sizes")},  # of ones
    **{key: {"True"} for key in ("relative", "whiten", "overwrite_gradients", "progress", "error_feedback")},
    "out": {"a matrix of nans", "text"},  # may be written to; a new folder
    # by callable and argument
    "columns.j": {"no list"},
    "extend.gradients": {"empty matrix"},
    "self_influence.gradients": set(),
    "WoodburyRankOneInverse.weights": set(),
    "BlockDiagonalInverse.weights": set(),
    "prune.weights": {"negative", "a subclass"},
    "prune.damping": {"5", "1.5"},
    "dtype": {"a class of numbers"},
    "SlidingWindowInverse.dtype": {"None", "a class of numbers"},
    **{f"SlidingWindowInverse.{name}": {"None"} for name in ("device", "xp")},
    "a window without a place.damping": POSITIVE | {"another library", "a subclass"},
}
TAKES_COMPLEX = ("matvec", "rmatvec")
FOLLOWS = {"prune.weights": "gradients_fn(weights"}  # of other legal weights, whose gradients they are not


@dataclass(frozen=True)
class Cell:
    """One argument of one call."""

    title: str
    call: Any  # () → what is called, and the object whose answers say whether it was changed, or None
    arguments: dict[str, Any]
    name: str

    def __repr__(self) -> str:
        return f"{self.title}({self.name})"

    @property
    def legal(self) -> set[str]:
        """The values that are not bad here."""
        method = self.title.rpartition(".")[2]
        legal = set(LEGAL.get(f"{method}.{self.name}", LEGAL.get(self.name, ())))
        if method in TAKES_COMPLEX:
            legal.add("complex")
        if self.arguments[self.name] is None or self.name == "cols":
            legal.add("None")
        return legal

    def outcome(self, value: Any) -> str:
        """Return "refused" for a refusal in order, "accepted", or what is wrong with the refusal."""
        called, asked = self.call()
        before = None if asked is None else fingerprint(asked)
        names = {f"`{self.name}", f"`{FOLLOWS.get(f'{self.title}.{self.name}', self.name)}"}
        try:
            called(**{**self.arguments, self.name: value})
        except (TypeError, ValueError, IndexError, OverflowError) as refusal:
            if not any(name in str(refusal) for name in names):
                return f"{type(refusal).__name__} without `{self.name}`: {refusal}"
            return "refused" if asked is None or fingerprint(asked) == before else "changed"
        except Exception as other:
            return f"{type(other).__name__}: {other}"
        return "accepted"


def fingerprint(inverse):
    """What a refused call must leave."""
    return inverse.matvec(V).tobytes(), repr(inverse), len(inverse) if hasattr(inverse, "__len__") else None


def method_of(build, path):
    """How to come by a method and its object."""

    def call():
        called = inverse = build()
        for name in path.split("."):
            called = getattr(called, name)
        return called, inverse

    return call


def cells():
    """All arguments of all calls."""
    for title, (function, arguments) in FUNCTIONS.items():
        for name in arguments:
            yield Cell(title, lambda function=function: (function, None), arguments, name)
    for kind, build in INVERSES.items():
        made = build()
        calls = {**QUERIES, **{f"forward.{name}": arguments for name, arguments in FORWARD.items()}}
        for path, arguments in calls.items():
            for name in arguments:
                yield Cell(f"{kind}.{path}", method_of(lambda made=made: made, path), arguments, name)
        for path, arguments in CHANGES.items() if kind in ("window", "compressed") else ():
            for name in arguments:
                yield Cell(f"{kind}.{path}", method_of(build, path), arguments, name)


CELLS = tuple(cells())


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_a_bad_value_is_refused_by_name_and_a_legal_one_is_accepted(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = {name: cell.outcome(make()) for name, make in BAD.items()}
    can_be_called = ("a class", "a class of numbers", "a class of arrays", "a function")  # and raise what they raise
    raising = can_be_called if cell.name in ("gradients_fn", "loss_fn") else ()
    wanted = {name: "accepted" if name in cell.legal else "refused" for name in BAD if name not in raising}
    assert {name: outcomes[name] for name in wanted if outcomes[name] != wanted[name]} == {}


INTEGERS = {"float": np.ones(2, "float32"), "bool": np.ones(2, bool), "complex": np.ones(2, "complex64")}
NUMBERS = {
    "integers": np.ones(D, int),
    "booleans": np.ones(D, bool),
    "0-d": np.array(1.0, "float32"),
    "3-D": np.ones((2, 3, 4), "float32"),
    "wrong length": np.ones(D + 1, "float32"),
    "empty": np.ones(0, "float32"),
}
OF_THE_LIBRARY = {
    **dict.fromkeys(("matvec", "dual_coefficients", "sqrt_matvec", "quadratic_form"), ("v", NUMBERS)),
    "matmat": ("V", NUMBERS),
    "matvec_gradients": ("coefficients", NUMBERS),
    "columns": ("j", INTEGERS),
    "submatrix": ("rows", INTEGERS),
}


@pytest.mark.parametrize("method", OF_THE_LIBRARY)
@pytest.mark.parametrize("backend", PRESENT, ids=repr)
def test_bad_arrays_of_the_right_library_are_refused_by_name(backend, method):
    name, values = OF_THE_LIBRARY[method]
    inverse = ml.WoodburyRankOneInverse(backend.asarray(G, "float32"), 0.1)
    for value in values.values():
        with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            getattr(inverse, method)(backend.asarray(value))


RETURNED = {
    "shape": (M, D),
    "gram": G @ G.T,
    "project": np.ones((M, 1)),
    "combine": np.ones((D, 1)),
    "columns": np.ones((M, 1)),
    "panels": [G],
}


def use(rows):
    """Every method of the rows."""
    inverse = ml.WoodburyRankOneInverse(rows, 0.1)
    return inverse.matvec(V), inverse.diagonal()


@pytest.mark.parametrize("method", RETURNED)
def test_what_a_users_rows_return_is_refused_by_the_name_of_the_method(method):
    """Of rows that are not in an array: BAD, and values of the right shape but another kind of number."""
    right = np.array(RETURNED[method])
    spoiled = {"complex": right + 0j, "masked": np.ma.array(right), "nan": right * np.nan}
    values = {name: make() for name, make in BAD.items()} | (
        spoiled if method in ("gram", "project", "combine") else {}
    )
    for name, value in values.items():
        rows = Rows()
        setattr(rows, method, value if method == "shape" else lambda *_, value=value: value)
        with pytest.raises((TypeError, ValueError)) as refusal:
            use(rows)
        assert "`gradients" in str(refusal.value), name


@pytest.mark.parametrize("method", list(RETURNED)[1:])
def test_a_method_of_a_users_rows_that_cannot_be_called_is_named(method):
    rows = Rows()
    setattr(rows, method, 5)
    with pytest.raises(TypeError, match=f"`gradients.{method}` must be a function"):
        ml.WoodburyRankOneInverse(rows, 0.1)


@pytest.mark.parametrize("title", FUNCTIONS)
def test_the_table_has_every_argument(title):
    function, arguments = FUNCTIONS[title]
    assert set(inspect.signature(function).parameters) == set(arguments)


@pytest.mark.parametrize("kind", INVERSES)
def test_the_table_has_every_method_with_arguments(kind):
    inverse = INVERSES[kind]()
    known = QUERIES | CHANGES
    for name in dir(inverse):
        method = None if name.startswith("_") else getattr(inverse, name)
        elsewhere = (
            "save",
            "load",
            "from_gradients",
            "from_state_dict",
        )  # constructors and files: tested by themselves
        if inspect.ismethod(method) and name not in elsewhere:
            assert set(inspect.signature(method).parameters) == set(known.get(name, ())), name
