"""The documentation site as text: pages that can be found, names that are on them, links that lead somewhere.

``python -m sphinx -W`` builds it, where every reference has to resolve; here is what it does not see.
"""

import ast
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import mfac_linalg as ml
from docs.site_links import SHOWN_BY, for_site, relink
from mfac_linalg._forward import Forward
from mfac_linalg.testing import CHECKS, KINDS, LIMIT
from tests.source import MODULES

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {str(path.relative_to(DOCS).with_suffix("")): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
TOCTREE = re.compile(r"^```\{toctree\}\n((?::[^\n]*\n)*)\n?(.*?)^```$", re.S | re.M)
REFERENCE = "\n".join(text for page, text in PAGES.items() if page.startswith("api/"))
DOCUMENTED = {name: kind for kind, name in re.findall(r"^\.\. auto(\w+):: mfac_linalg\.(\S+)$", REFERENCE, re.M)}
CONSTANT = re.compile(r"^\.\. py:data:: (\w+)\n   :module: mfac_linalg\.testing\n(?s:(.*?))^(?=\S)", re.M)
CONSTANTS = dict(CONSTANT.findall(PAGES["api/testing"]))  # name → what is indented below it
DOCUMENTED |= {f"testing.{name}": "data" for name in CONSTANTS}
CLASSES = {
    "api/woodbury": ml.WoodburyRankOneInverse,
    "api/window": ml.SlidingWindowInverse,
    "api/blocks": ml.BlockDiagonalInverse,
    "api/forward": Forward,
    "api/topk": ml.TopK,
    "api/rows": ml.GradientRows,
}


TOOLS = ["sphinx", "pydata_sphinx_theme", "numpydoc", "myst_nb", "sphinx_design", "sphinx_copybutton"]


def children(page):
    """The pages in the toctrees of a page."""
    folder = (DOCS / page).parent
    for _, entries in TOCTREE.findall(PAGES[page]):
        targets = re.findall(r"([^\s<>]+)>?$", entries, re.M)
        patterns = [str((folder / target).resolve().relative_to(DOCS)) for target in targets]
        yield from (name for name in PAGES if name != page and any(fnmatch(name, pattern) for pattern in patterns))


def public_names(module):
    """Its ``__all__``, or the functions and classes that it defines."""
    for node in MODULES[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return [n.name for n in MODULES[module].body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"]


def public_modules():
    """The package, and what is imported from it by name."""
    return [name for name in MODULES if "._" not in name and name.count(".") <= 1 and not name.endswith(".demo")] + [
        "mfac_linalg.testing.strategies"
    ]


def test_the_extra_brings_the_tools_that_build_the_site():
    extras = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    brought = {re.split(r"[^\w-]", requirement)[0] for requirement in extras["docs"]}
    configuration = (DOCS / "conf.py").read_text(encoding="utf-8")
    assert brought.issuperset(TOOLS)
    assert all(f'"{tool}' in configuration for tool in TOOLS)


def test_every_page_can_be_reached_from_the_first():
    found, new = set(), {"index"}
    while new:
        found |= new
        new = {child for page in new for child in children(page)} - found
    assert found == PAGES.keys()


def test_no_page_is_in_two_toctrees():
    entries = [child for page in PAGES for child in children(page)]
    assert sorted(entries) == sorted(set(entries))


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_in_the_reference(module):
    prefix = module.removeprefix("mfac_linalg").lstrip(".")
    names = {f"{prefix}.{name}".lstrip(".") for name in public_names(module)} - {"testing.strategies"}
    assert names
    assert names <= DOCUMENTED.keys(), names - DOCUMENTED.keys()


def test_constants_on_the_page_are_those_of_the_kit():
    assert re.findall(r"``([^`]+)``", CONSTANTS["CHECKS"]) == list(CHECKS)
    assert re.findall(r"``([^`]+)``", CONSTANTS["KINDS"]) == list(KINDS)
    assert re.findall(r":value: (\S+)", CONSTANTS["LIMIT"]) == [repr(LIMIT)]


@pytest.mark.parametrize("page", CLASSES)
def test_every_member_of_a_class_is_on_its_page_or_on_that_of_all_inverses(page):
    cls = CLASSES[page]
    shown = set(re.findall(r"^.*mfac_linalg\.\S+\.(\w+)$", PAGES[page], re.M))
    assert {name for name in dir(cls) if name[0] != "_"} <= shown | {"mro"}
    inherited = re.findall(r"^   ~mfac_linalg\.\w+\.(\w+)$", PAGES[page], re.M)
    assert all(name not in vars(cls) for name in inherited)
    assert set(inherited) <= set(re.findall(r"^\.\. auto\w+:: \S+\.(\w+)$", PAGES["api/inverse"], re.M))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_a_page_lead_to_files(page):
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.S | re.M)
    for target in re.findall(r"\]\((?!https?:|#)(.*?)\)", text, re.S):
        assert ((DOCS / page).parent / target.partition("#")[0]).exists(), target
    for target in re.findall(r"^:link: (\S+)$", text, re.M):
        assert target.startswith("http") or f"{(DOCS / page).parent / target}".removeprefix(f"{DOCS}/") in PAGES, target


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_one_title(page):
    text = re.sub(r"^(```|~~~).*?^\1$", "", PAGES[page], flags=re.S | re.M)
    assert len(re.findall(r"^# ", text, re.M)) == (0 if "{include} ../" in PAGES[page] else 1)


def test_links_of_an_included_file_are_those_of_the_site():
    text = "[a](docs/theory.md#1-the-matrix) [b](tests/README.md) [c](https://x.org) [d](#here) [e](pyproject.toml)"
    moved = relink(text, DOCS.parent, DOCS)
    assert moved == "[a](theory.md#1-the-matrix) [b](tests.md) [c](https://x.org) [d](#here) [e](../pyproject.toml)"
    assert relink("[x](../README.md#queries)", DOCS, DOCS) == "[x](start.md)"
    assert relink("[x](../CONTRIBUTING.md)", DOCS, DOCS / "api") == "[x](../contributing.md)"
    assert "](architecture.md)" in for_site("contributing", PAGES["contributing"])


@pytest.mark.parametrize("file", SHOWN_BY, ids=lambda file: str(file.relative_to(DOCS.parent)))
def test_a_page_that_shows_a_file_includes_it(file):
    page = SHOWN_BY[file]
    included = f"```{{include}} {Path('..') / file.relative_to(DOCS.parent)}" in page.read_text(encoding="utf-8")
    assert included or (file.name, page.name) == ("README.md", "start.md")


def test_pictures_of_the_site_take_its_colours():
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from docs import pictures

    for name in pictures.PICTURES:
        stored = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert has_no_colors_or_styles(stored), name
    assert has_no_colors_or_styles(pictures.as_svg(pictures.draw_product, "product"))


def has_no_colors_or_styles(svg):
    return "var(--muted, #" in svg and not re.search(r"<style|(fill|stroke): #", svg)
