"""Three things that the pages need of Sphinx: links to files, members of base classes, pictures in the page's colours.

Pages are read on a code host too, so their links are paths in the repository. Three kinds of them are not Sphinx's:

- a page may consist of a file outside of docs/, ``{include} ../CONTRIBUTING.md``; that file's links start at its folder;
- a link to such a file is a link to the page that shows it;
- a link to any other file becomes a download of it, which is MyST's doing.
"""

import os
import re
from inspect import getmro
from pathlib import Path

import mfac_linalg
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

DOCS = Path(__file__).resolve().parent
SHOWN_BY = {
    DOCS.parent / file: DOCS / page
    for file, page in {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "benchmarks/README.md": "benchmarks.md",
        "tests/README.md": "tests.md",
    }.items()
}
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.M)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|<)([^)\s#]+)")


def relink(text: str, base: Path, folder: Path) -> str:
    """Markdown that was in `base`, with its links as they must be in `folder`."""

    def moved(link: re.Match[str]) -> str:
        path = (base / link[1]).resolve()
        return os.path.relpath(SHOWN_BY.get(path, path), folder) if path.exists() else link[0]

    return LINK.sub(moved, text)


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Include files, and make links those of the site."""
    folder = (DOCS / name).parent

    def included(block: re.Match[str]) -> str:
        path = (folder / block[1]).resolve()
        return relink(path.read_text(encoding="utf-8"), path.parent, folder)

    source[0] = INCLUDE.sub(included, relink(source[0], folder, folder))


def find_inherited(app: Sphinx, env, node, content):
    """`SlidingWindowInverse.diagonal` is documented where it is defined, in the base of all inverses."""
    name, _, member = node["reftarget"].removeprefix("mfac_linalg.").rpartition(".")
    owner = getattr(mfac_linalg, name or node.get("py:class") or "", None)
    for base in getmro(owner)[1:] if isinstance(owner, type) else []:
        full = f"{base.__module__}.{base.__name__}.{member}"
        if full in env.domains.python_domain.objects:
            entry = env.domains.python_domain.objects[full]
            return app.builder and make_reference(app, node["refdoc"], entry, content)
    return None


def make_reference(app: Sphinx, page: str, entry, content) -> nodes.reference:
    """A link from a page to a documented object."""
    address = f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
    return nodes.reference("", "", content, internal=True, refuri=address)


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
    app.connect("missing-reference", find_inherited)
    app.add_post_transform(PicturesInThePage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
