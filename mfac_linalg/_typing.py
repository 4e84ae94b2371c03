"""Names for types that no library declares."""

from typing import Any, TypeAlias

Array: TypeAlias = Any  # an array of any library of the array API: their classes share no base
