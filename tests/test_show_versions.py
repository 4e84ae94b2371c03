"""`show_versions` and ``python -m mfac_linalg``."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy

import mfac_linalg as ml
from mfac_linalg import __main__ as command

pytestmark = pytest.mark.surroundings


def test_versions_are_those_of_what_is_imported():
    text = io.StringIO()
    ml.show_versions(text)
    found = dict(re.split(r" {2,}", line, maxsplit=1) for line in text.getvalue().splitlines())
    assert found["mfac_linalg"] == ml.__version__
    assert found["numpy"] == np.__version__
    assert found["scipy"] == scipy.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["processor"].endswith("cores")


def test_settings_of_threads_are_shown(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    ml.show_versions()
    assert re.search(r"^OMP_NUM_THREADS +7$", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_command_checks_what_is_installed():
    done = subprocess.run([sys.executable, "-m", "mfac_linalg"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^numpy +\d+ checks passed in ", done.stdout, flags=re.MULTILINE)
    assert "FAILED" not in done.stdout


def test_a_library_that_answers_wrongly_is_named(monkeypatch, capsys):
    def asarray(x):
        return x * x.dtype.type(1.001)

    monkeypatch.setattr(command, "_installed", lambda: iter([("wrong", asarray)]))
    assert command.main() == 1
    out = capsys.readouterr().out
    assert re.search(r"^wrong +\d+ of \d+ checks FAILED", out, flags=re.MULTILINE)
    assert "right formula: in span" in out


@pytest.mark.parametrize(
    ("library", "words"), [(("no_such_package", "asarray"), "is not installed"), (("sys", "asarray"), "cannot be used")]
)
def test_a_library_that_cannot_be_used_is_passed_over(library, words, monkeypatch, capsys):
    monkeypatch.setattr(command, "LIBRARIES", {library[0]: library})
    assert list(command._installed()) == []
    assert re.match(rf"{library[0]} +{words}", capsys.readouterr().out)


def test_a_library_that_fails_without_a_word_is_named(monkeypatch, capsys):
    def fails(x):
        raise RuntimeError

    monkeypatch.setattr(np, "fails", fails, raising=False)
    monkeypatch.setattr(command, "LIBRARIES", {"numpy": ("numpy", "fails")})
    assert command.main() == 0
    assert re.search(r"^numpy +cannot be used: RuntimeError$", capsys.readouterr().out, flags=re.MULTILINE)
