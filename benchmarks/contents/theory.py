"""The figures of docs/scaling.md and docs/theory.md."""

from __future__ import annotations

from typing import Any

from .markdown import held, one, scientific, table, two_digits

SHAPES = {
    (64, 100_000): "(64, 10⁵), 26 MB",
    (64, 10_000_000): "(64, 10⁷), 2.6 GB",
    (64, 22_600_000): "(64, 2.26·10⁷), 5.8 GB: the size of MiniLM",
    (16, 100_000_000): "(16, 10⁸), 6.4 GB",
}
OPERATIONS = ("build", "matvec", "push-through", "diagonal", "whiten", "step")
WAYS = {
    "textbook": "textbook",
    "matvec": "`matvec`",
    "high": '`matvec`, `precision="high"`',
    "matvec_gradients": "`matvec_gradients`",
}


def cost_model() -> str:
    rows = []
    for (m, d), label in SHAPES.items():
        seconds = one(held("cost-model")["cases"], m=m, d=d)["seconds"]
        cells = []
        for name in OPERATIONS:
            if name not in seconds:
                cells.append("–")
                continue
            ratio = seconds[name]["measured"] / seconds[name]["model"]
            shown = f" ({two_digits(seconds[name]['measured'])} s)" if d == 22_600_000 else ""
            cells.append((f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}") + shown)
        rows.append([label, *cells])
    head = ["build", "`matvec`", "push-through", "`diagonal` of W", "W in place", "step"]
    return table(["(m, d), G", *head], rows)


def drift() -> tuple[str, ...]:
    """The largest R in both dtypes, its largest ratio to a fresh one's, and the largest of these."""
    curves = held("drift-1e6")
    most = [max(max(c["window"]) for c in curves if c["dtype"] == dtype) for dtype in ("float32", "float64")]
    ratio = max(max(w / max(1, f) for w, f in zip(c["window"], c["fresh"], strict=True)) for c in curves)
    fresh = max(max(c["fresh"]) for c in curves)
    return tuple(f"{x:.1f}" for x in (*most, ratio, fresh))


def forward_error() -> str:
    figures = held("forward-error")["figures"]
    rows = []
    for kappa, v in dict.fromkeys((figure["kappa"], figure["v"]) for figure in figures):
        found = [one(figures, kappa=kappa, v=v, way=way) for way in WAYS]
        cells = (f"{scientific(f['forward'])}, {f['R']:.2f}" if f["R"] < 9 else two_parts(f) for f in found)
        rows.append([scientific(kappa).replace(".0", ""), v, *cells])
    return table(["κ", "v", *WAYS.values()], rows)


def two_parts(figure: dict[str, Any]) -> str:
    return f"{scientific(figure['forward'])}, {figure['R']:.0e}".replace("e+0", "e")


def in_the_span() -> tuple[str, ...]:
    """Forward errors of the mean gradient at the largest κ."""
    figures = held("forward-error")["figures"]
    most = max(figure["kappa"] for figure in figures)
    found = (one(figures, kappa=most, v="the mean", way=way) for way in ("matvec", "matvec_gradients"))
    return tuple(scientific(figure["forward"]) for figure in found)
