"""The arguments that define F, and the scalings with which S = C^½ G Λ^-½."""

import math
from dataclasses import dataclass
from typing import Any, cast

from .. import _backend
from .. import _validation as check
from .._rows.protocol import GivenRows, Rows
from .._rows.scaled import ScaledRows, scaled_rows
from .._scaling.powers_of_two import exponent
from .._scaling.sqrt_damping import DampingScaling, refuse_span
from .._typing import Array
from .options import Options


@dataclass(frozen=True)
class Problem:
    """The checked arguments of an inverse of Λ + Σ c_i g_i g_iᵀ, c_i = w_i / divisor."""

    gradients: GivenRows
    damping: Any
    weights: Array | None
    divisor: int

    def scaled(self, options: Options) -> "ScaledProblem":
        """The rows in the computing dtype, Λ as a scaling, and √(c_i / λ₀)."""
        rows = self.gradients.with_dtype(options.computing_dtype(self.gradients.like))
        if options.wide and _backend.is_vector(self.damping) and _backend.dtype_name(rows.dtype) == "float32":
            refuse_span(self.damping)
        scaling = DampingScaling.of(self.damping, rows.dtype, wide=options.wide)
        roots = _backend.weights_column(self.weights, rows.shape[0], like=rows.like) ** 0.5
        return ScaledProblem(rows, scaling, roots / float(self.divisor) ** 0.5 / scaling.scale**0.5)


@dataclass(frozen=True)
class ScaledProblem:
    """G in the computing dtype and its two diagonal scalings, not yet divided by any power of two."""

    gradients: Rows
    scaling: DampingScaling
    row_scale: Array  # √(c_i / λ₀), (m, 1) float64

    @property
    def is_traced(self) -> bool:
        """Whether values cannot be read."""
        return not (_backend.is_concrete(self.gradients.like) and _backend.is_concrete(self.row_scale))

    def rows(self, power: Any = None) -> ScaledRows:
        """S of 2^−power G and 2^power row_scale; of G unchanged for None."""
        return scaled_rows(self.gradients, power, self.row_scale, self.scaling.column_scale)

    def largest_exponent(self) -> int:
        """The exponent of the largest entry of G, of G diag(column_scale) where that spans much; refuse nan and inf."""
        rows = self.rows()
        largest = cast(GivenRows, rows.rows).largest()
        if not math.isfinite(largest):
            check.refuse_nonfinite()
        if not self.scaling.wide or largest == 0:
            return math.frexp(largest)[1]
        exponents = rows.exponents()
        return int(_backend.read(_backend.namespace(exponents).max(exponents)))

    def traced_exponent(self) -> Array:
        """The same under a trace, where nothing is refused."""
        rows, column_scale = self.gradients, self.scaling.column_scale
        if column_scale is None:
            return exponent(rows.like)
        largest = _backend.stop_gradient(ScaledRows(rows, rows.like, column_scale).exponents())
        xp = _backend.namespace(largest)
        return xp.astype(xp.max(xp.where(xp.isfinite(largest), largest, 1.0)), _backend.index_dtype(rows.like))
