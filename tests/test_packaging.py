"""What .ci checks of a wheel and of the notebooks: each mistake is planted, and found."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.source import REPOSITORY

CARRIED = {"README.md", "pyproject.toml", "mfac_linalg/__init__.py", "mfac_linalg/py.typed"}
CARRIED |= {"mfac_linalg/testing/_exam.py", "mfac_linalg/_hypothesis_entry_point.py"}
METADATA = "Metadata-Version: 2.4\n"


@pytest.fixture
def checks(monkeypatch):
    specification = importlib.util.spec_from_file_location("wheel_checks", REPOSITORY / ".ci" / "wheel.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "carried", lambda: CARRIED)
    return module


def wheel(folder, checks, more=(), without=()):
    path, information = folder / "x.whl", "mfac_linalg-0.dist-info"
    extras = "".join(f"Provides-Extra: {name}\n" for name in checks.PROJECT["optional-dependencies"])
    package = {name for name in CARRIED if name.startswith("mfac_linalg/")} - {"mfac_linalg/_hypothesis_entry_point.py"}
    names = package | {"_mfac_linalg_hypothesis.py", f"{information}/licenses/LICENSE"} | set(more)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(f"{information}/METADATA", METADATA + extras)
        for name in sorted(names - set(without)):
            made.writestr(name, "")
    return path


def archive(folder, more=(), without=()):
    path = folder / "x.tar.gz"
    with tarfile.open(path, "w:gz") as made:
        for name in sorted((CARRIED | {"PKG-INFO"} | set(more)) - set(without)):
            made.addfile(tarfile.TarInfo(f"x-0/{name}"))
    return path


def test_a_wheel_and_an_archive_of_what_git_carries_pass(tmp_path, checks):
    checks.check_wheel(wheel(tmp_path, checks))
    checks.check_archive(archive(tmp_path))


@pytest.mark.parametrize("name", ["test_x.py", "tests/x.py", "test/x.py", "conftest.py", "testing/test_exam.py"])
def test_tests_in_a_wheel_are_found(tmp_path, checks, name):
    with pytest.raises(SystemExit, match="tests in the wheel"):
        checks.check_wheel(wheel(tmp_path, checks, [f"mfac_linalg/{name}"]))


def test_other_files_are_found_and_named(tmp_path, checks):
    with pytest.raises(SystemExit, match=r"not of this repository: \['mfac_linalg/secret.txt'\]"):
        checks.check_wheel(wheel(tmp_path, checks, ["mfac_linalg/secret.txt"]))
    with pytest.raises(SystemExit, match=r"not of this repository: \['dump.bin'\]"):
        checks.check_archive(archive(tmp_path, ["dump.bin"]))


def test_missing_files_are_found_and_named(tmp_path, checks):
    with pytest.raises(SystemExit, match=r"not in x.whl: \['mfac_linalg/testing/_exam.py'\]"):
        checks.check_wheel(wheel(tmp_path, checks, without=["mfac_linalg/testing/_exam.py"]))
    with pytest.raises(SystemExit, match=r"not in x.tar.gz: \['README.md'\]"):
        checks.check_archive(archive(tmp_path, without=["README.md"]))


def test_names_that_git_would_quote_are_carried(tmp_path, checks, monkeypatch):
    monkeypatch.undo()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / 'κ "λ".md').touch()
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    specification = vars(checks)["__spec__"]
    specification.loader.exec_module(checks)
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    assert checks.carried() == {'κ "λ".md'}


def test_a_copy_leaves_out_what_was_deleted_and_is_still_in_the_index(tmp_path):
    lines = (REPOSITORY / ".ci" / "run").read_text("utf-8").splitlines()
    start = lines.index("fresh() {")
    fresh = "\n".join(lines[start : lines.index("}", start) + 1])
    source, work = tmp_path / "source", tmp_path / "work"
    source.mkdir()
    work.mkdir()
    for name in ("kept.txt", 'κ "λ".md', "deleted.txt"):
        (source / name).touch()
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    (source / "deleted.txt").unlink()
    script = f"set -euo pipefail\nwork={work}\n{fresh}\nfresh copy true\n"
    done = subprocess.run(["bash", "-c", script], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (work / "copy").iterdir()} == {"kept.txt", 'κ "λ".md'}


if importlib.util.find_spec("jupyter_cache") and importlib.util.find_spec("myst_nb"):  # as in stage `docs`

    def test_a_notebook_that_fails_ends_the_run_and_is_named(tmp_path):
        (tmp_path / ".ci").mkdir()
        (tmp_path / "docs" / "notebooks").mkdir(parents=True)
        (tmp_path / ".ci" / "notebooks.py").write_text(
            (REPOSITORY / ".ci" / "notebooks.py").read_text("utf-8"), "utf-8"
        )
        head = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n"
        for name, code in {"right": "1 + 1", "wrong": "1 / 0"}.items():
            text = f"{head}# x\n\n```{{code-cell}}\n{code}\n```\n"
            (tmp_path / "docs" / "notebooks" / f"{name}.md").write_text(text, "utf-8")
        command = [sys.executable, ".ci/notebooks.py", str(tmp_path / "cache")]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "wrong.md failed" in done.stdout
        assert "ZeroDivisionError" in done.stdout
        assert "right.md" not in done.stdout
