"""What the page calls its questions and contenders, and how it writes numbers."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator

TITLES = {
    "build": "Build",
    "whitened build": "Build with W kept",
    "random": "`matvec`, v random",
    "row": "`matvec`, v a row of G",
    "combination": "`matvec_gradients`",
    "block": "`matmat`, 64 columns",
    "diagonal": "`diagonal`",
    "elements": "`element`, a million pairs",
    "step": "`append_matvec`",
}
MEANINGS = {
    "build": "Everything that a first product needs. Iterative solvers build nothing, and have no line.",
    "whitened build": "The same with `whiten=True`: the rows W = L⁻¹G are made and kept.",
    "random": "F⁻¹v for a v that has next to nothing in the span of the rows.",
    "row": "F⁻¹v for a stored gradient v, where a single subtraction from v/λ cancels.",
    "combination": "F⁻¹Gᵀc. The peers get v = Gᵀc ready made; the library takes c.",
    "block": "F⁻¹V for random V of shape (d, 64).",
    "diagonal": "The whole diagonal of F⁻¹. From the first call on the library keeps it; peers keep W.",
    "elements": "A million random elements of F⁻¹. The first call also makes what later ones use.",
    "step": "A window drops its oldest gradient, takes a new one g and answers F⁻¹g.",
}
KEEPING = ("diagonal", "elements")
"""Questions whose first call may make what later ones use."""
LIMITS = {
    "dm² flops": "dm² flops at the SGEMM rate",
    "2dm² flops": "2dm² flops at the SGEMM rate",
    "4dmk flops": "4dmk flops at the SGEMM rate",
    "two passes": "two passes over G",
    "one pass": "one read of G",
    "2m reads a pair": "2m numbers read for a pair",
}
REASONS = {
    ("dense Cholesky", "diagonal"): "it holds F⁻¹, and reads d of its numbers",
    ("dense Cholesky", "elements"): "it holds F⁻¹, and reads one number for a pair",
}
GENERAL_REASONS = {
    "build": "panels are looked at for overflow, and the sum over them is float64",
    "whitened build": "W answers to κ eps: a float64 Gram matrix, another pass",
    "random": "sums of 912 numbers are float32, float64 adds these up; where rounding may show, a residual in rows",
    "row": "a second sweep: two passes more, for a small R whatever κ and v",
    "block": "sums of 128 numbers are float32, float64 adds these up; where rounding may show, a residual in some rows "
    "and of one column",
    "combination": "sums of 912 numbers are float32, float64 adds these up",
    "elements": "indices are checked, and answers clipped to their bounds",
    "step": "two passes more, where the sum of the rows cancels",
}
"""Of a question, whoever the peer is."""
SERIAL_ROWS = 506
SERIAL_REASON = "sums of 912 numbers are float32: OpenBLAS takes them in one thread below 506 rows"
"""Of a product with a vector by more than one thread."""
SERIAL = ("random", "combination", "step")
"""The questions whose answer is such products."""
CALLS = 2.0
"""The costs of a call by which the library may be slower than a peer and be so for that reason."""


def seconds(x: float) -> str:
    """A time to three digits with its unit."""
    unit, factor = next(((u, f) for u, f in (("s", 1.0), ("ms", 1e3)) if x * f >= 1), ("µs", 1e6))
    return f"{three_digits(x * factor)} {unit}"


def three_digits(x: float) -> str:
    """A number above 0.01 to three digits without an exponent."""
    places = max(0, 2 - math.floor(math.log10(x))) if x > 0 else 0
    return f"{x:,.{min(places, 4)}f}"


def error(x: float) -> str:
    """R to two digits."""
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}" if x >= 100 else f"{x:.2g}"


def power(x: float) -> str:
    """A number as 5e4."""
    mantissa, exponent = f"{x:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def ratio(x: float | None) -> str:
    """How many times, to two digits."""
    if x is None:
        return "–"
    return f"{x:,.0f}" if x >= 10 else f"{x:.1f}" if x >= 1.95 else f"{x:.2f}" if x >= 0.1 else f"{x:.1g}"


def size(m: int, d: int) -> str:
    """(m, d)."""
    return f"({m:,}, {d:,})"


def short(count: int) -> str:
    """A count as an axis has it: 512, 100k, 1M."""
    unit, factor = next(((u, f) for u, f in (("M", 10**6), ("k", 10**3)) if count % f == 0), ("", 1))
    return f"{count / factor:g}{unit}"


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fill(text: str) -> str:
    """Text in lines of the pages' width; the lines of a list hang, and code is not broken."""
    hanging = "  " if text.startswith("- ") else ""
    whole = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.fill(whole, 120, subsequent_indent=hanging, break_on_hyphens=False, break_long_words=False)
    return lines.replace("\0", " ")


def bullets(items: Iterator[str] | list[str]) -> str:
    """A list."""
    return "\n".join(fill(f"- {item}") for item in items)
