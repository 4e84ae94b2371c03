"""What each array library can do with this package, tried: the table of docs/backends.md, which this writes.

``python -m tests.abilities`` tries everything on what is installed and writes the table; columns of what is missing
stay. A cell is "yes" where the answer is right, "no" where the call is refused by name, "–" where the library has no
such thing, and "not run" where nothing could be tried. ``test_abilities.py`` tries each cell again.
"""

import importlib
import json
import re
import tempfile
import tomllib
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import mfac_linalg as ml
from mfac_linalg.influence import influence
from mfac_linalg.pruning import obs_scores
from mfac_linalg.testing import Oracle
from tests.backends import BACKENDS, Backend
from tests.inputs import INPUTS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "backends.md"
TABLE = re.compile(r"(<!-- abilities -->\n\n)(.*?)(\n<!-- end of abilities -->)", re.S)
COLUMNS = {
    "NumPy": "numpy",
    "PyTorch": "torch:cpu",
    "JAX": "jax",
    "CuPy": "cupy",
    "Dask": "dask",
    "array-api-strict": "strict:CPU_DEVICE",
}
"""The heads of the table, and the backends that are tried."""
BY_NAME = {backend.name: backend for backend in BACKENDS}
PACKAGES = {"torch:cpu": "torch", "cupy": "cupy-cuda12x", "strict:CPU_DEVICE": "array-api-strict"}
DAMPING = 0.5
ROWS = np.random.default_rng(5).standard_normal((4, 12)).astype("float32")
V = np.random.default_rng(6).standard_normal(12).astype("float32")
Trial = Callable[[Backend, Path], None]
ABILITIES: dict[str, tuple[Trial, tuple[str, ...]]] = {}
"""Each row of the table: how it is tried, and on which backends it makes sense."""


def ability(name: str, *names: str) -> Callable[[Trial], Trial]:
    """Make a function a row of the table, for some backends or for all."""

    def register(trial: Trial) -> Trial:
        ABILITIES[name] = trial, names or tuple(COLUMNS.values())
        return trial

    return register


def require_right(found: Any, exact: Any, error: float = 1e-4) -> None:
    """Raise unless an answer is right."""
    assert np.linalg.norm(np.asarray(found, "float64") - exact) <= error * np.linalg.norm(exact)


def require_product(b: Backend, inverse: Any, rows: np.ndarray = ROWS, error: float = 1e-4, **options: Any) -> None:
    """Raise unless F⁻¹v is right and of the backend."""
    x = inverse @ b.asarray(V)
    require_right(b.to_numpy(x), Oracle(rows, DAMPING, **options).solve(V), error)
    assert isinstance(x, type(b.asarray(V)))


def static(b: Backend, **options: Any) -> ml.WoodburyRankOneInverse:
    """The static inverse of the rows."""
    return ml.WoodburyRankOneInverse(b.asarray(ROWS), DAMPING, **options)


@ability("`WoodburyRankOneInverse`")
def _static(b: Backend, folder: Path) -> None:
    inverse, dense = static(b), Oracle(ROWS, DAMPING).inverse
    require_product(b, inverse)
    require_right(b.to_numpy(inverse.diagonal()), np.diag(dense))
    require_right(b.to_numpy(inverse.element(1, 2)), dense[1, 2])
    require_right(b.to_numpy(inverse.logdet()), np.linalg.slogdet(np.asarray(dense, "float64"))[1])


@ability("`SlidingWindowInverse`")
def _window(b: Backend, folder: Path) -> None:
    window = ml.SlidingWindowInverse(4, 12, DAMPING)
    for g in np.concatenate([ROWS[::-1], ROWS]):
        window.append_matvec(b.asarray(g))
    require_product(b, window)


@ability("`BlockDiagonalInverse`")
def _blocks(b: Backend, folder: Path) -> None:
    inverse = ml.BlockDiagonalInverse(b.asarray(ROWS), DAMPING, block_sizes=6)
    halves = [Oracle(ROWS[:, half], DAMPING).solve(V[half]) for half in (slice(0, 6), slice(6, 12))]
    require_right(b.to_numpy(inverse @ b.asarray(V)), np.concatenate(halves))


@ability("`TopK` windows")
def _compressed(b: Backend, folder: Path) -> None:
    window = ml.SlidingWindowInverse(4, 12, DAMPING, compression=ml.TopK(1.0))
    window.extend(b.asarray(ROWS))
    require_product(b, window)


@ability("`whiten=True`")
def _whitened(b: Backend, folder: Path) -> None:
    require_product(b, static(b, whiten=True))


@ability('`precision="high"`')
def _high(b: Backend, folder: Path) -> None:
    require_product(b, static(b, precision="high"))


