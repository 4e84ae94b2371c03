"""The programs in the documentation run as they stand."""

import ast
import inspect
import json
import re
import statistics
import warnings
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("optimizer.md", "pruning.md", "recipes.md")
PROGRAMS = {
    f"{page}-{index}": text
    for page in PAGES
    for index, text in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S))
}


@pytest.fixture(params=PROGRAMS)
def ran(request):
    """The name of a program, and the names that it leaves."""
    for library in set(re.findall(r"^import (torch|jax|optax)$", PROGRAMS[request.param], re.M)):
        pytest.importorskip(library)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(PROGRAMS[request.param], request.param, "exec"), names)
    return request.param, names


def test_a_program_runs_and_finds_what_the_text_says(ran):
    name, names = ran
    if name == "optimizer.md-0":
        assert len(names["optimizer"].windows[0]) == 8
    if name == "optimizer.md-1":
        assert float(names["params"]["w"].max()) < 1
    if name == "pruning.md-0":
        assert names["found"].steps[-1].sparsity == 0.5
    if name == "pruning.md-1":
        assert names["two_of_four"].sum() == 500
        assert (names["pruned"] == 0).sum() == 500
    if name == "recipes.md-0":
        inside, outside = names["variances"]
        assert outside > 10 * inside
        assert names["best"] not in (min(names["dampings"]), max(names["dampings"]))
    if name == "recipes.md-1":
        check_classifier(names)
    if name == "recipes.md-2":
        check_weighted_rows(names)
    if name == "recipes.md-3":
        assert names["losses"][-1] < 0.8 * names["losses"][0]


def check_classifier(names):
    """The Fisher matrix of a softmax regression is the Hessian of its mean loss."""
    import torch

    model, unravel = names["model"], names["unravel"]

    def loss(vector):
        outputs = torch.func.functional_call(model, unravel(vector), (names["x"],))
        return torch.nn.functional.cross_entropy(outputs, names["y"])

    hessian = torch.autograd.functional.hessian(loss, unravel.ravel(dict(model.named_parameters())).detach())
    found = names["fisher"].forward.to_dense() - 1e-2 * torch.eye(15)
    torch.testing.assert_close(found, hessian, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        names["posterior"].forward.to_dense(), torch.eye(15) + 60 * hessian, rtol=1e-4, atol=1e-4
    )
    assert len(names["draws"]) == 20


def check_weighted_rows(names):
    import torch

    model, loss = names["model"], torch.nn.CrossEntropyLoss(weight=names["weight"])
    expected = torch.autograd.grad(loss(model(names["x"]), names["y"]), list(model.parameters()))
    torch.testing.assert_close(names["mean_gradient"], torch.cat([g.reshape(-1) for g in expected]))
    torch.testing.assert_close(names["weighted"], names["rows"] * names["weight"][names["y"]][:, None])


def recommended():
    """The options of docs/optimizer.md's first table."""
    text = (DOCS / "optimizer.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", text, re.M)
    return {name: ast.literal_eval(value) for name, value in rows}


def test_the_defaults_of_the_optimizer_are_what_its_page_recommends():
    mfac = pytest.importorskip("mfac_linalg.torch").MFAC
    usual = {name: parameter.default for name, parameter in inspect.signature(mfac).parameters.items()}
    found = recommended()
    assert found.keys() == {"lr", "window", "damping", "beta2", "momentum", "normalization"}
    assert found == {name: usual[name] for name in found}


def test_the_defaults_under_jax_are_those_under_pytorch():
    transform = pytest.importorskip("mfac_linalg.jax").scale_by_mfac
    usual = {name: parameter.default for name, parameter in inspect.signature(transform).parameters.items()}
    found = recommended()
    assert {name: found[name] for name in ("window", "damping", "beta2", "normalization")} == {
        name: usual[name] for name in ("window", "damping", "beta2", "normalization")
    }
    text = (DOCS / "optimizer.md").read_text(encoding="utf-8")
    assert f"scale_by_mfac(), optax.trace({found['momentum']}), optax.scale(-{found['lr']})" in text


def test_the_figures_of_the_first_steps_are_those_that_were_measured():
    text = (DOCS / "optimizer.md").read_text(encoding="utf-8")
    table = text[text.index("## The first steps") : text.index("## On a real network")]
    rows = re.findall(r"^\| [*`]*(\w+)[^|]*\| ([^|]+?) \| ([^|]+?) \|$", table, re.M)
    file = DOCS.parent / "benchmarks" / "results" / "defaults.json"
    figures = json.loads(file.read_text(encoding="utf-8"))["first"]["figures"]
    measured = []
    for name in dict.fromkeys(figure["optimizer"] for figure in figures):
        for batch in (512, 128):
            own = {"optimizer": name, "batch": batch}
            found = [figure["accuracy"] for figure in figures if own.items() <= figure.items()]
            measured.append(f"{statistics.fmean(found):.1f} % ({min(found):.1f} to {max(found):.1f})")
    assert [cell for _, *cells in rows for cell in cells] == measured
