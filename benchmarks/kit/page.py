"""The figures of docs/testing.md, in Markdown between two marks."""

from __future__ import annotations

import textwrap
from typing import Any

DEFECTS = ("<!-- defects -->\n", "<!-- end of defects -->")
PEERS = ("<!-- peers -->\n", "<!-- end of peers -->")


def with_figures(page: str, figures: dict[str, Any]) -> str:
    """The page with its figures in place of what is between the marks."""
    page = _between(page, DEFECTS, _defects(figures["defects"]))
    return _between(page, PEERS, _peers(figures.get("peers", [])))


def _between(page: str, marks: tuple[str, str], text: str) -> str:
    before, _, rest = page.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n{text}\n{marks[1]}{after}"


def _defects(cases: list[dict[str, Any]]) -> str:
    found = sum(bool(case["text"]) for case in cases)
    seconds = sum(case["seconds"] for case in cases)
    lines = [f"{found} of {len(cases)} are found, in {seconds:.0f} s, shrinking included.", ""]
    for case in cases:
        about = " ".join(case["about"].split())
        seen = f" ({case['seen']})" if case["seen"] else ""
        lines += [*_wrapped(f"**{case['name']}**{seen}. {about}"), "", "```text", case["text"] or "missed", "```", ""]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120)


def _peers(cases: list[dict[str, Any]]) -> str:
    lines = []
    for case in cases:
        failed = case["failed"]
        heading = f"**{case['name']}** of {case['package']} {case['version']}:"
        lines += [f"{heading} {', '.join(f'`{check}`' for check in failed) or 'nothing'} failed.", ""]
        for text in failed.values():
            lines += ["```text", text, "```", ""]
    return "\n".join(lines)
