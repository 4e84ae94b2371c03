"""The programs of the documentation run unchanged: those of a page in their order, in one namespace and folder.

One with ``if __name__ == "__main__":`` is a script of its own.
"""

import ast
import builtins
import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import tables
from mfac_linalg import WoodburyRankOneInverse
from tests import printed
from tests.backends import BACKENDS
from tests.source import REPOSITORY as ROOT
from tests.source import ROOT as PACKAGE

PAGES = sorted([ROOT / "README.md", *ROOT.glob("*/*.md"), *ROOT.glob("docs/howto/*.md")])
WITH = {"mfac_linalg.torch": "torch", "mfac_linalg.jax": "jax"}


@dataclass(frozen=True)
class Program:
    """A block of Python on a page, from a line on."""

    page: str
    index: int
    line: int
    text: str

    @property
    def name(self):
        return f"{self.page}-{self.index}"

    @property
    def is_script(self):
        return '__name__ == "__main__"' in self.text

    @property
    def modules(self):
        """What it imports."""
        imports = [node for node in ast.walk(self.tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
        return modules | {node.module for node in imports if isinstance(node, ast.ImportFrom)}

    @property
    def missing(self):
        """The libraries that it imports and that are not here."""
        return sorted({top for m in self.modules if not find_spec(top := WITH.get(m, m).partition(".")[0])})

    @property
    def tree(self):
        return ast.parse(self.text)

    def words(self, kind):
        """The names that it reads (`ast.Load`) or makes (`ast.Store`)."""
        found = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}
        if kind is ast.Load:
            return found - vars(builtins).keys()
        nodes = [n for n in ast.walk(self.tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.alias)]
        return found | {(getattr(n, "asname", None) or n.name).partition(".")[0] for n in nodes}


def programs_of(path):
    """The programs of a page, with as many empty lines before them as make its line numbers right."""
    page = path.read_text(encoding="utf-8")
    for index, block in enumerate(re.finditer(r"^```python\n(.*?)^```$", page, re.S | re.M)):
        line = page.count("\n", 0, block.start(1)) + 1
        yield Program(str(path.relative_to(ROOT)), index, line, block[1])


PROGRAMS = [program for path in PAGES for program in programs_of(path)]


CUPY = next(backend for backend in BACKENDS if backend.name == "cupy")


def device_of(program):
    """The device without which a program cannot run, where there is none."""
    return "a GPU" if "import cupy" in program.text and CUPY.missing else ""


def waits_for(program):
    """The libraries without which it, or what it takes names from, does not run."""
    lost = {}
    for earlier in PROGRAMS:
        if earlier.page == program.page and earlier.index <= program.index:
            from_above = {lost[word] for word in earlier.words(ast.Load) if word in lost}
            wanting = device_of(earlier) or ", ".join(earlier.missing) or ", ".join(sorted(from_above))
            for word in earlier.words(ast.Store):
                if wanting:
                    lost[word] = wanting
                else:
                    lost.pop(word, None)
    return wanting


@dataclass
class Page:
    """Where the programs of a page have come to."""

    folder: object
    names: dict
    printed: str = ""
    done: set = field(default_factory=set)

    def run_to(self, program):
        """Run what has not run yet, up to a program; scripts on the way leave nothing to it."""
        above = [each for each in PROGRAMS if each.page == program.page and each.index < program.index]
        for each in [*(each for each in above if not each.is_script), program]:
            if each.index not in self.done and not waits_for(each):
                self.done.add(each.index)
                self._run(each)

    def _run(self, program):
        if program.is_script:
            script = self.folder / "program.py"
            script.write_text(program.text, encoding="utf-8")
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, script.name]
            done = subprocess.run(
                command, cwd=self.folder, env=environment, check=True, timeout=300, stdout=subprocess.PIPE, text=True
            )
            self.printed = done.stdout
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # curvlinops warns when it is imported
            for module in program.modules:
                importlib.import_module(module)
        code = compile("\n" * (program.line - 1) + program.text, program.page, "exec")
        output = io.StringIO()
        with warnings.catch_warnings(), contextlib.chdir(self.folder), contextlib.redirect_stdout(output):
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # of curvlinops
            exec(code, self.names)
        self.printed = output.getvalue()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Pages by name, each with its folder."""
    return {p.page: Page(tmp_path_factory.mktemp("page"), {"__name__": "page"}) for p in PROGRAMS}


def fisher_is_the_hessian(model, unravel, fisher, posterior, draws, x, y, **_):
    """The Fisher matrix of a softmax regression is the Hessian of its mean loss."""
    import torch

    def loss(vector):
        outputs = torch.func.functional_call(model, unravel(vector), (x,))
        return torch.nn.functional.cross_entropy(outputs, y)

    hessian = torch.autograd.functional.hessian(loss, unravel.ravel(dict(model.named_parameters())).detach())
    mean = torch.allclose(fisher.forward.to_dense(), hessian + 1e-2 * torch.eye(15), rtol=1e-4, atol=1e-6)
    total = torch.allclose(posterior.forward.to_dense(), torch.eye(15) + 60 * hessian, rtol=1e-4, atol=1e-4)
    return mean and total and len(draws) == 20


def weights_stay_in_sums(model, x, y, weight, rows, weighted, mean_gradient, step, **_):
    """Rows of a weighted sum contain the weights, and add up to the gradient of the weighted mean, as does the step."""
    import torch

    loss = torch.nn.CrossEntropyLoss(weight=weight)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss(model(x), y), list(model.parameters()))])
    scaled = torch.allclose(weighted, rows * weight[y][:, None])
    fisher = 0.1 * torch.eye(len(step)) + rows.T @ (rows * (weight[y] / weight[y].sum())[:, None])
    stepped = torch.allclose(fisher @ step, expected, rtol=1e-4, atol=1e-6)
    return scaled and stepped and torch.allclose(mean_gradient, expected, rtol=1e-4, atol=1e-6)


def rows_are_of_the_jacobian(several, jacobian, covariance, x, **_):
    """The rows of several outputs are those of the Jacobian, sample by sample and output by output."""
    import torch

    parameters = dict(several.named_parameters())
    parts = torch.func.jacrev(lambda each: torch.func.functional_call(several, each, (x,)))(parameters)
    expected = torch.cat([part.flatten(2) for part in parts.values()], dim=2)
    return torch.allclose(jacobian, expected, atol=1e-6) and bool((torch.linalg.eigvalsh(covariance) > 0).all())


def takes_the_steps_of_the_reference(model, optimizer, lr, momentum, weight_decay, **_):
    """M-FAC's own optimizer, by dense matrices: v ← μv + (1 − μ)F⁻¹g, F with zeros for the gradients to come."""
    import torch

    def vector():
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).double()

    p, window = vector(), optimizer.param_groups[0]["window"]
    v, fisher = torch.zeros_like(p), 1e-5 * torch.eye(len(p), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 20, generator=generator)).square().mean().backward()
        g = torch.cat([each.grad.reshape(-1) for each in model.parameters()]).double() + weight_decay * p
        fisher += torch.outer(g, g) / window
        v = momentum * v + (1 - momentum) * torch.linalg.solve(fisher, g)
        before, p = p, p - lr * v
        optimizer.step()
    return torch.linalg.norm(vector() - p) <= 1e-2 * torch.linalg.norm(p - before)


