"""Write docs/performance.md and its pictures from the figures of ``python -m benchmarks.peers``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.report.cases import Results
from benchmarks.report.page import written

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "peers.json"
PAGE = ROOT / "docs" / "performance.md"


def main(arguments: list[str] | None = None) -> int:
    """Write, or say whether there is something to write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if the page differs")
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, help="read these (default: benchmarks/results/peers.json)"
    )
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="write there, and pictures next to it (default: docs/performance.md)"
    )
    options = parser.parse_args(arguments)
    results = Results.read(options.figures)
    text = written(results)
    differs = not options.page.exists() or options.page.read_text(encoding="utf-8") != text
    if options.check:
        print(f"{options.page.name} {'differs' if differs else 'is written'}.")
        return int(differs)
    from benchmarks.report.pictures import draw

    options.page.write_text(text, encoding="utf-8")
    draw(results, options.page.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
