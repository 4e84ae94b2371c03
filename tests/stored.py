"""Inverses of every kind that a file can store; `python -m tests.stored FOLDER` writes each there, with its answers.

Those in `tests/files` were written by the first version with this schema and are never rewritten: every later
version has to read them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import mfac_linalg as ml

M, D = 4, 12
WRITTEN = Path(__file__).parent / "files"
STATE = "state"  # a state dictionary: its arrays as .npz, the rest as JSON


def gradients(m: int = M, d: int = D, dtype: str = "float64") -> np.ndarray:
    """The rows of all of these."""
    return np.random.default_rng(0).standard_normal((m, d)).astype(dtype)


def vector(d: int = D, dtype: str = "float64") -> np.ndarray:
    """What the products are asked for."""
    return np.linspace(-1, 2, d).astype(dtype)


def window(compression: Any = None, *, steps: int = 6, **options: Any) -> ml.SlidingWindowInverse:
    """A window of four that has taken some steps."""
    made = ml.SlidingWindowInverse(M, D, 0.3, xp=np, compression=compression, **options)
    for g in gradients(steps):
        made.append(g)
    return made


def sparse() -> Any:
    """Rows with few entries."""
    return scipy.sparse.random(M, D, 0.4, random_state=0, format="csr")


DAMPING, WEIGHTS = np.linspace(0.1, 1, D), np.array([1.0, 2.0, 0.5, 3.0])
SAVED: dict[str, Callable[[], Any]] = {
    "whitened": lambda: ml.WoodburyRankOneInverse(gradients(), 0.3),
    "weighted": lambda: ml.WoodburyRankOneInverse(gradients(), DAMPING, weights=WEIGHTS, normalization="sum"),
    "referenced": lambda: ml.WoodburyRankOneInverse(gradients(), DAMPING, weights=WEIGHTS, whiten=False),
    "single": lambda: ml.WoodburyRankOneInverse(gradients(dtype="float32"), 0.3, precision="high"),
    "scaled": lambda: ml.WoodburyRankOneInverse(gradients(dtype="float32") * np.float32(2**55), 2.0**110),
    "half": lambda: ml.WoodburyRankOneInverse(gradients(dtype="float16"), 0.3),
    "tall": lambda: ml.WoodburyRankOneInverse(gradients(9, 5), np.linspace(0.1, 1, 5)),
    "sparse": lambda: ml.WoodburyRankOneInverse(sparse(), DAMPING, weights=WEIGHTS),
    "blocks": lambda: ml.BlockDiagonalInverse(gradients(), DAMPING, block_sizes=[2, 7, 3], weights=WEIGHTS),
    "sparse-blocks": lambda: ml.BlockDiagonalInverse(sparse(), 0.3, block_sizes=5),
    "window": window,
    "filling-window": lambda: window(steps=2, decay=0.9, normalization="window"),
    "empty-window": lambda: window(steps=0),
    "unplaced-window": lambda: ml.SlidingWindowInverse(M, D, 0.3),
    "compressed-window": lambda: window(ml.TopK(0.5, block_size=5)),
}


def answers(inverse: Any) -> dict[str, np.ndarray]:
    """What is asked of an inverse before it is saved and after it is loaded; nothing of a window without a place."""
    if inverse.dtype is None:
        return {}
    v = vector(inverse.dim, np.dtype(inverse.dtype).name)
    return {"matvec": inverse.matvec(v), "diagonal": inverse.diagonal(), "logdet": np.asarray(inverse.logdet())}


def main(folder: Path) -> None:
    """Write all of them."""
    folder.mkdir(exist_ok=True)
    for name, build in SAVED.items():
        inverse = build()
        inverse.save(folder / f"{name}.npz")
        np.savez(folder / f"{name}.answers.npz", **answers(inverse))
    built = ml.WoodburyRankOneInverse(gradients(), DAMPING, weights=WEIGHTS, out=folder / "folder")
    np.savez(folder / "folder.answers.npz", **answers(built))
    state = window().state_dict()
    arrays = {name: x for name, x in state.items() if isinstance(x, np.ndarray)}
    np.savez(folder / f"{STATE}.npz", **arrays)
    rest = {name: x for name, x in state.items() if name not in arrays}
    (folder / f"{STATE}.json").write_text(json.dumps(rest))
    np.savez(folder / f"{STATE}.answers.npz", **answers(window()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
