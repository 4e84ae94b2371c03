"""What a wheel and a source archive must hold: ``python .ci/wheel.py FOLDER`` checks those in a folder."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def check_wheel(path: Path) -> None:
    """The package, the module that Hypothesis calls, metadata; no test, and every extra."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (information,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(wheel.read(f"{information}/METADATA").decode())
    tests = [name for name in names if is_test(name)]
    require(not tests, f"tests in the wheel: {tests}")
    tops = {name.partition("/")[0] for name in names}
    require(tops == {"mfac_linalg", "_mfac_linalg_hypothesis.py", information}, f"{path.name} has {sorted(tops)}")
    require({"mfac_linalg/py.typed", f"{information}/licenses/LICENSE"} <= set(names), "no py.typed or no licence")
    package = {name for name in carried() if name.startswith("mfac_linalg/")}
    package = package - {"mfac_linalg/_hypothesis_entry_point.py"} | {"_mfac_linalg_hypothesis.py"}
    require_same({name for name in names if not name.startswith(f"{information}/")}, package, path.name)
    extras = {name.replace("-", "_") for name in metadata.get_all("Provides-Extra")}
    require(extras == set(PROJECT["optional-dependencies"]), f"extras are {sorted(extras)}")


def check_archive(path: Path) -> None:
    """Every file that git carries, the metadata, and nothing else."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if not member.isdir()}
    require_same(names, carried() | {"PKG-INFO"}, path.name)


def is_test(name: str) -> bool:
    """Whether a path is of tests or benchmarks; `mfac_linalg.testing` is neither."""
    return re.search(r"(^|/)(test_[^/]*|tests?|conftest|benchmarks)\b", name) is not None


def require_same(found: set[str], expected: set[str], where: str) -> None:
    """End with the names that are missing and those that should not be there."""
    require(expected <= found, f"not in {where}: {sorted(expected - found)}")
    require(found <= expected, f"in {where}, and not of this repository: {sorted(found - expected)}")


def carried() -> set[str]:
    """The files of this repository, those that are new included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in listed if name and (ROOT / name).exists()}


def require(is_right: bool, words: str) -> None:
    """End with the words where something is not as it should be."""
    if not is_right:
        sys.exit(words)


if __name__ == "__main__":
    (found,) = Path(sys.argv[1]).glob("*.whl")
    check_wheel(found)
    (found,) = Path(sys.argv[1]).glob("*.tar.gz")
    check_archive(found)
