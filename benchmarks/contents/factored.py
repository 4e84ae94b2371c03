"""The figures of docs/howto/factored-rows.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from .markdown import held, scientific, table, two_digits

STEPS = {"rows": "gradients", "build": "build", "product": "product", "push-through": "push-through"}
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def memory(count: float) -> str:
    """A number of bytes in words."""
    size, unit = next(each for each in UNITS if count >= each[0])
    return f"{two_digits(count / size)} {unit}"


def seconds(figure: dict[str, Any], step: str) -> str:
    return f"{two_digits(figure['seconds'][step])} s"


def sizes() -> str:
    rows = []
    for size in sorted({figure["size"] for figure in held("factored")["figures"]}):
        of_size = {figure["rows"]: figure for figure in held("factored")["figures"] if figure["size"] == size}
        for kind, label in (("factored", "factors"), ("explicit", "explicit")):
            cells = [f"{size} × {size}", label]
            if kind in of_size:
                figure = of_size[kind]
                kept, peak = memory(figure["bytes"]), memory(figure["peak_bytes"])
                rows.append([*cells, kept, peak, *(seconds(figure, step) for step in (*STEPS, "influence"))])
            else:
                kept = memory(4 * of_size["factored"]["num_gradients"] * size**2)
                rows.append([*cells, f"{kept}, not formed", *["–"] * 6])
    return table(["layer", "rows", "kept", "peak", *STEPS.values(), "influences"], rows)


def agreement() -> tuple[str, ...]:
    """The largest differences of answers, κ eps, and the largest R."""
    figures = held("factored")["figures"]
    of_each = [figure["differences"] for figure in figures if "differences" in figure]
    differences = [max(each[name] for each in of_each) for name in ("product", "push-through", "influence")]
    bound = max(figure["kappa"] for figure in figures) * float(np.finfo(np.float32).eps)
    return (*map(scientific, (*differences, bound)), two_digits(max(figure["R"] for figure in figures)))
