"""The figures of docs/influence.md."""

from __future__ import annotations

from .markdown import held, one, rounded, table, two_digits

FORESEEN = ((1e-3, 10), (1e-2, 1), (1e-2, 10), (1e-2, 100), (1e-1, 10))
FISHERS = {
    "true Fisher": "true Fisher",
    "sampled Fisher": "one sampled label a digit",
    "empirical Fisher": "empirical Fisher",
    "diagonal": "its diagonal",
    "identity": "λI",
}


def decimals(x: float) -> str:
    text = rounded(x).replace("-", "−")
    return "0.00" if text == "−0.00" else text


def predicted(gradients: str) -> str:
    rows = []
    for kind, label in FISHERS.items():
        facts = {"gradients": gradients, "fisher": kind}
        outcomes = held("influence")["outcomes"]
        found = [one(outcomes, loss="mean", damping=x, group=size, **facts) for x, size in FORESEEN]
        digits = one(outcomes, loss="digits", damping=1e-2, group=10, **facts)
        cells = [f"{decimals(o['spearman'])} [{decimals(o['low'])}, {decimals(o['high'])}]" for o in (*found, digits)]
        if (kind, gradients) == ("true Fisher", "last layer"):
            label = "true Fisher (the Hessian)"
        rows.append([label, *cells, two_digits(found[2]["error"])])
    head = ["λ = 1e-3, 10 out", "1e-2, 1 out", "1e-2, 10 out", "1e-2, 100 out", "1e-1, 10 out"]
    return table(["F", *head, "single digits, 1e-2, 10 out", "error, 1e-2, 10 out"], rows)
