"""The inverses and the queries that are compared in every ambient mode, and how answers are compared."""

import copy
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import mfac_linalg as ml
from mfac_linalg import influence, pruning
from tests.backends import NUMPY, Backend
from tests.inputs import INPUTS

SHAPE, TALL, BLOCKS = (6, 40), (9, 4), (3, 3, 14, 20)
DAMPINGS = [0.01, 1.0]


def gradients(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Rows whose norms span decades: float32 products show any loss of precision."""
    rows = np.random.default_rng(5).standard_normal(shape)
    return (rows * np.geomspace(0.03, 10, shape[0])[:, None]).astype("float32")


def inverses(backend: Backend) -> dict[str, Callable[[], Any]]:
    """Every class in every form that a backend has, of arrays that are made now."""
    static, window = ml.WoodburyRankOneInverse, ml.SlidingWindowInverse.from_gradients
    held, rows = gradients(), backend.asarray(gradients())
    vector = backend.asarray(np.linspace(0.01, 0.1, SHAPE[1], dtype="float32"))
    tall = backend.asarray(gradients(TALL))
    found: dict[str, Callable[[], Any]] = {
        "static": lambda: static(rows, 0.01),
        "static, vector damping": lambda: static(rows, vector, whiten=False),
        "tall": lambda: static(tall, 0.01),
    }
    if backend.is_lazy:
        return found
    found |= {
        "window": lambda: window(rows, 0.01),
        "blocks": lambda: ml.BlockDiagonalInverse(rows, 0.01, block_sizes=BLOCKS),
        "rows": lambda: static(INPUTS["rows"](rows), 0.01),
    }
    if backend.library == "jax.numpy":
        from mfac_linalg.jax import SlidingWindowState

        del found["static"], found["rows"]  # which tell nothing that the others do not, and take seconds to compile
        return found | {"state": lambda: SlidingWindowState.from_gradients(rows, 0.01)}
    place = {"xp": backend.namespace, "device": getattr(rows, "device", None)}
    found |= {
        "static, by reference": lambda: static(rows, 0.01, whiten=False),
        "streamed": lambda: static(rows, 0.01, memory_limit=10**5),
        "dataset": lambda: static(INPUTS["dataset"](held), 0.01, **place),
        "equal blocks": lambda: ml.BlockDiagonalInverse(rows, 0.01, block_sizes=4),
        "decaying window": lambda: window(rows, 0.01, decay=0.9, normalization="window"),
    }
    if backend.has_float64:
        found["high"] = lambda: static(rows, 0.01, precision="high")
    if backend.library in ("numpy", "torch"):
        found["compressed window"] = lambda: window(rows, 0.01, compression=ml.TopK(0.5, block_size=8))
        found["streamed to an array"] = lambda: static(rows, 0.01, out=np.empty_like(held))
        found["streamed from NumPy"] = lambda: static(held, 0.01, memory_limit=10**5, **place)
    if backend is NUMPY:
        found["sparse"] = lambda: static(scipy.sparse.csr_array(held), 0.01)
    return found


class Asked:
    """An inverse with the arguments of its queries, created outside of any mode."""

    def __init__(self, inverse: Any, backend: Backend, dtype: str = "float32") -> None:
        self.inverse = inverse
        rng, dim, count = np.random.default_rng(7), inverse.dim, inverse.num_gradients

        def send(*size: int) -> Any:
            return backend.asarray(rng.standard_normal(size).astype(dtype))

        self.v, self.V, self.tests = send(dim), send(dim, 2), send(2, dim)
        self.W, self.c, self.C = backend.asarray(backend.to_numpy(self.V).T), send(count), send(count, 2)
        self.x, self.host = inverse @ self.v, np.asarray(backend.to_numpy(self.v))
        self.i, self.j = backend.asarray(np.array([0, 1, 3])), backend.asarray(np.array([2, 1, 0]))
        self.mask = backend.asarray(np.arange(dim) % 3 > 0)


def _forward(name: str, *arguments: str) -> Callable[[Asked], Any]:
    return lambda q: getattr(q.inverse.forward, name)(*(getattr(q, a) for a in arguments))


def _method(name: str, *arguments: str) -> Callable[[Asked], Any]:
    return lambda q: getattr(q.inverse, name)(*(getattr(q, a) for a in arguments))


def _array(x: Any) -> Any:
    """Gradients, which are not always an array."""
    if scipy.sparse.issparse(x):
        return x.toarray()
    return x if hasattr(x, "ndim") else x[:, :] if hasattr(x, "__getitem__") else x.array


def _query_after_saving(q: Asked) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        q.inverse.save(Path(folder) / "inverse.npz")
        return ml.load(Path(folder) / "inverse.npz") @ q.host


def _prune(q: Asked) -> Any:
    given = _array(q.inverse.gradients)
    found = pruning.prune(q.v, lambda w, step: given, 0.5, steps=2, damping=0.1, relative=True)
    return found.weights, found.mask


QUERIES: dict[str, Callable[[Asked], Any]] = {
    "matvec": _method("matvec", "v"),
    "rmatvec": _method("rmatvec", "v"),
    "matmat": _method("matmat", "V"),
    "inverse @ V": lambda q: q.inverse @ q.V,
    "v @ inverse": lambda q: q.v @ q.inverse,
    "W @ inverse": lambda q: q.W @ q.inverse,
    "T": lambda q: q.inverse.T @ q.v,
    "matvec_gradients": _method("matvec_gradients", "c"),
    "matvec_gradients of columns": _method("matvec_gradients", "C"),
    "dual_coefficients": _method("dual_coefficients", "v"),
    "sqrt_matvec": _method("sqrt_matvec", "v"),
    "sample": lambda q: q.inverse.sample(2, seed=2**40 + 3),
    "damping_path": lambda q: q.inverse.damping_path(q.v, DAMPINGS),
    "diagonal": _method("diagonal"),
    "element": lambda q: q.inverse.element(1, 2),
    "elements": _method("element", "i", "j"),
    "columns": _method("columns", "j"),
    "submatrix": _method("submatrix", "i", "j"),
    "to_dense": _method("to_dense"),
    "quadratic_form": _method("quadratic_form", "v"),
    "logdet": _method("logdet"),
    "trace": _method("trace"),
    "condition_number": _method("condition_number"),
    "backward_error": _method("backward_error", "v", "x"),
    "relative_residual": _method("relative_residual", "v", "x"),
    "with_damping": lambda q: q.inverse.with_damping(0.02) @ q.v,
    "gradients": lambda q: _array(q.inverse.gradients),
    "kappa": lambda q: q.inverse.kappa,
    "forward.matvec": _forward("matvec", "v"),
    "forward.matmat": _forward("matmat", "V"),
    "forward.diagonal": _forward("diagonal"),
    "forward.trace": _forward("trace"),
    "forward.logdet": _forward("logdet"),
    "forward.to_dense": _forward("to_dense"),
    "forward.eigenvalues": _forward("eigenvalues"),
    "forward.condition_number": _forward("condition_number"),
    "forward.effective_rank": _forward("effective_rank"),
    "as_linear_operator": lambda q: q.inverse.as_linear_operator() @ q.host,
    "save and load": _query_after_saving,
    "pickle": lambda q: pickle.loads(pickle.dumps(q.inverse)) @ q.v,
    "deepcopy": lambda q: copy.deepcopy(q.inverse) @ q.v,
    "to_device": lambda q: q.inverse.to_device(q.inverse.device) @ q.v,
    "astype": lambda q: q.inverse.astype("float32") @ q.v,
    "repr": lambda q: repr(q.inverse) + q.inverse._repr_html_() + repr(q.inverse.forward),
    "obs_scores": lambda q: pruning.obs_scores(q.v, q.inverse),
    "obs_update": lambda q: pruning.obs_update(q.v, q.inverse, q.mask),
    "joint_update": lambda q: pruning.joint_update(q.v, q.inverse, q.mask),
    "group_scores": lambda q: pruning.group_scores(q.v, q.inverse, 2),
    "group_update": lambda q: pruning.group_update(q.v, q.inverse, np.array([[0, 1], [2, 3]])),
    "n_m_mask": lambda q: pruning.n_m_mask(q.v, q.inverse, 2, 4),
    "prune": _prune,
    "influence": lambda q: influence.influence(q.inverse, q.tests),
    "influence of others": lambda q: influence.influence(q.inverse, q.tests, q.W),
    "self_influence": lambda q: influence.self_influence(q.inverse),
    "self_influence of others": lambda q: influence.self_influence(q.inverse, q.tests),
}
"""Every public query of one inverse, by name; the inverse is as it was afterwards."""


def _query_after(change: Callable[[Any, Asked], Any]) -> Callable[[Asked], Any]:
    def ask(q: Asked) -> Any:
        window = copy.deepcopy(q.inverse)
        answer = change(window, q)
        return answer, window @ q.v, window.kappa

    return ask


def _set_damping(window: Any, q: Asked) -> None:
    window.damping = 0.02


def _from_state(window: Any, q: Asked) -> Any:
    return ml.SlidingWindowInverse.from_state_dict(window.state_dict()) @ q.v


WINDOW_QUERIES: dict[str, Callable[[Asked], Any]] = {
    "append": _query_after(lambda window, q: window.append(q.v)),
    "append_matvec": _query_after(lambda window, q: window.append_matvec(q.v)),
    "extend": _query_after(lambda window, q: window.extend(q.tests)),
    "replace": _query_after(lambda window, q: window.replace(1, q.v)),
    "remove": _query_after(lambda window, q: window.remove(1)),
    "damping": _query_after(_set_damping),
    "state_dict": _query_after(_from_state),
    "of an empty window": lambda q: _query_after_clearing(q),
}
"""Those that change a window: of a copy of it."""


def _query_after_clearing(q: Asked) -> Any:
    window = copy.deepcopy(q.inverse)
    window.clear()
    return window @ q.v, window.diagonal(), window.logdet(), window.append_matvec(q.v)


def _state_steps(q: Asked) -> Any:
    state, answer = q.inverse.append_matvec(q.v)
    return answer, state @ q.v, state.count, state.append(q.v).kappa


STATE_QUERIES: dict[str, Callable[[Asked], Any]] = {"append_matvec": _state_steps}


def queries(inverse: Any) -> dict[str, Callable[[Asked], Any]]:
    """The queries that an inverse has."""
    if isinstance(inverse, ml.SlidingWindowInverse):
        return QUERIES | WINDOW_QUERIES
    return QUERIES | STATE_QUERIES if type(inverse).__name__ == "SlidingWindowState" else QUERIES


CHEAP = {
    "dask.array": {
        "matvec",
        "matmat",
        "v @ inverse",
        "matvec_gradients",
        "diagonal",
        "elements",
        "trace",
        "obs_scores",
    },
}
"""The queries for libraries that take long over each."""
ALONE = {"jax.numpy": ("matvec", "matvec_gradients", "elements", "diagonal", "sample", "with_damping", "forward.trace")}
"""The queries for libraries that compile, where modes are tried one by one."""


def answer(query: Callable[[Asked], Any], asked: Asked) -> Any:
    """What a query gives: its answer, or the class of the refusal that it is for this inverse."""
    try:
        return query(asked)
    except (TypeError, ValueError, AttributeError) as refused:
        return f"{type(refused).__name__}: {refused}"


def same(one: Any, other: Any) -> bool:
    """Whether two answers have one class and dtype, and are equal to the bit."""
    if isinstance(one, tuple):
        return isinstance(other, tuple) and all(same(*pair) for pair in zip(one, other, strict=True))
    if type(one) is not type(other):
        return False
    if not hasattr(one, "dtype"):
        return bool(one == other)
    return one.dtype == other.dtype and np.array_equal(_values(one), _values(other), equal_nan=True)


def close(one: Any, other: Any) -> bool:
    """Whether two answers differ by rounding alone."""
    if isinstance(one, tuple):
        return isinstance(other, tuple) and all(close(*pair) for pair in zip(one, other, strict=True))
    if type(one) is not type(other) or isinstance(one, str):
        return False
    if not hasattr(one, "dtype"):
        return bool(np.isclose(one, other, rtol=1e-4))
    one, other = (_values(x).astype(np.float64) for x in (one, other))
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max(initial=0)))


def _values(x: Any) -> np.ndarray:
    if hasattr(x, "detach"):
        x = sys.modules["torch"]._C._functorch.unwrap_if_dead(x)  # of a transform that has ended
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).detach().numpy()
    return np.asarray(x.compute() if hasattr(x, "compute") else x)
