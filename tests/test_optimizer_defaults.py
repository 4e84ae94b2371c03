"""The defaults of the optimizers, and the page that recommends them."""

import ast
import inspect
import re

import pytest

from tests.source import REPOSITORY

PAGE = (REPOSITORY / "docs" / "optimizer.md").read_text(encoding="utf-8")


def read_options():
    """The options of the page's first table."""
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", PAGE, re.M)
    return {name: ast.literal_eval(value) for name, value in rows}


def test_the_defaults_of_the_optimizer_are_what_its_page_recommends():
    mfac = pytest.importorskip("mfac_linalg.torch").MFAC
    usual = {name: parameter.default for name, parameter in inspect.signature(mfac).parameters.items()}
    found = read_options()
    assert found.keys() == {"lr", "window", "damping", "beta2", "momentum", "momentum_of", "normalization"}
    assert found == {name: usual[name] for name in found}


def test_the_defaults_under_jax_are_those_under_pytorch():
    transform = pytest.importorskip("mfac_linalg.jax").scale_by_mfac
    usual = {name: parameter.default for name, parameter in inspect.signature(transform).parameters.items()}
    found = read_options()
    assert {name: found[name] for name in ("window", "damping", "beta2", "normalization")} == {
        name: usual[name] for name in ("window", "damping", "beta2", "normalization")
    }
    assert f"scale_by_mfac(), optax.trace({found['momentum']}), optax.scale(-{found['lr']})" in PAGE