@ability("float16 rows", "numpy", "torch:cpu", "jax", "cupy", "dask")
def _float16(b: Backend, folder: Path) -> None:
    short = ROWS.astype("float16")
    require_product(b, ml.WoodburyRankOneInverse(b.asarray(short), DAMPING), short)


@ability("bfloat16 rows", "numpy", "torch:cpu", "jax", "cupy", "dask")
def _bfloat16(b: Backend, folder: Path) -> None:
    if b.library in ("torch", "jax.numpy"):
        short = b.asarray(ROWS)
        short = short.to(b.namespace.bfloat16) if b.library == "torch" else short.astype(b.namespace.bfloat16)
    else:
        short = b.convert(b.namespace, ROWS.astype(importlib.import_module("ml_dtypes").bfloat16))
    require_product(b, ml.WoodburyRankOneInverse(short, DAMPING), error=3e-2)


@ability("sparse rows of SciPy", "numpy", "torch:cpu", "jax", "dask", "strict:CPU_DEVICE")
def _sparse(b: Backend, folder: Path) -> None:
    xp = {} if b.library == "numpy" else {"xp": b.namespace}
    require_product(b, ml.WoodburyRankOneInverse(scipy.sparse.csr_array(ROWS), DAMPING, **xp))


@ability("rows in a file, by `xp=`")
def _streamed(b: Backend, folder: Path) -> None:
    np.save(folder / "rows.npy", ROWS)
    source = np.load(folder / "rows.npy", mmap_mode="r")
    require_product(b, ml.WoodburyRankOneInverse(source, DAMPING, xp=b.namespace))


@ability("`GradientRows`")
def _provided(b: Backend, folder: Path) -> None:
    require_product(b, ml.WoodburyRankOneInverse(INPUTS["rows"](b.asarray(ROWS)), DAMPING))


@ability("`out=` a folder")
def _out(b: Backend, folder: Path) -> None:
    require_product(b, static(b, out=folder / "inverse"))


@ability("`save`")
def _save(b: Backend, folder: Path) -> None:
    static(b).save(folder / "inverse.npz")
    require_right(ml.load(folder / "inverse.npz") @ V, Oracle(ROWS, DAMPING).solve(V))


@ability("`load` with `xp=`")
def _load(b: Backend, folder: Path) -> None:
    ml.WoodburyRankOneInverse(ROWS, DAMPING).save(folder / "inverse.npz")
    require_product(b, ml.load(folder / "inverse.npz", xp=b.namespace))


@ability("`as_linear_operator()`")
def _operator(b: Backend, folder: Path) -> None:
    require_right(static(b).as_linear_operator() @ V, Oracle(ROWS, DAMPING).solve(V))


@ability("`mfac_linalg.pruning`")
def _scores(b: Backend, folder: Path) -> None:
    found = obs_scores(b.asarray(V), static(b))
    require_right(b.to_numpy(found), V**2 / (2 * np.diag(Oracle(ROWS, DAMPING).inverse)))


@ability("`mfac_linalg.influence`")
def _influence(b: Backend, folder: Path) -> None:
    found = influence(static(b), b.asarray(V[None]))
    require_right(b.to_numpy(found), (Oracle(ROWS, DAMPING).solve(V) @ ROWS.T)[None])


def _sum_of_product(rows: Any, damping: Any, v: Any) -> Any:
    return (ml.WoodburyRankOneInverse(rows, damping) @ v).sum()


def _derivatives(b: Backend) -> tuple[Any, ...]:
    """Those of the sum of F⁻¹v by gradients, damping and v, in reverse mode."""
    given = [b.asarray(x) for x in (ROWS, np.float32(DAMPING), V)]
    if b.library == "torch":
        leaves = [x.requires_grad_() for x in given]
        return b.namespace.autograd.grad(_sum_of_product(*leaves), leaves)
    return importlib.import_module("jax").grad(_sum_of_product, argnums=(0, 1, 2))(*given)


@ability("derivatives by v", "torch:cpu", "jax")
def _by_vector(b: Backend, folder: Path) -> None:
    require_right(b.to_numpy(_derivatives(b)[2]), Oracle(ROWS, DAMPING).solve(np.ones(12)))


@ability("by gradients and damping", "torch:cpu", "jax")
def _by_gradients(b: Backend, folder: Path) -> None:
    oracle = Oracle(ROWS, DAMPING)
    x, y = oracle.solve(V), oracle.solve(np.ones(12))
    by_rows, by_damping, _ = _derivatives(b)
    require_right(b.to_numpy(by_damping), -x @ y, 1e-3)
    require_right(b.to_numpy(by_rows), -(np.outer(ROWS @ x, y) + np.outer(ROWS @ y, x)) / len(ROWS), 1e-3)


