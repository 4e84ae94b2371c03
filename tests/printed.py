"""What the programs of the documentation print, on their pages: ``python -m tests.printed`` runs and writes them.

A program that is followed by ``<!-- printed -->`` has its output between that and ``<!-- end of printed -->``. Words
have to be the same in every run, and numbers to agree as `are_alike` says: a rounding error depends on the BLAS.
"""

import re
import sys
import tempfile
from pathlib import Path

PRINTED = re.compile(r"(?<=^```$\n\n)<!-- printed -->\n\n```text\n(.*?)```\n\n(?=<!-- end of printed -->)", re.S | re.M)
BLOCK = re.compile(r"^```python\n.*?^```$\n", re.S | re.M)
NUMBER = re.compile(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
ROUNDING, APART, WITHIN = 1e-3, 30.0, 0.25


def outputs(text: str) -> dict[int, str]:
    """The outputs on a page, by the index of their program."""
    ends = [block.end() for block in BLOCK.finditer(text)]
    return {ends.index(region.start() - 1): region[1] for region in PRINTED.finditer(text)}


def with_outputs(text: str, printed: dict[int, str]) -> str:
    """The page with these outputs."""
    indices = iter(outputs(text))
    return PRINTED.sub(lambda _: f"<!-- printed -->\n\n```text\n{printed[next(indices)]}```\n\n", text)


def are_alike(expected: str, found: str) -> bool:
    """Return whether two outputs have the same words, and numbers alike: to 25 %; below 1e-3, to a factor of 30."""
    if NUMBER.sub("#", expected) != NUMBER.sub("#", found):
        return False
    pairs = zip(*(NUMBER.findall(text.replace("−", "-")) for text in (expected, found)), strict=True)
    return all(_near(*(float(number.replace(",", "")) for number in pair)) for pair in pairs)


def _near(x: float, y: float) -> bool:
    low, high = sorted((abs(x), abs(y)))
    if high < ROUNDING:
        return high <= APART * low or high == low
    return abs(x - y) <= WITHIN * high


def main(names: list[str]) -> None:
    """Run the programs of all pages, or of those named, and write their outputs."""
    from tests.test_docs import PROGRAMS, ROOT, Page, waits_for

    for name in dict.fromkeys(program.page for program in PROGRAMS):
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = outputs(text)
        if not shown or (names and name not in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            page = Page(Path(folder), {"__name__": "page"})
            printed = dict(shown)
            for program in PROGRAMS:
                if program.page == name and not waits_for(program):
                    page.run_to(program)
                    printed[program.index] = page.printed
        (ROOT / name).write_text(with_outputs(text, printed), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
