"""Write the figures of ``benchmarks/results`` into the pages that show them: ``python -m benchmarks.tables``.

A table is placed between ``<!-- figures: NAME -->`` and ``<!-- end of figures -->`` and is written by the function of
that name in `contents`. A sentence is found by its words, and the numbers in it are replaced. ``--check`` writes
nothing, names the pages that would change, and fails if there are any.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.contents import SENTENCES, TABLES

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/howto/factored-rows.md",
    "docs/influence.md",
    "docs/optimizer.md",
    "docs/pruning.md",
    "docs/scaling.md",
    "docs/theory.md",
)
NUMBER = r"(−?[\d.]*\d(?:e-?\d+)?)"
REGION = re.compile(r"(<!-- figures: (.*?) -->\n\n)(.*?)(\n<!-- end of figures -->)", re.S)


def with_tables(text: str) -> str:
    """The text with every table as the results have it."""
    return REGION.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text)


def with_numbers(text: str, sentence: str, numbers: tuple[str, ...]) -> str:
    """The text with these numbers in a sentence whose numbers are written {}; line breaks in it are free."""
    parts = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in sentence.split("{}")]
    pattern = re.compile("".join(f"{part}{NUMBER}" for part in parts[:-1]) + parts[-1])
    matches = pattern.findall(text)
    if len(matches) != 1 or len(parts) != len(numbers) + 1:
        msg = f"The sentence must be there once, with a number for each {{}}; got {len(matches)} times {sentence!r}."
        raise ValueError(msg)

    def filled(match: re.Match[str]) -> str:
        pieces, end = [], match.start()
        for group, number in enumerate(numbers, 1):
            pieces += [text[end : match.start(group)], number]
            end = match.end(group)
        return "".join([*pieces, text[end : match.end()]])

    return pattern.sub(filled, text)


def written(page: str, text: str) -> str:
    """The text of a page with its tables and numbers as the results have them."""
    text = with_tables(text)
    for sentence, numbers in SENTENCES.get(page, {}).items():
        text = with_numbers(text, sentence, numbers())
    return text


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if there is something to write")
    options = parser.parse_args(arguments)
    changed = []
    for page in PAGES:
        before = (ROOT / page).read_text(encoding="utf-8")
        after = written(page, before)
        if after != before:
            changed.append(page)
            if not options.check:
                (ROOT / page).write_text(after, encoding="utf-8")
    print("\n".join(f"{page} {'differs' if options.check else 'is written'}" for page in changed) or "Nothing differs.")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
