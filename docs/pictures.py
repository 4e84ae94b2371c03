"""Draw the pictures of the landing page, docs/_static/pictures: ``python -m docs.pictures``, some seconds.

They are SVG whose colours are variables: on the site those of the theme, light or dark; elsewhere those given here.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from benchmarks.forward_error import SHAPE, measure_errors

FOLDER = Path(__file__).parent / "_static" / "pictures"
INK, MUTED, BLUE, ORANGE, PALE, WARM = "#1f2328", "#5f6873", "#0072b2", "#c24e00", "#cfe3f1", "#fbe3d0"
VARIABLES = {INK: "ink", MUTED: "muted", BLUE: "blue", ORANGE: "orange", PALE: "pale", WARM: "warm"}
WIDTH, HEIGHT = 3.1, 2.9  # inches, as wide as a third of a page; shapes are drawn in tenths of an inch
KAPPAS = np.geomspace(10, 8e5, 15)
STORED = {"facecolor": PALE, "edgecolor": BLUE}
VECTOR = {"facecolor": WARM, "edgecolor": ORANGE}
NEVER = {"facecolor": "none", "edgecolor": MUTED, "linestyle": (0, (4, 3))}


def box(ax: Axes, x: float, y: float, size: tuple[float, float], name: str = "", **style: Any) -> float:
    """Draw a matrix of (width, height) with its left side at x, its middle at y, and a name; return its right side."""
    width, height = size
    ax.add_patch(Rectangle((x, y - height / 2), width, height, linewidth=1.2, **(style or STORED)))
    word(ax, x + width / 2, y, name)
    return x + width


def word(ax: Axes, x: float, y: float, text: str, color: str = INK, *, size: float = 10.5, ha: str = "center") -> None:
    """Write a text around a point, or from it on."""
    ax.text(x, y, text, ha=ha, va="center_baseline", color=color, fontsize=size)


def draw_matrix(ax: Axes) -> None:
    """F = λI + GᵀG/m, by its shapes: d is 9 and m is 2."""
    square, upper, lower = (9, 9), 23, 8
    box(ax, 2, upper, square, "F", **NEVER)
    word(ax, 6.5, 17.2, "d × d, never formed", MUTED, size=9)
    word(ax, 12.6, upper, "=")
    box(ax, 14.3, upper, square, **NEVER)
    ax.plot([14.3, 23.3], [upper + 4.5, upper - 4.5], color=ORANGE, linewidth=2.5)
    word(ax, 20.4, upper + 1.7, "λ", ORANGE)
    word(ax, 11, lower, "+  1/m")
    box(ax, 14.3, lower, (2, 9), "Gᵀ")
    box(ax, 16.9, lower + 3.5, (9, 2), "G")
    word(ax, 17.1, lower + 0.6, "m gradients,", MUTED, size=9, ha="left")
    word(ax, 17.1, lower - 1.2, "each of length d", MUTED, size=9, ha="left")


def draw_product(ax: Axes) -> None:
    """F⁻¹v in three steps, by their shapes: d is 7 and m is 2."""
    wide, high, column, short, square = (7, 2), (2, 7), (0.9, 7), (0.9, 2), (2.6, 2.6)
    for y, text in ((28, "1   one pass over G"), (17.6, "2   an m × m system"), (11.6, "3   another pass over G")):
        word(ax, 0.5, y, text, MUTED, size=9, ha="left")
    first, second, third = 23, 15, 6.8
    box(ax, 1, first, wide, "G")
    box(ax, 8.8, first, column, **VECTOR)
    word(ax, 11, first, "v", ORANGE)
    word(ax, 13.4, first, "=")
    box(ax, 15.2, first, short)
    word(ax, 17.4, first, "b")
    box(ax, 1, second, square, "A⁻¹")
    box(ax, 4.4, second, short)
    word(ax, 6.5, second, "b")
    word(ax, 8.9, second, "=")
    box(ax, 10.7, second, short)
    word(ax, 12.8, second, "a")
    word(ax, 17, second, "A = mλI + GGᵀ", MUTED, size=9, ha="left")
    word(ax, 1, third, "(", size=14)
    box(ax, 2, third, column, **VECTOR)
    word(ax, 4.2, third, "v", ORANGE)
    word(ax, 6.6, third, "−")
    box(ax, 8.4, third, high, "Gᵀ")
    box(ax, 11.2, third, short)
    word(ax, 13.3, third, "a")
    word(ax, 14.8, third, ")", size=14)
    word(ax, 16.8, third, "/ λ")
    word(ax, 19.6, third, "=")
    box(ax, 21.6, third, column, **VECTOR)
    word(ax, 25.2, third, "F⁻¹v", ORANGE)


def draw_digits(ax: Axes) -> None:
    """The backward error of F⁻¹v for a v in the span of the gradients, by the textbook and by the library."""
    figures = [f for kappa in KAPPAS for f in measure_errors(float(kappa)) if f["v"] == "a row"]
    lines = {way: [f["R"] for f in figures if f["way"] == way] for way in ("textbook", "matvec")}
    ax.loglog(KAPPAS, lines["textbook"], color=ORANGE, linewidth=2.2)
    ax.loglog(KAPPAS, lines["matvec"], color=BLUE, linewidth=2.2)
    ax.axhline(30, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    ax.set(ylim=(0.01, 3e6), xlim=(KAPPAS[0], KAPPAS[-1]), yticks=10.0 ** np.arange(-2, 7, 2))
    ax.set_xlabel("κ = ‖F‖/λ", color=MUTED, fontsize=9)
    ax.set_ylabel("backward error / eps", color=MUTED, fontsize=9)
    word(ax, 3e4, 6e5, "steps 1 to 3, once", ORANGE, ha="right")
    word(ax, 3e3, 0.08, "inverse @ v", BLUE)
    word(ax, KAPPAS[-1], 80, "LAPACK's threshold", MUTED, size=8, ha="right")
    ax.tick_params(which="both", colors=MUTED, labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)


def as_svg(draw: Callable[[Axes], None], name: str) -> str:
    """A drawing as SVG whose colours are variables, without a style that would hold for a whole page."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        text = _svg(draw, shapes=draw is not draw_digits)
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.S)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable}, {color})")
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


def _svg(draw: Callable[[Axes], None], *, shapes: bool) -> str:
    figure = plt.figure(figsize=(WIDTH, HEIGHT), layout="none" if shapes else "constrained")
    ax = figure.add_axes((0, 0, 1, 1)) if shapes else figure.add_subplot()
    draw(ax)
    if shapes:
        ax.set(xlim=(0, 10 * WIDTH), ylim=(0, 10 * HEIGHT))
        ax.axis("off")
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return file.getvalue()


PICTURES = {"matrix": draw_matrix, "product": draw_product, "digits": draw_digits}


def main() -> None:
    """Write the pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(as_svg(draw, name), encoding="utf-8")
    print(f"digits: {SHAPE[0]} gradients of length {SHAPE[1]:,}, float32")


if __name__ == "__main__":
    main()