CLAIMS = {
    "README.md-0": lambda page: page.printed.startswith("True"),
    "docs/start.md-0": lambda page: "True" in page.printed.split(),
    "docs/start.md-1": lambda page: (
        page.printed.startswith("True") and page.names["by_name"]["0.weight"].shape == (30, 20)
    ),
    "docs/start.md-2": lambda page: page.printed.startswith("True"),
    "docs/start.md-6": lambda page: page.names["losses"][-1] < 0.9 * page.names["losses"][0],
    "docs/start.md-7": lambda page: page.names["steps"].shape == (200, 10_000),
    "docs/optimizer.md-0": lambda page: len(page.names["optimizer"].windows[0]) == 8,
    "docs/optimizer.md-1": lambda page: float(page.names["params"]["w"].max()) < 1,
    "docs/pruning.md-0": lambda page: page.names["pruned"].steps[-1].sparsity == 0.5,
    "docs/pruning.md-1": lambda page: page.names["two_of_four"].sum() == (page.names["pruned"] == 0).sum() == 500,
    "docs/pruning.md-2": lambda page: [round(step.sparsity, 2) for step in page.names["pruned"].steps][3:] == [0.8] * 5,
    "docs/howto/fisher.md-0": lambda page: fisher_is_the_hessian(**page.names),
    "docs/howto/fisher.md-1": lambda page: weights_stay_in_sums(**page.names),
    "docs/howto/ihvp.md-0": lambda page: page.names["inverse"].backward_error(page.names["v"], page.names["x"]) < 1e-6,
    "docs/howto/laplace.md-0": lambda page: len(page.names["draws"]) == 100,
    "docs/howto/laplace.md-1": lambda page: page.names["best"][1] not in (0.01, 10.0),
    "docs/howto/laplace.md-2": lambda page: rows_are_of_the_jacobian(**page.names),
    "docs/howto/natural-gradient.md-0": lambda page: page.names["losses"][-1] < 0.8 * page.names["losses"][0],
    "docs/migrating.md-1": lambda page: takes_the_steps_of_the_reference(**page.names),
    "docs/influence.md-2": lambda page: tuple(page.names["scores"].shape) == (64, 5),
}
"""What the text says of a program: checked after it has run."""


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_runs_and_finds_what_the_text_says(program, opened):
    if wanting := waits_for(program):
        pytest.skip(f"needs {wanting}")
    page = opened[program.page]
    page.run_to(program)
    assert CLAIMS.get(program.name, bool)(page)
    shown = printed.outputs((ROOT / program.page).read_text(encoding="utf-8"))
    assert printed.are_alike(shown.get(program.index, page.printed), page.printed), page.printed


