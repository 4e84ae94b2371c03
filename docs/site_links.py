"""Links of pages, which are read on a code host and on the site: paths in the repository.

On the site

- a page may include a file of another folder, ``{include} ../CONTRIBUTING.md``, whose links start at that folder;
- a link to such a file is a link to the page that shows it, and one to README.md a link to the first steps;
- a link to any other file that is no page becomes a download of it, which is MyST's doing.
"""

import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
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
INCLUDE = re.compile(r"^```\{include\} (\S+)\n```$", re.M)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|<)([^)\s#]+)(#[^)\s]*)?")


def for_site(name: str, text: str) -> str:
    """The Markdown of a page by its name, with what it includes, and links as they are on the site."""
    folder = (DOCS / name).parent

    def included(block: re.Match[str]) -> str:
        path = (folder / block[1]).resolve()
        return relink(path.read_text(encoding="utf-8"), path.parent, folder)

    return INCLUDE.sub(included, relink(text, folder, folder))


def relink(text: str, base: Path, folder: Path) -> str:
    """Markdown that was in `base`, with its links as they must be in `folder`."""

    def moved(link: re.Match[str]) -> str:
        path = (base / link[1]).resolve()
        if not path.exists():
            return link[0]
        anchor = "" if path == README else link[2] or ""  # another page has other headings
        return os.path.relpath(SHOWN_BY.get(path, path), folder) + anchor

    return LINK.sub(moved, text)
