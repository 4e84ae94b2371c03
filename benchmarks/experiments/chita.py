"""One-shot pruning beside the code of CHITA: ``python -m benchmarks.experiments.chita --data FOLDER --chita FOLDER``.

Everybody has the same gradient rows and the same number k of weights that stay, and minimises the same quadratic: their
½ ‖y − Xβ‖² + λ₂‖β − w‖² + nα ḡᵀβ, with λ₂ = λn/2 and divided by n, is our α ḡᵀδ + ½ δᵀFδ of δ = β − w and a constant. A
figure has its exact value in float64, by one function for everybody's β, the seconds of one thread, and the accuracy on
the first 2,000 test images (1,000 digits), of the ResNet-20 without a slope only.

- CHITA active set: its default, `Active_IHTCDLS_PP` in float64, with its pruner's arguments, at most 50 iterations.
- CHITA least squares: `Heuristic_LS` in float32, as its pruner passes it, and in float64.
- CHITA blocks: `Heuristic_LSBlock`, blocks of 500 within layers.
- its active set, joint: the mask of the first with the joint change of this library.
- magnitude; scores: those masks, of the full matrix, with the joint change (θ = 0).
- magnitude, exchanges; scores, exchanges: the masks that `exchange` reaches from there.

Our seconds have everything in them: F⁻¹ from the rows, scores, exchanges, the change. Theirs are of the solver alone,
compiled before. The networks and the rows, 256 means of 32 images, are those of the experiment with a slope, and the
seed is that of the images; rows are kept beside the output. Their code is read from its folder and is no part of this
project: `pip install numba scikit-learn`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import pruning_slope, record
from benchmarks.experiments.pruning_paths import Trained
from benchmarks.machine import version
from mfac_linalg import WoodburyRankOneInverse
from mfac_linalg.pruning import exchange, joint_update, obs_scores

WHERE = (
    pruning_slope.WHERE
    + """\