def test_an_output_with_another_word_or_number_is_seen():
    shown = "error 3.0e-7, kept 1,200 of 4,000: True\n"
    assert printed.are_alike(shown, "error 8.1e-8, kept 1,190 of 4,000: True\n")
    for other in (shown.replace("True", "False"), shown.replace("e-7", "e-4"), shown.replace("1,200", "2,200")):
        assert not printed.are_alike(shown, other)
    page = f"```python\nx = 1\n```\n\n<!-- printed -->\n\n```text\n{shown}```\n\n<!-- end of printed -->\n"
    assert printed.outputs(page) == {0: shown}
    assert printed.outputs(printed.with_outputs(page, {0: "2\n"})) == {0: "2\n"}
    assert printed.outputs("```python\ny = 2\n```\n\n" + page) == {1: shown}


def test_every_claim_is_of_a_program():
    assert CLAIMS.keys() <= {program.name for program in PROGRAMS}


@pytest.mark.parametrize("page", sorted({program.page for program in PROGRAMS}))
def test_programs_need_no_name_that_no_line_makes(page):
    made = {"__name__"}
    for program in PROGRAMS:
        if program.page == page:
            made |= program.words(ast.Store) | {n.arg for n in ast.walk(program.tree) if isinstance(n, ast.arg)}
            assert program.words(ast.Load) <= made, f"{program.name}: {program.words(ast.Load) - made}"


def commands():
    """Modules of this repository that pages say to run, with what comes after them."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for module, rest in re.findall(r"python -m ((?:benchmarks|tests|mfac_linalg)[\w.]*)((?: [^\s`|;&]+)*)", text):
            yield pytest.param(module, rest.split(), id=f"{page.name}: {module}{rest}")


@pytest.mark.parametrize(("module", "words"), list(commands()))
def test_a_command_names_a_module_and_options_that_exist(module, words):
    above = PACKAGE.parent if module.startswith("mfac_linalg") else ROOT
    path = above.joinpath(*module.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__main__.py"
    text = "\n".join(file.read_text(encoding="utf-8") for file in {source, *source.parent.glob("record.py")})
    assert "__main__" in text
    asked = [w for before, w in zip(["", *words], words, strict=False) if w[0] == "-" or before[:1] != "-"]
    for word in asked:
        if word.isupper():  # FOLDER, for one that the reader has
            continue
        assert f'"{word.rstrip(".,")}"' in text, word


@pytest.mark.parametrize("page", tables.PAGES)
def test_figures_of_a_page_are_those_of_the_results(page):
    """``python -m benchmarks.tables`` writes them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.written(page, text) == text


def test_a_changed_figure_is_seen():
    text = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
    for wrong in (text.replace("69.25", "69.35"), text.replace("68.4 to 76.9 %", "68.4 to 77.9 %")):
        assert wrong != text
        assert tables.written("docs/pruning.md", wrong) == text
    with pytest.raises(ValueError, match="must be there once"):
        tables.written("docs/pruning.md", text.replace("at 70 %, ", "at 71 %, "))


def test_every_table_of_figures_is_on_a_page():
    shown = [name for page in tables.PAGES for _, name, *_ in tables.REGION.findall((ROOT / page).read_text("utf-8"))]
    assert sorted(shown) == sorted(tables.TABLES)


def test_a_section_that_a_page_sends_to_is_there_under_its_number():
    """Of docs/theory.md, whose headings begin with their numbers: ``#5-dual-sweeps``."""
    theory = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^## (.+)$", theory, re.M)}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        links = re.findall(r"section (\d+)\]\(\S*theory\.md#(\S+?)\)", text)
        assert all(anchor in headings and anchor.startswith(f"{number}-") for number, anchor in links), page.name
        assert len(re.findall(r"theory\.md#", text)) == len(links), page.name
        assert "theory, section" not in text, page.name


@pytest.mark.parametrize("shape", [(4, 5000), (300, 700), (64, 64), (2000, 30)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_least_memory_limit_is_that_of_the_page(shape, dtype):
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    terms = ("NN min(m, d)²", "NN (m + d)", "m min(d, w) (2 b + NN)", "NN bytes,    w = NN")
    formula = "^" + re.escape(" + ".join(terms)).replace("NN", r"([\d,]+)") + "$"
    system, vectors, piece, objects, columns = (int(x.replace(",", "")) for x in re.findall(formula, text, re.M)[0])
    words = " ".join(text.split())
    widened = int(re.findall(r'less than float64 in `precision="high"` it is (\d+) \(m \+ d\)', words)[0])
    (m, d), b = shape, np.dtype(dtype).itemsize
    w = columns if m < d else max(1, 2**20 // m)
    for precision in ("default", "high"):
        of_vectors = widened if precision == "high" and dtype != "float64" else vectors
        least = system * min(shape) ** 2 + of_vectors * (m + d) + m * min(d, w) * (2 * b + piece) + objects
        options = {"damping": 1.0, "precision": precision}
        WoodburyRankOneInverse(np.ones(shape, dtype), memory_limit=least, **options)
        with pytest.raises(ValueError, match=f"`memory_limit` must be at least {least:,} bytes"):
            WoodburyRankOneInverse(np.ones(shape, dtype), memory_limit=least - 1, **options)
