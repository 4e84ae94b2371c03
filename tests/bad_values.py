"""Small gradients, and values that are bad for nearly every argument, each constructed again for every use."""

import fractions
import re

import array_api_strict
import numpy as np

from mfac_linalg.testing import make_problem

M, D = 4, 6
G = make_problem(1, shape=(M, D)).gradients
V = np.linspace(1, 2, D)


class Subclass(np.ndarray):
    """An array of a class of one's own, which is an array."""


def generator():
    yield 1.0


def structured():
    return np.zeros(D, [("a", "f8"), ("b", "i4")])


BAD = {
    "None": lambda: None,
    "5": lambda: 5,
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "10**30": lambda: 10**30,
    "True": lambda: True,
    "a complex number": lambda: 1j,
    "a fraction": lambda: fractions.Fraction(1, 2),
    "NumPy's nan": lambda: np.float64("nan"),
    "text": lambda: "x",
    "bytes": lambda: b"x",
    "no list": list,
    "a list of text": lambda: ["x"],
    "a ragged list": lambda: [[1.0], [1.0, 2.0]],
    "a list of nothing": lambda: [None] * D,
    "a dict": dict,
    "a set": lambda: {1, 2},
    "an object": object,
    "a class": lambda: int,
    "a class of numbers": lambda: np.float32,
    "a class of arrays": lambda: np.ndarray,
    "a function": lambda: generator,
    "a generator": generator,
    "a module": lambda: re,
    "complex": lambda: np.ones(D, complex),
    "objects": lambda: np.ones(D, object),
    "objects of nothing": lambda: np.array([None] * D),
    "strings": lambda: np.full(D, "x"),
    "bytes array": lambda: np.full(D, b"x"),
    "structured": structured,
    "dates": lambda: np.zeros(D, "datetime64[s]"),
    "durations": lambda: np.zeros((M, D), "timedelta64[s]"),
    "masked": lambda: np.ma.ones(D),
    "3-D": lambda: np.ones((2, 3, 4)),
    "wrong length": lambda: np.ones(D + 1),
    "wrong matrix": lambda: np.ones((M + 1, D + 1)),
    "empty": lambda: np.ones(0),
    "empty matrix": lambda: np.ones((0, D)),
    "0-d": lambda: np.array(2.0),
    "0-d text": lambda: np.array("x"),
    "float16": lambda: np.ones(D, "float16"),
    "longdouble": lambda: np.ones(D, np.longdouble),
    "another library": lambda: array_api_strict.ones(D),
    "nans": lambda: np.full(D, np.nan),
    "a matrix of nans": lambda: np.full((M, D), np.nan),
    "negative": lambda: -np.ones(D),
    "a subclass": lambda: np.ones(D).view(Subclass),
}
