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


PAIRS = (
    ("true Fisher, exact", "true Fisher, 10 steps of CG"),
    ("empirical Fisher, exact", "empirical Fisher, 10 steps of CG"),
    ("true Fisher, exact", "empirical Fisher, exact"),
    ("true Fisher, exact", "gradient dot product"),
    ("true Fisher, exact", "gradients of margins, exact"),
)
DATASETS = ("Fashion-MNIST", "MNIST")


def figures(part: str, **key: object) -> list[dict]:
    return [figure for figure in held("lds")[part]["figures"] if key.items() <= figure.items()]


def methods() -> list[str]:
    return [figure["method"] for figure in figures("chosen", data=DATASETS[0], networks=1)]


def with_interval(figure: dict, key: str = "lds", interval: str = "interval") -> str:
    low, high = figure[interval]
    return f"{decimals(figure[key])} [{decimals(low)}, {decimals(high)}]"


def power(damping: float | None) -> str:
    return "–" if damping is None else f"{damping:g}" if 1e-3 < damping < 1e4 else f"{damping:.0e}".replace("e-0", "e-")


def counts(data: str) -> list[int]:
    """The numbers of networks whose attributions are averaged."""
    return sorted({figure["networks"] for figure in figures("chosen", data=data)})


def scores() -> str:
    rows = []
    for method in methods():
        cells = []
        for data in DATASETS:
            found = [one(figures("chosen", data=data), method=method, networks=n, measure="loss") for n in counts(data)]
            cells += [power(found[0]["damping"]), *map(with_interval, found)]
        rows.append([method, *cells])
    head = [f"{data}: {x}" for data in DATASETS for x in ("λ", *map(words, counts(data)))]
    return table(["", *head], rows)


def by_damping(data: str) -> str:
    dampings = sorted({figure["damping"] for figure in figures("one", data=data)} - {None})
    rows = []
    for method in methods():
        found = {figure["damping"]: figure for figure in figures("one", data=data, method=method)}
        if None not in found:
            best = max(found.values(), key=lambda figure: figure["tuning"])["damping"]
            cells = [decimals(found[d]["lds"]) if d in found else "–" for d in dampings]
            rows.append([method, *(f"**{c}**" if d == best else c for c, d in zip(cells, dampings, strict=True))])
    return table(["λ", *map(power, dampings)], rows)


def differences() -> str:
    """How far the exact methods are ahead of others."""
    columns = [(data, count) for data in DATASETS for count in counts(data)]
    rows = []
    for left, right in PAIRS:
        found = [one(figures("comparisons", data=data, networks=n), method=left, baseline=right) for data, n in columns]
        rows.append([f"{left} − {right}", *(with_interval(figure, "difference", "wide") for figure in found)])
    return table(["", *(f"{data}, {words(n)}" for data, n in columns)], rows)


def words(count: int) -> str:
    return "one network" if count == 1 else f"{count} networks"


def shares_of_trace() -> tuple[str, ...]:
    """Per cent of the traces that the rows hold."""
    return tuple(rounded(100 * one(figures("networks"), data=data)["share_of_trace"], 2) for data in DATASETS)


def agreement() -> tuple[str, ...]:
    """The correlation of networks that were trained on the same halves."""
    return tuple(decimals(one(figures("networks"), data=data)["agreement"]) for data in DATASETS)
