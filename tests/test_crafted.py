"""Files with forged contents and valid checksums: refused, or the answers are those of the contents."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import mfac_linalg as ml
from tests import crafted_outcomes
from tests.crafted import as_npy, describe_array, read_parts, write_parts
from tests.crafted_outcomes import ALL, VALUES, assert_refused, outcome, versions
from tests.stored import SAVED, WRITTEN

parts = crafted_outcomes.parts
path = crafted_outcomes.path
ROOT = Path(__file__).parents[1]


def all_outcomes(path, header, arrays, every=1, **place):
    """How many made-up files were loaded and right; fails where one was neither that nor refused."""
    wrong, loaded = [], 0
    chosen = list(versions(header, arrays))
    start = 0 if every == 1 else len(arrays) % every
    for what, changed_header, changed_arrays in chosen[start::every]:
        write_parts(path, changed_header, changed_arrays)
        try:
            loaded += outcome(path, **place)
        except BaseException as failure:
            wrong.append(f"{what}: {type(failure).__name__} {failure!s:.200}")
    assert not wrong, "\n".join(wrong)
    return loaded


@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
@pytest.mark.parametrize("name", SAVED)
def test_a_file_with_anything_made_up_is_refused_or_answered_as_it_says(name, tmp_path):
    header, arrays = read_parts(WRITTEN / f"{name}.npz")
    write_parts(tmp_path / "x.npz", header, arrays)
    assert outcome(tmp_path / "x.npz")
    loaded = all_outcomes(tmp_path / "x.npz", header, arrays, every=1 if ALL else 4)
    assert loaded <= 60  # of hundreds: a damping, a capacity, a divisor of rows that are not in the file


@pytest.mark.filterwarnings("ignore::mfac_linalg.IllConditionedWarning")
@pytest.mark.parametrize("name", ["weighted", "half", "tall", "blocks", "window", "compressed-window"])
def test_the_same_under_pytorch(name, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    header, arrays = read_parts(WRITTEN / f"{name}.npz")
    all_outcomes(tmp_path / "x.npz", header, arrays, every=2 if ALL else 16, xp=torch)


@pytest.mark.parametrize("name", ["single", "half"])
def test_the_same_under_jax(name, tmp_path):
    jax = pytest.importorskip("jax", reason="needs jax")
    header, arrays = read_parts(WRITTEN / f"{name}.npz")
    all_outcomes(tmp_path / "x.npz", header, arrays, every=4 if ALL else 40, xp=jax.numpy)


# --- what a file is made of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", ["schema", "version", "kind", "facts", "arrays"])
def test_a_header_of_other_types_is_refused(name, value, path, parts):
    header, arrays = parts
    write_parts(
        path,
        {**header, "arrays": {n: describe_array(x, as_npy(x)) for n, x in arrays.items()}, name: value},
        arrays,
        describe=False,
    )
    is_first = name == "schema" and type(value) is int and value < 2  # 0 and below have never been
    if not is_first and not (name == "version" and isinstance(value, str)):
        assert_refused(path)


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("name", ["shape", "dtype", "sha256"])
def test_an_array_described_otherwise_is_refused(name, value, path, parts):
    header, arrays = parts
    told = {n: describe_array(x, as_npy(x)) for n, x in arrays.items()}
    told["weights"][name] = value
    write_parts(path, {**header, "arrays": told}, arrays, describe=False)
    if (name, value) != ("dtype", "float64"):
        assert_refused(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" + "[]," * 400_000 + "[]]",
        '{"schema": ' + "9" * 5_000 + "}",
        '{"schema": 1e999, "version": "", "kind": "", "facts": {}, "arrays": {}}',
        '{"schema": NaN, "version": "", "kind": "", "facts": {}, "arrays": {}}',
        "null",
        "[]",
        '""',
        "",
        "{}",
        " " * 2**25,
        '{"schema": 1, "schema": 1}',
    ],
    ids=[
        "lists",
        "dictionaries",
        "wide",
        "digits",
        "infinity",
        "nan",
        "null",
        "list",
        "text",
        "nothing",
        "empty",
        "long",
        "twice",
    ],
)
def test_a_header_that_is_none_is_refused(text, path, parts):
    write_parts(path, *parts, text=text)
    assert_refused(path)


def test_a_fact_that_is_there_twice_is_refused(path, parts):
    header, arrays = parts
    told = {n: describe_array(x, as_npy(x)) for n, x in arrays.items()}
    text = json.dumps({**header, "arrays": told})
    write_parts(path, header, arrays, text=text)
    ml.load(path)
    write_parts(path, header, arrays, text=text.replace('"damping": null', '"damping": null, "damping": null'))
    assert_refused(path, "twice")


def test_a_member_that_is_not_listed_is_refused(path, parts):
    write_parts(path, *parts, members=(("more.npy", as_npy(np.ones(3))),))
    assert_refused(path, "members")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", ["weights.npy", "header.json"])
def test_a_member_that_is_there_twice_is_refused(name, path, parts):
    write_parts(path, *parts, members=((name, as_npy(np.ones(4))),))
    assert_refused(path)


def test_a_header_that_is_compressed_is_refused(path, parts):
    write_parts(path, *parts, compression=zipfile.ZIP_DEFLATED)
    assert_refused(path, "compressed")


@pytest.mark.parametrize("where", ["before", "between"])
def test_anything_beside_the_members_is_refused(where, path, parts):
    write_parts(path, *parts)
    whole = path.read_bytes()
    at = 0 if where == "before" else whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:at] + bytes(100) + whole[at:])
    assert_refused(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of memory as Linux has them")
def test_a_file_asks_for_no_more_memory_than_it_fills(path):
    """Within the address space of a small machine; a process that is killed, or that hangs, fails."""
    code = """
import resource, sys, mfac_linalg as ml
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)
try:
    ml.load(sys.argv[1])
except ml.InvalidFileError as refused:
    print(refused)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    for name, facts in (
        ("empty-window", {"window": 10**6}),
        ("window", {"window": 10**6}),
        ("window", {"window": 20_000}),
        ("unplaced-window", {"window": 10**9, "dim": 10**9}),
        ("compressed-window", {"window": 10**6}),
    ):
        header, arrays = read_parts(WRITTEN / f"{name}.npz")
        write_parts(path, {**header, "facts": {**header["facts"], **facts}}, arrays)
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert "`window` must leave room" in done.stdout
