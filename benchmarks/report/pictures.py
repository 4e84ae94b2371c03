"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import words
from benchmarks.report.cases import LIBRARY, PROMISED, Case, Results

STYLES: dict[str, dict[str, Any]] = {
    LIBRARY: {"color": "#0072b2", "marker": "o", "linewidth": 2.6, "zorder": 5},
    "five lines of NumPy": {"color": "#d55e00", "marker": "s"},
    "five lines of NumPy, W kept": {"color": "#d55e00", "marker": "s"},
    "linear_operator": {"color": "#009e73", "marker": "^"},
    "recursion, NumPy": {"color": "#cc79a7", "marker": "D"},
    "recursion, PyTorch": {"color": "#56b4e9", "marker": "v"},
    "recursion, as printed": {"color": "#cc79a7", "marker": "D"},
    "recursion, LAPACK": {"color": "#56b4e9", "marker": "v"},
    "SciPy cg": {"color": "#e69f00", "marker": "P"},
    "curvlinops": {"color": "#000000", "marker": "X"},
}
"""The colours of Okabe and Ito, which the colour-blind tell apart, and a marker each."""
LIMIT = {"color": "0.35", "linestyle": "--", "linewidth": 1.4, "label": "limit of the machine"}
PANELS = ("build", "random", "row", "combination", "block", "diagonal", "elements", "step")
MARKERS = dict(zip(PANELS, "os^vDPX*", strict=True))


def draw(results: Results, folder: Path) -> None:
    """Draw all of them."""
    roofline(results, folder / "performance-roofline.png")
    against(results, "d", folder / "performance-d.png")
    against(results, "m", folder / "performance-m.png")


def roofline(results: Results, path: Path) -> None:
    """Work a second against work a byte: how near every question that is computed at each call comes to the two roofs.

    The diagonal is kept.
    """
    size = results.largest(PANELS)
    cases = {case.query: case for case in results.of(kappa=results.main_kappa(), m=size[0], d=size[1])}
    cases = {query: cases[query] for query in PANELS if query in cases and query != "diagonal"}
    figure, (panel,) = _figure(1, 1, (9.5, 5.6))
    rates = [case.entry["rates"] for case in cases.values()]
    flops, read = (max(rate[name] for rate in rates) for name in ("sgemm", "read"))
    intensities = [case.entry["flops"] / case.entry["bytes"] for case in cases.values()]
    x = np.geomspace(min(intensities) / 3, max(intensities) * 3, 400)
    panel.plot(x, np.minimum(flops, read * x) / 1e9, color="0.25", linewidth=1.8)
    panel.text(x[-1], 1.1 * flops / 1e9, f"SGEMM {flops / 1e9:.0f} GFLOP/s", ha="right", color="0.25")
    panel.text(x[0], 12 * read * x[0] / 1e9, f"reads of G, {read / 1e9:.0f} GB/s", color="0.25")
    shift = _shifts(intensities)
    for (query, case), factor in zip(cases.items(), shift, strict=True):
        _roofline_points(panel, query, case, factor)
    hollow = {"color": STYLES["five lines of NumPy"]["color"], "markerfacecolor": "white", "markersize": 10}
    panel.plot([], [], "o", label=f"fastest peer, R ≤ {PROMISED}", **hollow)
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="flops a byte that has to be moved (side by side where equal)",
        ylabel="GFLOP/s",
    )
    panel.set_title(f"(m, d) = {words.size(*size)}, κ = {words.power(results.main_kappa())}", fontsize=11)
    panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path)


def _shifts(values: list[float]) -> list[float]:
    """Factors that set points of the same intensity side by side."""
    seen: dict[float, int] = {}
    factors = []
    for value in values:
        key = round(float(np.log10(value)), 1)
        factors.append(1.16 ** seen.get(key, 0))
        seen[key] = seen.get(key, 0) + 1
    return factors


def _roofline_points(panel: Any, query: str, case: Case, factor: float) -> None:
    intensity = factor * case.entry["flops"] / case.entry["bytes"]
    style = {"marker": MARKERS[query], "markersize": 10, "linestyle": "none", "color": "#0072b2"}
    rate = case.entry["flops"] / 1e9
    panel.plot(intensity, rate / case.ours.seconds, label=words.TITLES[query].replace("`", ""), zorder=5, **style)
    if case.fastest_good:
        hollow = {**style, "color": STYLES["five lines of NumPy"]["color"], "markerfacecolor": "white"}
        panel.plot(intensity, rate / case.fastest_good.seconds, **hollow)


def against(results: Results, variable: str, path: Path) -> None:
    """Time against d or m, the other held where most sizes have it; a panel a question."""
    index = "md".index(variable)
    other = "dm"[index]
    cases = results.of(kappa=results.main_kappa())
    counts = {held: len({c.size for c in cases if c.entry[other] == held}) for held in {c.entry[other] for c in cases}}
    held = max(counts, key=lambda value: (counts[value], value))
    chosen = [case for case in cases if case.entry[other] == held]
    figure, panels = _figure(2, 4, (16, 7.6))
    for query, panel in zip(PANELS, panels, strict=True):
        _times(panel, [case for case in chosen if case.query == query], variable)
        panel.set_title(words.TITLES[query].replace("`", ""), fontsize=11)
    for panel in panels:
        _show_a_decade(panel)
    for panel in panels[::4]:
        panel.set_ylabel("seconds")
    for panel in panels[4:]:
        panel.set_xlabel("d, parameters" if variable == "d" else "m, gradients")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=10)
    title = f"{other} = {held:,}, κ = {words.power(results.main_kappa())}; hollow: R over {PROMISED}"
    figure.suptitle(title, fontsize=12)
    figure.savefig(path)


def _times(panel: Any, cases: list[Case], variable: str) -> None:
    cases = sorted(cases, key=lambda case: case.entry[variable])
    if not cases:
        return
    panel.plot([case.entry[variable] for case in cases], [case.limit for case in cases], **LIMIT)
    for name, style in STYLES.items():
        points = [(case.entry[variable], case.figures[name]) for case in cases if name in case.figures]
        if not points:
            continue
        label = name.removesuffix(", W kept")
        xs, times = [x for x, _ in points], [figure.seconds for _, figure in points]
        line = {"linewidth": 1.5, **style, "marker": ""}
        panel.plot(xs, times, **line)
        for good in (True, False):
            _markers(panel, [(x, f.seconds) for x, f in points if f.is_good == good], style, good=good)
        panel.plot([], [], label=label, **{"linewidth": 1.5, **style})
    panel.set(xscale="log", yscale="log")
    values = sorted({case.entry[variable] for case in cases})
    panel.set_xticks(values, [words.short(value) for value in values])
    panel.minorticks_off()


def _show_a_decade(panel: Any) -> None:
    """Have two powers of ten at the least on the axis of times."""
    least, most = panel.get_ylim()
    panel.set_ylim(10 ** np.floor(np.log10(least)), 10 ** np.ceil(np.log10(most)))


def _markers(panel: Any, points: Iterable[tuple[float, float]], style: dict[str, Any], *, good: bool) -> None:
    for x, y in points:
        face = style["color"] if good else "white"
        panel.plot(x, y, marker=style["marker"], color=style["color"], markerfacecolor=face, markersize=6, zorder=6)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns)))
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    return figure, panels
