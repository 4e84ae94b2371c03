"""Draw the pictures of the landing page, docs/_static/pictures: ``python -m docs.pictures``, some seconds.

They are SVG whose colours are variables: on the site those of the theme, light or dark; elsewhere those given here.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from benchmarks.forward_error import SHAPE, measure_errors

FOLDER = Path(__file__).parent / "_static" / "pictures"
INK, MUTED, BLUE, ORANGE, PALE, WARM = "#1f2328", "#5f6873", "#0072b2", "#c24e00", "#cfe3f1", "#fbe3d0"
VARIABLES = {INK: "ink", MUTED: "muted", BLUE: "blue", ORANGE: "orange", PALE: "pale", WARM: "warm"}
LONG, SHORT = 4.0, 0.8  # d and m, as drawn
KAPPAS = np.geomspace(10, 8e5, 15)


def box(ax: Axes, x: float, y: float, size: tuple[float, float], name: str = "", **style: str) -> float:
    """Draw a matrix of (width, height) with its left side at x, its middle at y, and a name; return its right side."""
    width, height = size
    style = {"facecolor": PALE, "edgecolor": BLUE, **style}
    ax.add_patch(Rectangle((x, y - height / 2), width, height, linewidth=1.2, **style))
    word(ax, x + width / 2, y, name)
    return x + width


def word(ax: Axes, x: float, y: float, text: str, color: str = INK, size: float = 13) -> None:
    """Write a text around a point."""
    ax.text(x, y, text, ha="center", va="center", color=color, fontsize=size)


def draw_matrix(ax: Axes) -> None:
    """F = λI + GᵀG/m, by its shapes."""
    y = 0.0
    x = box(ax, 0, y, (LONG, LONG), "F", facecolor="none", edgecolor=MUTED, linestyle=(0, (4, 3)))
    word(ax, LONG / 2, -LONG / 2 - 0.5, "d × d, never formed", MUTED, 11)
    word(ax, x + 0.45, y, "=")
    x = box(ax, x + 0.9, y, (LONG, LONG), facecolor="none", edgecolor=MUTED, linestyle=(0, (4, 3)))
    ax.plot([x - LONG, x], [LONG / 2, -LONG / 2], color=ORANGE, linewidth=2.5)
    word(ax, x - LONG / 2 + 0.6, 0.6, "λ", ORANGE)
    word(ax, x + 0.65, y, "+ 1/m")
    x = box(ax, x + 1.3, y, (SHORT, LONG), "Gᵀ")
    x = box(ax, x + 0.2, (LONG - SHORT) / 2, (LONG, SHORT), "G")
    word(ax, x - LONG / 2, LONG / 2 - SHORT - 0.5, "m gradients of length d", MUTED, 11)


def draw_product(ax: Axes) -> None:
    """F⁻¹v in three steps, by their shapes."""
    thin, tall = 0.28, 2.6
    warm = {"facecolor": WARM, "edgecolor": ORANGE}
    for y, number, title in ((5.6, 1, "one pass over G"), (3.4, 2, "an m × m system"), (0.7, 3, "another pass over G")):
        ax.text(0, y + (0.95 if number < 3 else 1.55), f"{number}  {title}", color=MUTED, fontsize=11, va="center")
    x = box(ax, 0.0, 5.6, (LONG, SHORT), "G")
    word(ax, box(ax, x + 0.25, 5.6, (thin, tall / 2), **warm) + 0.3, 5.6, "v", ORANGE)
    word(ax, x + 1.3, 5.6, "=")
    word(ax, box(ax, x + 1.75, 5.6, (thin, SHORT)) + 0.35, 5.6, "b")
    x = box(ax, 0.0, 3.4, (1.0, 1.0), "")
    word(ax, 0.5, 3.4, "A⁻¹")
    word(ax, box(ax, x + 0.25, 3.4, (thin, SHORT)) + 0.3, 3.4, "b")
    word(ax, x + 1.3, 3.4, "=")
    word(ax, box(ax, x + 1.75, 3.4, (thin, SHORT)) + 0.35, 3.4, "a")
    ax.text(x + 3.1, 3.4, "A = mλI + GGᵀ", color=MUTED, fontsize=11, va="center")
    word(ax, 0.2, 0.7, "(")
    word(ax, box(ax, 0.45, 0.7, (thin, tall), **warm) + 0.3, 0.7, "v", ORANGE)
    word(ax, 1.5, 0.7, "−")
    x = box(ax, 1.9, 0.7, (SHORT, tall), "Gᵀ")
    word(ax, box(ax, x + 0.2, 0.7, (thin, SHORT)) + 0.3, 0.7, "a")
    word(ax, x + 1.55, 0.7, ") / λ  =")
    word(ax, box(ax, x + 2.5, 0.7, (thin, tall), **warm) + 0.65, 0.7, "F⁻¹v", ORANGE)


def draw_digits(ax: Axes) -> None:
    """The backward error of F⁻¹v for a v in the span of the gradients, by the textbook and by the library."""
    figures = [f for kappa in KAPPAS for f in measure_errors(float(kappa)) if f["v"] == "a row"]
    lines = {way: [f["R"] for f in figures if f["way"] == way] for way in ("textbook", "matvec")}
    ax.loglog(KAPPAS, lines["textbook"], color=ORANGE, linewidth=2.2)
    ax.loglog(KAPPAS, lines["matvec"], color=BLUE, linewidth=2.2)
    ax.axhline(30, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    ax.set(ylim=(0.01, 3e6), xlim=(KAPPAS[0], KAPPAS[-1]), xlabel="κ = ‖F‖/λ", ylabel="backward error / eps")
    ax.text(3e3, 1e5, "steps 1 to 3, once", color=ORANGE, ha="right", va="center", fontsize=12)
    ax.text(3e3, 0.35, "inverse @ v", color=BLUE, ha="center", va="center", fontsize=12)
    ax.text(KAPPAS[-1], 45, "LAPACK's threshold  ", color=MUTED, ha="right", va="bottom", fontsize=10)
    ax.tick_params(which="both", colors=MUTED, labelsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.xaxis.label.set_color(MUTED)
    ax.yaxis.label.set_color(MUTED)


def as_svg(draw: Callable[[Axes], None], size: tuple[float, float], *, shapes: bool) -> str:
    """A drawing as SVG whose colours are variables, without a style that would hold for a whole page."""
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    draw(ax)
    if shapes:
        ax.set_aspect("equal")
        ax.axis("off")
        ax.autoscale_view()
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.S)
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name}, {color})")
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


def main() -> None:
    """Write the pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pictures = {"matrix": draw_matrix, "product": draw_product, "digits": draw_digits}
    for name, draw in pictures.items():
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
            text = as_svg(draw, (4.6, 3.6), shapes=draw is not draw_digits)
        (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")
    print(f"{SHAPE[0]} gradients of length {SHAPE[1]:,}, float32")


if __name__ == "__main__":
    main()
