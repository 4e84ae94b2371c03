"""Gradients that are not one dense array: ``python -m benchmarks.scale blocks sparse disk topk``.

- blocks: a build of 268,336 parameters in blocks of 128 from 256 gradients, and the paper's recursion on all blocks
  at once (PyTorch's batched products).
- sparse: build and 100 products of 1,000 rows of rcv1 (``--data``, a folder with rcv1_small.npz), and of dense ones.
- disk: ``--gigabytes`` of float32 rows in a file (made if it is not there, in ``--folder``): build, diagonal and ten
  products under a limit of 1 GB, each figure in a process of its own; the file's read rate; the same in memory.
- topk: windows of 256 and 1,024 gradients of 1,000,000 parameters that keep 1 % of the entries: their
  memory and a step with its product, compared with the window of whole gradients and two plain reads of these.

Every answer is checked before it is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peak_memory import resident
from mfac_linalg import BlockDiagonalInverse, SlidingWindowInverse, TopK, WoodburyRankOneInverse

SEED, ROUNDS = 1804, 3
NUM_GRADIENTS, LIMIT, DAMPING, KAPPA = 256, 10**9, 1.0, 100.0


def median_seconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median time of some calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def require(fine: bool, what: str) -> None:
    """Raise if a result is wrong, before it is timed."""
    if not fine:
        raise ArithmeticError(what)


class BatchedRecursion:
    """The paper's recursion on every block of one size at once: directions (blocks, m, size), denominators."""

    def __init__(self, gradients: np.ndarray, damping: float, size: int) -> None:
        import torch

        m, d = gradients.shape
        blocks = torch.from_numpy(gradients).reshape(m, d // size, size).permute(1, 0, 2).contiguous()
        self.damping, self.directions = damping, torch.empty_like(blocks)
        self.denominators = torch.empty(d // size, m)
        for k in range(m):
            g = blocks[:, k, :, None]
            before = self.directions[:, :k, :]
            weights = torch.bmm(before, g) / self.denominators[:, :k, None]
            v = g[:, :, 0] / damping - torch.bmm(before.mT, weights)[:, :, 0]
            self.directions[:, k, :] = v
            self.denominators[:, k] = m + (g[:, :, 0] * v).sum(1)

    def diagonal(self) -> np.ndarray:
        """The diagonal of F⁻¹."""
        terms = (self.directions**2 / self.denominators[:, :, None]).sum(1)
        return (1 / self.damping - terms).reshape(-1).numpy()


def blocks(_: argparse.Namespace) -> None:
    """Print the times of the build and of the recursion's."""
    size, dim = 128, 268_288  # 2,096 blocks: the recursion wants them all alike
    gradients = np.random.default_rng(SEED).standard_normal((NUM_GRADIENTS, dim), dtype=np.float32)

    def build() -> BlockDiagonalInverse:
        return BlockDiagonalInverse(gradients, DAMPING, block_sizes=size)

    start = time.perf_counter()
    theirs = BatchedRecursion(gradients, DAMPING, size)
    recursion = time.perf_counter() - start
    require(np.allclose(theirs.diagonal(), build().diagonal(), rtol=1e-3), "The two diagonals differ.")
    ours = median_seconds(build)
    print(f"blocks of {size}, d = {dim:,}, m = {NUM_GRADIENTS}: build {ours:.2f} s")
    print(f"  batched recursion {recursion:.1f} s: x faster {recursion / ours:.1f}")


def sparse(options: argparse.Namespace) -> None:
    """Print build and 100 products, and the memory of both, for sparse rows and the same as a dense array."""
    import scipy.sparse

    with np.load(options.data / "rcv1_small.npz") as file:
        parts = tuple(file[f"train_{name}"] for name in ("data", "indices", "indptr"))
        rows = scipy.sparse.csr_array(parts, shape=tuple(file["train_shape"]))
    vectors = np.random.default_rng(SEED).standard_normal((100, rows.shape[1])).astype(rows.dtype)

    def ask(gradients: object) -> list[np.ndarray]:
        inverse = WoodburyRankOneInverse(gradients, 1e-4)
        return [inverse.matvec(v) for v in vectors]

    dense = rows.toarray()
    pairs = zip(ask(rows), ask(dense), strict=True)
    require(all(np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) for a, b in pairs), "The products differ.")
    fast, slow = median_seconds(lambda: ask(rows)), median_seconds(lambda: ask(dense))
    small, large = (memory_of(lambda g=g: WoodburyRankOneInverse(g, 1e-4)) for g in (rows, dense))
    small, large = small + sum(part.nbytes for part in parts), large + dense.nbytes
    print(f"sparse {rows.shape[0]} x {rows.shape[1]}, {rows.nnz:,} entries: build + 100 products {1e3 * fast:.0f} ms, ")
    print(f"  dense {1e3 * slow:.0f} ms: x faster {slow / fast:.1f}")
    print(f"  gradients and inverse {small / 1e6:.0f} MB, dense {large / 1e6:.0f} MB: x smaller {large / small:.1f}")


def memory_of(make: Callable[[], object]) -> int:
    """Return the bytes that a constructed object occupies."""
    return memory_and_object(make)[0]


def memory_and_object(make: Callable[[], Any]) -> tuple[int, Any]:
    """Return the bytes that a constructed object occupies, and the object."""
    tracemalloc.start()
    built = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size, built


def disk(options: argparse.Namespace) -> None:
    """Print time, passes and memory of a file under a limit, the file's own read rate, and the same for G in memory."""
    path = make_file(options.folder, options.gigabytes)
    for task in ("read", "streamed", "in memory"):
        command = [sys.executable, "-m", "benchmarks.scale", "--task", task, str(path)]
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{task:>10}  " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def make_file(folder: Path, gigabytes: float) -> Path:
    """Return a .npy file of standard normal float32 rows, made a run of rows at a time where it is not there."""
    dim = int(gigabytes * 1e9 / 4 / NUM_GRADIENTS)
    path = folder / f"gradients-{NUM_GRADIENTS}x{dim}.npy"
    if not path.exists():
        rows = np.lib.format.open_memmap(path, "w+", np.float32, (NUM_GRADIENTS, dim))
        rng = np.random.default_rng(SEED)
        for row in rows:
            row[:] = rng.standard_normal(dim, dtype=np.float32)
        rows.flush()
    return path


class Counted:
    """A mapped file that counts the bytes read from it."""

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")
        self.shape, self.dtype, self.read = self.rows.shape, self.rows.dtype, 0

    def __getitem__(self, part: object) -> np.ndarray:
        panel = np.array(self.rows[part])
        self.read += panel.nbytes
        return panel


def task(name: str, path: Path) -> dict[str, float]:
    """One figure of `disk`, in a new process."""
    rows = np.load(path, mmap_mode="r")
    if name == "read":
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(2**26)
            start = time.perf_counter()
            while file.readinto(buffer):
                pass
        return {"seconds": time.perf_counter() - start}
    v, damping = np.array(rows[0]), rows.shape[1] / NUM_GRADIENTS / KAPPA
    if name == "in memory":
        inverse, seconds = timed_queries(np.array(rows), damping, v, whiten=False)
        return seconds
    inverse, seconds = timed_queries(rows, damping, v, memory_limit=LIMIT)
    error = float(inverse.backward_error(v, inverse.matvec(v))) / np.finfo(np.float32).eps
    peak = resident("VmHWM")
    counted = Counted(path)
    inverse = WoodburyRankOneInverse(counted, damping, memory_limit=LIMIT)
    inverse.diagonal()
    passes = counted.read / rows.nbytes
    counted.read = 0
    inverse.matvec(v)
    figures = {"R": float(error), "peak MB": peak / 1e6, "passes": passes, "of a product": counted.read / rows.nbytes}
    return seconds | figures


def timed_queries(
    rows: np.ndarray, damping: float, v: np.ndarray, **options: object
) -> tuple[WoodburyRankOneInverse, dict[str, float]]:
    """Build, diagonal, ten products."""
    start = time.perf_counter()
    inverse = WoodburyRankOneInverse(rows, damping, **options)
    built = time.perf_counter()
    inverse.diagonal()
    seen = time.perf_counter()
    for _ in range(10):
        inverse.matvec(v)
    done = time.perf_counter()
    return inverse, {"build s": built - start, "diagonal s": seen - built, "ten products s": done - seen}


def topk(_: argparse.Namespace) -> None:
    """Print memory and steps of windows that keep 1 % of the entries, and of those that keep all."""
    dim, steps = 10**6, 12
    timed_steps(filled_window(np.eye(8, dtype=np.float32), 1.0, TopK(0.5)), np.eye(8, dtype=np.float32))  # imports
    for window in (256, 1024):
        rng = np.random.default_rng(SEED)
        rows = rng.standard_normal((window, dim), dtype=np.float32)
        damping = dim * (1 + np.sqrt(window / dim)) ** 2 / window / KAPPA
        fresh = rng.standard_normal((steps, dim), dtype=np.float32)
        a, results = np.ones(window, np.float32), []
        reads = median_seconds(lambda rows=rows, a=a: (rows @ rows[0], a @ rows))
        for compression in (TopK(0.01), TopK(0.01, dtype="float16"), TopK(0.01, block_size=4096), None):
            size, full = memory_and_object(partial(filled_window, rows, damping, compression))
            results.append((compression, size, timed_steps(full, fresh)))
            del full
        *_, (_, whole, dense) = results
        print(f"window {window}, d = {dim:,}: {whole / 1e6:,.0f} MB, a step {1e3 * dense:.0f} ms, ")
        print(f"  two plain reads {1e3 * reads:.0f} ms")
        for compression, size, seconds in results[:-1]:
            print(
                f"  {compression}: {size / 1e6:.1f} MB, x smaller {whole / size:.1f}; a step {1e3 * seconds:.1f} ms, "
            )
            print(f"    x faster {dense / seconds:.1f}, two reads in {reads / seconds:.1f} steps")


def filled_window(rows: np.ndarray, damping: float, compression: TopK | None) -> SlidingWindowInverse:
    """Return a full window of float32 gradients."""
    window = SlidingWindowInverse(*rows.shape, damping, compression=compression)
    if compression is None:
        window.extend(rows)
    for block in np.array_split(rows, 8) if compression else ():
        window.extend(block)
    return window


def timed_steps(window: SlidingWindowInverse, fresh: np.ndarray) -> float:
    """Return the median time of steps with their products, the first half left out."""
    times = []
    for g in fresh:
        start = time.perf_counter()
        x = window.append_matvec(g)
        times.append(time.perf_counter() - start)
    require(float(window.backward_error(g, x)) <= 30 * np.finfo(np.float32).eps, "A step is not right.")
    return float(np.median(times[len(times) // 2 :]))


def main() -> None:
    """Run the chosen parts."""
    parts = {"blocks": blocks, "sparse": sparse, "disk": disk, "topk": topk}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="some of blocks, sparse, disk, topk")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--gigabytes", type=float, default=12.0)
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(task(options.task[0], Path(options.task[1]))))
    for part in options.parts:
        parts[part](options)


if __name__ == "__main__":
    main()
