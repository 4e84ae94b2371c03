"""The accuracy contract on a large sample: ``python -m tests.accuracy_sweep --problems 20000``.

Prints the worst backward ratio R and the worst forward ratio (both to be compared with 30) by backend, dtype and
precision, with whitening (W) and without (G), by decade of the condition number ("1e3": from 1e3 to 1e4). Half of the
problems go to NumPy, the rest to the others.
"""

import argparse
import multiprocessing
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np

from mfac_linalg.testing import KINDS, LIMIT, Problem, make_problem
from tests.backends import AVAILABLE, NUMPY, Backend
from tests.contract import STATIC_HIGH, decades, measure

SCALES = (1.0, 1.0, 1.0, 1e-6, 1e8, 1e-15, 1e20)


def draw_shape(rng: np.random.Generator, *, compiled: bool) -> tuple[int, int]:
    """Mostly 2 to 40 rows of up to 400 columns, one in 200 larger; four shapes for a library that compiles for each."""
    if compiled:
        return [(5, 11), (7, 7), (9, 4), (12, 60)][rng.integers(4)]
    m, chance = int(rng.integers(2, 41)), rng.random()
    if chance < 0.15:
        return [(m, m), (m, max(1, m // 2)), (1, m), (m, 1)][rng.integers(4)]
    if chance > 0.995:
        return [(100, 2000), (10, 20_000)][rng.integers(2)]
    return m, int(rng.integers(1, 401))


def draw(seed: int, dtype: str, precision: str, *, compiled: bool) -> Problem:
    """Problem number `seed`."""
    rng = np.random.default_rng(seed)
    shape = draw_shape(rng, compiled=compiled)
    top = STATIC_HIGH if precision == "high" and dtype == "float64" else None
    problem = make_problem(
        seed,
        kind=list(KINDS)[rng.integers(len(KINDS))],
        shape=shape,
        kappa=10 ** rng.uniform(*decades(dtype, precision, top=top)),
        dtype=dtype,
        vector=rng.random() < 0.25,
        weighted=rng.random() < 0.25,
        normalization=str(rng.choice(["mean", "sum"])),
        wide=np.float64 if dtype == "float32" else np.longdouble,
    )
    scales = SCALES if np.ndim(problem.damping) == 0 else SCALES[:5]  # float32 has no 1e40
    return problem.scaled_by(float(rng.choice(scales)))


def plan(count: int, size: int = 250) -> list[tuple[Backend, list[int]]]:
    """Which backend gets which problems, in portions: NumPy every second one, JAX few, the others the rest in turn."""
    others = [backend for backend in AVAILABLE if backend is not NUMPY]
    turns = [backend for backend in others if backend.library != "jax.numpy"] * 4 + others
    problems: dict[Backend, list[int]] = defaultdict(list)
    for seed in range(count):
        problems[NUMPY if seed % 2 or not turns else turns[seed // 2 % len(turns)]].append(seed)
    portions = [
        (b, seeds[start : start + size]) for b, seeds in problems.items() for start in range(0, len(seeds), size)
    ]
    return sorted(portions, key=lambda portion: portion[0].library != "jax.numpy")  # the slowest first


class Table:
    """The worst figures, by backend, decade and storage."""

    def __init__(self) -> None:
        self.worst: dict[tuple[str, bool, int], list[float]] = {}
        self.offenders: list[str] = []

    def add(self, problem: Problem, row: str, whiten: bool, answers: list) -> None:
        """Count the answers to one problem."""
        key = row, whiten, int(np.log10(problem.oracle.kappa))
        for answer in answers:
            self.count(key, [answer.backward, answer.forward, 1])
        bad = [answer for answer in answers if not max(answer.backward, answer.forward) <= LIMIT]
        if bad:
            worst = max(bad, key=lambda answer: max(answer.backward, answer.forward))
            figures = f"{len(bad)} answers, R {worst.backward:.3g}, forward {worst.forward:.3g}, {worst.name}"
            self.offenders.append(f"{row}, whiten={whiten}: {figures}, {problem}")

    def count(self, key: tuple[str, bool, int], figures: list[float]) -> None:
        """Keep the worse of two ratios, and the number of answers."""
        old = self.worst.get(key, [0.0, 0.0, 0])
        self.worst[key] = [max(old[0], figures[0]), max(old[1], figures[1]), old[2] + figures[2]]

    def join(self, other: "Table") -> None:
        """Add what another process measured."""
        for key, figures in other.worst.items():
            self.count(key, figures)
        self.offenders += other.offenders

    def __str__(self) -> str:
        return f"{self._page('worst R', 0)}\n\n{self._page('worst forward ratio', 1)}"

    def _page(self, title: str, index: int) -> str:
        """One figure: a row per backend and arithmetic, a column per decade of the condition number."""
        columns = range(1 + max(decade for *_, decade in self.worst))
        lines = [f"{title:38}" + "".join(f"{f'1e{decade}':>6}" for decade in columns)]
        for row, whiten in sorted({key[:2] for key in self.worst}):
            cells = [self.worst.get((row, whiten, decade)) for decade in columns]
            figures = "".join(f"{cell[index]:6.1f}" if cell else f"{'.':>6}" for cell in cells)
            lines.append(f"{row:35}{'W' if whiten else 'G':3}{figures}")
        return "\n".join(lines)


def sweep(backend: Backend, seeds: list[int]) -> Table:
    """Measure problems on one backend, each with and without whitening."""
    warnings.simplefilter("error")
    table = Table()
    for seed in seeds:
        # The digits of the seed choose, so that every backend meets every arithmetic.
        dtype = backend.dtypes[seed // 16 % len(backend.dtypes)]
        precision = "high" if backend.has_float64 and seed // 32 % 3 == 0 else "default"
        problem = draw(seed, dtype, precision, compiled=backend.library == "jax.numpy")
        for whiten in (True, False):
            try:
                answers = measure(problem, backend, seed=seed, whiten=whiten, precision=precision)
            except Warning as warning:
                table.offenders.append(f"{backend} {dtype}, whiten={whiten}: {warning!r}, {problem}")
                continue
            table.add(problem, f"{backend} {dtype} {precision}", whiten, answers)
    return table


def sweep_by_name(name: str, seeds: list[int]) -> Table:
    """`sweep` for another process, which has the backends of its own."""
    return sweep(next(backend for backend in AVAILABLE if backend.name == name), seeds)


def run(portions: Iterable[tuple[str, list[int]]], jobs: int) -> Iterator[Table]:
    """Measure portions of problems, by the name of a backend, in `jobs` processes; the table of each as it is done.

    The processes have one thread each: small products lose by more. What has not begun is left when nobody asks on.
    """
    os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(sweep_by_name, name, seeds) for name, seeds in portions]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def main() -> int:
    """Print the table; the exit status says whether the contract held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    start = time.perf_counter()
    table = Table()
    for portion in run([(backend.name, seeds) for backend, seeds in plan(arguments.problems)], arguments.jobs):
        table.join(portion)
    answers = sum(count for *_, count in table.worst.values())
    print(table)
    print(f"\n{arguments.problems} problems, {answers} answers in {time.perf_counter() - start:.0f} s")
    worst = [max(cell[index] for cell in table.worst.values()) for index in (0, 1)]
    print(f"worst R {worst[0]:.3g}, worst forward ratio {worst[1]:.3g}, limit {LIMIT:g}")
    print(f"{len(table.offenders)} builds above the limit" + "".join(f"\n  {line}" for line in table.offenders[:40]))
    return int(bool(table.offenders))


if __name__ == "__main__":
    raise SystemExit(main())
