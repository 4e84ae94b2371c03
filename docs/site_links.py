"""What the pages need besides Sphinx: links to files, members of base classes, pictures in the page's colours.

Pages are read on a code host too, so their links are paths in the repository. Three kinds of them are not Sphinx's:

- a page may include a file of another folder, ``{include} ../CONTRIBUTING.md``, whose links start at that folder;
- a link to such a file is a link to the page that shows it;
- a link to any other file becomes a download of it, which is MyST's doing.
"""

import os
import re
from operator import attrgetter
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

import mfac_linalg

DOCS = Path(__file__).resolve().parent
SHOWN_BY = {
    DOCS.parent / file: DOCS / page
    for file, page in {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "README.md": "start.md",
        "benchmarks/README.md": "benchmarks.md",
        "tests/README.md": "tests.md",
    }.items()
}
README = DOCS.parent / "README.md"
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.M)
NOTE = re.compile(r"\s*(Accuracy|Shared memory|With compression): ")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|<)([^)\s#]+)(#[^)\s]*)?")


def relink(text: str, base: Path, folder: Path) -> str:
    """Markdown that was in `base`, with its links as they must be in `folder`."""

    def moved(link: re.Match[str]) -> str:
        path = (base / link[1]).resolve()
        if not path.exists():
            return link[0]
        anchor = "" if path == README else link[2] or ""  # another page has other headings
        return os.path.relpath(SHOWN_BY.get(path, path), folder) + anchor

    return LINK.sub(moved, text)


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Include files, and make links those of the site."""
    folder = (DOCS / name).parent

    def included(block: re.Match[str]) -> str:
        path = (folder / block[1]).resolve()
        return relink(path.read_text(encoding="utf-8"), path.parent, folder)

    source[0] = INCLUDE.sub(included, relink(source[0], folder, folder))


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
    """Begin a paragraph where a docstring goes from cost to accuracy."""
    lines[:] = [new for line in lines for new in (["", line] if NOTE.match(line) else [line])]


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