@ability("derivatives in forward mode", "torch:cpu", "jax")
def _forward(b: Backend, folder: Path) -> None:
    function, given = static(b).matvec, (b.asarray(V),)
    modes = importlib.import_module("torch.func" if b.library == "torch" else "jax")
    tangent = b.asarray(np.ones(12, "float32"))
    found = modes.jvp(function, given, (tangent,))[1]
    require_right(b.to_numpy(found), Oracle(ROWS, DAMPING).solve(np.ones(12)))


@ability("compiled, a product", "torch:cpu", "jax")
def _compiled(b: Backend, folder: Path) -> None:
    def product(rows: Any, v: Any) -> Any:
        return ml.WoodburyRankOneInverse(rows, DAMPING) @ v

    torch = b.library == "torch"
    compiled = b.namespace.compile(product, backend="eager") if torch else importlib.import_module("jax").jit(product)
    require_right(b.to_numpy(compiled(b.asarray(ROWS), b.asarray(V))), Oracle(ROWS, DAMPING).solve(V))


@ability("compiled, a window's step", "torch:cpu", "jax")
def _compiled_step(b: Backend, folder: Path) -> None:
    if b.library == "torch":
        window = ml.SlidingWindowInverse(4, 12, DAMPING)
        step = b.namespace.compile(window.append_matvec, backend="eager")
        answers = [step(b.asarray(g)) for g in ROWS]
    else:
        state_class = importlib.import_module("mfac_linalg.jax").SlidingWindowState
        state, answers = state_class(4, 12, DAMPING), []
        step = importlib.import_module("jax").jit(state_class.append_matvec)
        for g in ROWS:
            state, x = step(state, b.asarray(g))
            answers.append(x)
    require_right(b.to_numpy(answers[-1]), Oracle(ROWS, DAMPING).solve(ROWS[-1]))


@ability("batched by `vmap`", "torch:cpu", "jax")
def _batched(b: Backend, folder: Path) -> None:
    modes = importlib.import_module("torch.func" if b.library == "torch" else "jax")
    found = modes.vmap(static(b).matvec)(b.asarray(np.stack([V, 2 * V])))
    require_right(b.to_numpy(found)[1], 2 * Oracle(ROWS, DAMPING).solve(V))


@ability("inverses batched by `vmap`", "torch:cpu", "jax")
def _batched_inverses(b: Backend, folder: Path) -> None:
    modes = importlib.import_module("torch.func" if b.library == "torch" else "jax")
    v = b.asarray(V)
    found = modes.vmap(lambda rows: ml.WoodburyRankOneInverse(rows, DAMPING) @ v)(b.asarray(np.stack([ROWS, 2 * ROWS])))
    require_right(b.to_numpy(found)[1], Oracle(2 * ROWS, DAMPING).solve(V))


def outcome(name: str, backend: Backend) -> str:
    """What a cell should say, by a trial."""
    trial, where = ABILITIES[name]
    if backend.name not in where:
        return "–"
    if backend.missing:
        return "not run"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial(backend, Path(folder))
        except (TypeError, ValueError):  # refused by name
            return "no"
    return "yes"


def cells(text: str) -> dict[str, list[str]]:
    """The rows of the table on the page, by their names."""
    lines = [re.split(r" *\| *", line)[1:-1] for line in TABLE.search(text)[2].strip().splitlines()]
    return {first: rest for first, *rest in lines if not first.startswith("--")}


def lowest_versions() -> list[str]:
    """Those that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    found = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(asked), re.M))
    return [found.get(_package(name), "any") for name in COLUMNS.values()]


def _package(name: str) -> str:
    return PACKAGES.get(name, name)


def has_run_on_gpu(name: str) -> str:
    """Whether a file of results has tests of the library that passed."""
    library = BY_NAME[name].library.partition(".")[0]
    if library not in ("torch", "jax", "cupy"):
        return "–"
    files = (ROOT / "benchmarks" / "results").glob("gpu-*.json")
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    passed = [r["parts"]["suite"].get(library, {}).get("status") == "passed" for r in runs if not r["dry_run"]]
    return "yes" if any(passed) else "no"


def table(before: dict[str, list[str]]) -> str:
    """The table by trials; what could not be tried is as it was before."""
    backends = [BY_NAME[name] for name in COLUMNS.values()]
    newest = ["not run" if b.missing else version(_package(b.name)).partition("+")[0] for b in backends]
    rows = {"lowest version": lowest_versions(), "newest version tested": newest}
    rows |= {name: [outcome(name, backend) for backend in backends] for name in ABILITIES}
    for name, found in rows.items():
        old = before.get(name, [])
        rows[name] = [old[i] if x == "not run" and i < len(old) else x for i, x in enumerate(found)]
    rows["has run on a GPU"] = [has_run_on_gpu(name) for name in COLUMNS.values()]
    lines = [["", *COLUMNS], ["--"] * (len(COLUMNS) + 1), *([name, *rest] for name, rest in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda match: match[1] + table(cells(text)) + match[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