CHITA_opt/L0_card_const.py, in the other folder: github.com/mazumder-lab/CHITA
"""
)
NETWORKS = {"ResNet-20": pruning_slope.resnet, "MLP": pruning_slope.mlp}
SPARSITIES, SLOPES, SEEDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95), (0.0, 1 / 32), (0, 1)
ROWS, DAMPING, TEST_IMAGES = 256, 1e-5, 2000
ITERATIONS, BLOCK, STEPS = 50, 500, 50
JUDGED_WITH_SLOPE = ("MLP",)  # the images of the other take longer than everything else
PANEL = 8192  # columns at a time in float64


class Problem:
    """Rows G of a network at its trained weights, and the quadratic."""

    def __init__(self, trained: Trained, seed: int, cache: Path) -> None:
        self.trained = trained
        if not cache.exists():
            pool, generator = torch.arange(len(trained.train[0])), torch.Generator().manual_seed(seed)
            torch.save(trained.rows(trained.weights, ROWS, pool, generator), cache)
        self.rows = torch.load(cache)
        self.test = trained.test[0][:TEST_IMAGES], trained.test[1][:TEST_IMAGES]
        self.wide = functools.cache(lambda: self.rows.numpy().astype(np.float64))

    @property
    def weights(self) -> Tensor:
        return self.trained.weights

    def stays(self, sparsity: float) -> int:
        """The number of weights that stay."""
        return len(self.weights) - round(sparsity * len(self.weights))

    def value(self, pruned: np.ndarray, slope: float) -> float:
        """α ḡᵀδ + ½ δᵀFδ + ½ α², in float64: ½ ‖(Gδ + α 1)/√m‖² + ½ λ‖δ‖², which no rounding makes negative."""
        delta = pruned.astype(np.float64) - self.weights.numpy()
        rows, total = self.rows.numpy(), np.full(ROWS, slope)
        for start in range(0, len(delta), PANEL):
            total += rows[:, start : start + PANEL].astype(np.float64) @ delta[start : start + PANEL]
        return float(total @ total / ROWS + DAMPING * (delta @ delta)) / 2

    def blocks(self) -> list[int]:
        """Where blocks of about 500 weights of the layers begin and end."""
        cuts, start = [0], 0
        for size in self.trained.unravel.sizes:
            count = max(1, size // BLOCK)
            cuts += [start + size // count * i for i in range(1, count)] + [start + size]
            start += size
        return cuts


class Chita:
    """The solvers of the published code, called as its pruner calls them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "CHITA_opt" / "L0_card_const.py"
        self.source: Callable[[], ModuleType] = functools.cache(self._source)

    def _source(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("chita_l0_card_const", self.path)
        if spec is None or spec.loader is None:
            msg = f"`--chita` must be the folder of CHITA's source; got {self.path.parents[1]}."
            raise FileNotFoundError(msg)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where numba's cache looks for it
        spec.loader.exec_module(module)
        rng = np.random.default_rng(0)
        for solver, dtype in (
            ("active", "float64"),
            *itertools.product(("heuristic", "blocks"), ("float32", "float64")),
        ):
            for slope in SLOPES:  # they compile what they are called with
                rows, w = rng.standard_normal((8, 60)).astype(dtype), rng.standard_normal(60).astype(dtype)
                getattr(self, solver)(module, rows, w, 20, slope, [0, 30, 60])
        return module

    def solve(
        self, solver: str, rows: np.ndarray, w: np.ndarray, k: int, slope: float, blocks: list[int]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The pruned weights, and what the solver took."""
        module = self.source()
        np.random.seed(0)  # of its power iterations
        start, cpu = time.perf_counter(), time.process_time()
        pruned, facts = getattr(self, solver)(module, rows, w.astype(rows.dtype), k, slope, blocks)
        return pruned, facts | {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}

    @staticmethod
    def _arguments(rows: np.ndarray, w: np.ndarray, slope: float) -> dict[str, Any]:
        alpha = slope * rows.sum(axis=0) if slope else np.zeros_like(w)
        tilde = {"beta_tilde1": np.zeros_like(w), "beta_tilde2": w.copy()}
        return {"alpha": alpha, "lambda1": 0, "lambda2": DAMPING * len(rows) / 2, "M": np.inf, **tilde}

    def active(
        self, module: ModuleType, rows: np.ndarray, w: np.ndarray, k: int, slope: float, blocks: list[int]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        options = {"iht_max_itr": ITERATIONS, "act_max_itr": ITERATIONS, "ftol": 1e-7, "kimp": 1.5, "ctol": 1e-4}
        options |= {"L": None, "buget": None, "act_itr": 1, "cd_itr": 0, "sea1_max_itr": 5, "sea2_max_itr": 10}
        with contextlib.redirect_stdout(io.StringIO()):
            found = module.Active_IHTCDLS_PP(rows @ w, rows, w, k, **self._arguments(rows, w, slope), **options)
        return found[0], {"iterations": [solution.iht_cur_itr for solution in found[2] or ()]}

    def heuristic(
        self, module: ModuleType, rows: np.ndarray, w: np.ndarray, k: int, slope: float, blocks: list[int]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        options = {**self._arguments(rows, w, slope), "use_prune": True}
        return module.Heuristic_LS(rows @ w, rows, w, k, **options)[0], {}

    def blocks(
        self, module: ModuleType, rows: np.ndarray, w: np.ndarray, k: int, slope: float, blocks: list[int]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        options = {**self._arguments(rows, w, slope), "use_prune": True, "block_list": blocks, "split_type": 1}
        with contextlib.redirect_stdout(io.StringIO()):
            return module.Heuristic_LSBlock(w, rows, w, k, **options)[0], {}


def ours(problem: Problem, by: str, k: int, slope: float, *, exchanges: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """The pruned weights by this library, with the mask of scores or magnitudes, and the seconds of everything."""
    w, start, cpu = problem.weights, time.perf_counter(), time.process_time()
    inverse = WoodburyRankOneInverse(problem.rows, DAMPING, whiten=False)
    sizes = w.abs() if by == "magnitude" else obs_scores(w, inverse, slope=slope)
    mask = torch.zeros(len(w), dtype=torch.bool)
    mask[torch.topk(sizes, k, sorted=False).indices] = True
    if exchanges:
        mask = exchange(w, inverse, mask, slope=slope, steps=STEPS)
    pruned = (w + joint_update(w, inverse, mask, slope=slope)).numpy()
    return pruned, {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


THEIRS = {
    "CHITA active set": ("active", "float64"),
    "CHITA least squares": ("heuristic", "float32"),
    "CHITA least squares, float64": ("heuristic", "float64"),
    "CHITA blocks": ("blocks", "float32"),
}
OURS = {
    "magnitude": ("magnitude", False),
    "scores": ("scores", False),
    "magnitude, exchanges": ("magnitude", True),
    "scores, exchanges": ("scores", True),
}


class Study:
    """The problems, and the solvers."""

    def __init__(self, folder: Path, chita: Path, caches: Path) -> None:
        self.folder, self.chita, self.caches = folder, Chita(chita), caches
        self.problem = functools.lru_cache(maxsize=1)(self._problem)

    def _problem(self, network: str, seed: int) -> Problem:
        self.caches.mkdir(exist_ok=True)
        problem = Problem(NETWORKS[network](self.folder), seed, self.caches / f"{network}-{seed}.pt")
        ours(problem, "scores", problem.stays(0.9), 0.0, exchanges=True)  # whose first call is not timed either
        return problem

    def measure(self, network: str, seed: int, sparsity: float, slope: float) -> Iterator[tuple[str, np.ndarray, Any]]:
        """The pruned weights of each method."""
        problem = self.problem(network, seed)
        w, k, blocks = problem.weights.numpy(), problem.stays(sparsity), problem.blocks()
        for method, (solver, dtype) in THEIRS.items():
            rows = problem.wide() if dtype == "float64" else problem.rows.numpy()
            pruned, facts = self.chita.solve(solver, rows, w, k, slope, blocks)
            yield method, pruned, facts
            if solver == "active":
                inverse = WoodburyRankOneInverse(problem.rows, DAMPING, whiten=False)
                change = joint_update(problem.weights, inverse, torch.from_numpy(pruned != 0), slope=slope)
                yield "its active set, joint", (problem.weights + change).numpy(), {}
        for method, (by, exchanges) in OURS.items():
            yield method, *ours(problem, by, k, slope, exchanges=exchanges)

    def figures(self, network: str, seed: int, sparsity: float, slope: float) -> dict[str, Any]:
        """The figures of all methods."""
        problem, found = self.problem(network, seed), {}
        k = problem.stays(sparsity)
        for method, pruned, facts in self.measure(network, seed, sparsity, slope):
            count = int(np.count_nonzero(pruned))
            if count > k:
                msg = f"{method} leaves {count} weights for {k}."
                raise AssertionError(msg)
            found[method] = {"value": problem.value(pruned, slope), "count": count, **facts}
            if slope == 0 or network in JUDGED_WITH_SLOPE:
                found[method] |= problem.trained.judged(torch.from_numpy(pruned.astype(np.float32)), problem.test)
        return {"k": k, "methods": found}


def tasks(study: Study, network: str) -> Iterator[record.Task]:
    for seed, slope, sparsity in itertools.product(SEEDS, SLOPES, SPARSITIES):
        key = {"seed": seed, "slope": slope, "sparsity": sparsity}
        yield key, functools.partial(study.figures, network, **key)


def setting(study: Study) -> Iterator[record.Task]:
    """What was run."""
    source = hashlib.sha256(study.chita.path.read_bytes()).hexdigest()
    versions = {name: version(name) for name in ("numba", "scikit-learn", "numpy")}
    facts = {"threads": torch.get_num_threads(), "iterations": ITERATIONS, "rows": ROWS, "damping": DAMPING}
    yield {"source": source, "versions": versions}, lambda: facts


PARTS: dict[str, record.Part] = {
    "setting": lambda study, held: setting(study),
    **{network: lambda study, held, network=network: tasks(study, network) for network in NETWORKS},
}


def with_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chita", type=Path, required=True, help="the folder of CHITA's source")


def main() -> None:
    options = record.arguments("chita", __doc__ or "", WHERE, PARTS, more=with_source)
    study = Study(options.data, options.chita, options.output.with_suffix(".states"))
    for part in options.parts:
        record.add(study, part, PARTS[part], options.output)


if __name__ == "__main__":
    main()
