"""What the pages need besides Sphinx: their links, members of base classes, paragraphs, pictures in its colours."""

import re
from operator import attrgetter
from pathlib import Path

import site_links
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

import mfac_linalg

DOCS = Path(__file__).resolve().parent


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Include files, and make links those of the site."""
    source[0] = site_links.for_site(name, source[0])


def find_member(app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Node) -> nodes.reference | None:
    """A public name from within another module, or `SlidingWindowInverse.diagonal`, which a base class documents."""
    documented = env.domains.python_domain.objects
    target = node["reftarget"].removeprefix("mfac_linalg.")
    owner, _, member = target.rpartition(".")
    try:
        bases = attrgetter(owner or node.get("py:class") or "__name__")(mfac_linalg).__mro__
    except AttributeError:  # not a class
        bases = ()
    for name in [f"mfac_linalg.{target}", *(f"{base.__module__}.{base.__name__}.{member}" for base in bases)]:
        if name in documented:
            entry = documented[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)
    return None


def separate_notes(app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Make paragraphs of Notes: a docstring begins a new fact on a new line."""
    separated: list[str] = []
    within = False
    for line in lines:
        if line.startswith((".. rubric::", ":")):
            within = line == ".. rubric:: Notes"
        begins = within and line[:1].isupper() and bool(separated) and separated[-1].endswith(".")
        separated += ["", line] if begins else [line]
    lines[:] = separated


class PicturesInThePage(SphinxPostTransform):
    """Put SVG pictures of _static/pictures into HTML pages themselves, where CSS gives them the theme's colours."""

    default_priority = 5
    formats = ("html",)

    def run(self, **options) -> None:
        """Replace the images, keeping their description."""
        for image in list(self.document.findall(nodes.image)):
            path = DOCS / image["uri"]
            if path.match("_static/pictures/*.svg"):
                svg = re.sub(r"^.*?<svg ", "", path.read_text(encoding="utf-8"), flags=re.S)
                start = f'<svg class="picture" role="img" aria-label="{image.get("alt", "")}" '
                image.replace_self(nodes.raw("", start + svg, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect them."""
    app.connect("source-read", read_page)
    app.connect("missing-reference", find_member)
    app.connect("autodoc-process-docstring", separate_notes, priority=600)  # after numpydoc
    app.add_post_transform(PicturesInThePage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
