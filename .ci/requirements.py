"""Print what the package needs, for pip: the lowest versions that pyproject.toml allows of what it and its tests need.

With ``--extras``: everything that any extra names.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
if "--extras" in sys.argv:
    print(*sorted({requirement for wanted in extras.values() for requirement in wanted}), sep="\n")
else:
    print(*(requirement.replace(">=", "==") for requirement in project["dependencies"] + extras["test"]), sep="\n")
