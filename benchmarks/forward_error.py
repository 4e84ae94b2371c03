"""How many digits of F⁻¹v are right for a v in the span of the gradients: ``python -m benchmarks.forward_error``.

Float32 gradients, iid; v is a row of them, or their mean as it is rounded to float32. The forward error is
‖x − F⁻¹Gᵀc‖/‖F⁻¹Gᵀc‖, the backward error R = ‖v − Fx‖/(‖F‖‖x‖ eps), both by float64. ``--json`` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mfac_linalg import WoodburyRankOneInverse

SEED, SHAPE, KAPPAS = 2211, (64, 10_000), (1e3, 1e5, 4e5)
EPS = float(np.finfo(np.float32).eps)


def coefficients(m: int) -> dict[str, np.ndarray]:
    """The c of a row and of the mean."""
    return {"a row": np.eye(m, dtype=np.float32)[0], "the mean": np.full(m, 1 / m, np.float32)}


def textbook(gradients: np.ndarray, damping: float, system: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(v − Gᵀ(GGᵀ + mλI)⁻¹Gv)/λ in float32, but for the small system."""
    a = np.linalg.solve(system, (gradients @ v).astype(np.float64)).astype(np.float32)
    return (v - gradients.T @ a) / np.float32(damping)


def measure_errors(kappa: float, shape: tuple[int, int] = SHAPE) -> Iterator[dict[str, Any]]:
    """Both errors of every way to F⁻¹v, at a condition number."""
    m = shape[0]
    gradients = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
    wide = gradients.astype(np.float64)
    gram = wide @ wide.T
    damping = float(np.linalg.eigvalsh(gram)[-1] / m / (kappa - 1))
    system = gram + m * damping * np.eye(m)
    inverse, high = (WoodburyRankOneInverse(gradients, damping, precision=p) for p in ("default", "high"))
    for name, c in coefficients(m).items():
        exact = m * wide.T @ np.linalg.solve(system, c.astype(np.float64))
        v = (wide.T @ c).astype(np.float32)
        ways = {
            "textbook": textbook(gradients, damping, system, v),
            "matvec": inverse.matvec(v),
            "high": high.matvec(v),
            "matvec_gradients": inverse.matvec_gradients(c),
        }
        for way, x in ways.items():
            residual = v - (damping * x + wide.T @ (wide @ x) / m)
            backward = np.linalg.norm(residual) / (damping * kappa * np.linalg.norm(x.astype(np.float64)) * EPS)
            forward = np.linalg.norm(x - exact) / np.linalg.norm(exact)
            yield {"kappa": kappa, "v": name, "way": way, "forward": float(forward), "R": float(backward)}


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    figures = [figure for kappa in KAPPAS for figure in measure_errors(kappa)]
    for figure in figures:
        words = f"kappa {figure['kappa']:.0e}, {figure['v']:8} by {figure['way']:16}"
        print(f"{words} forward error {figure['forward']:.1e}, R = {figure['R']:.2g}")
    if options.json:
        text = ",\n".join(json.dumps(figure) for figure in figures)
        facts = json.dumps({"seed": SEED, "shape": SHAPE, "numpy": np.__version__})
        options.json.write_text(f'{facts[:-1]}, "figures": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
