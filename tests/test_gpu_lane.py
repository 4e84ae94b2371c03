"""The command for machines with a GPU (``benchmarks.gpu``) on the CPU, on tiny problems: its file and its failures."""

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import benchmarks.gpu.__main__ as command
from benchmarks.gpu import device, speed
from benchmarks.gpu.cases import Case
from benchmarks.gpu.host_reads import FIELDS, HostReads, summary_of
from benchmarks.gpu.libraries import LIBRARIES, ON_A_GPU, at_hand
from benchmarks.gpu.limits import of_device, timed
from benchmarks.gpu.record import Record, read_json
from benchmarks.gpu.suite import Recorder
from benchmarks.problems import Problem
from tests.backends import BACKENDS

CASES = ["build", "product of a random vector", "product of a row", "diagonal", "step"]
ON_HOST = [name for name, library in LIBRARIES.items() if library.runs_on_host and at_hand(name)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The file of a dry run on NumPy."""
    folder = tmp_path_factory.mktemp("results")
    words = [sys.executable, "-m", "benchmarks.gpu", str(folder), "--dry-run", "--libraries", "numpy"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(words, cwd=command.ROOT, env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "gpu-dry-run.json").read_text(encoding="utf-8"))


@pytest.fixture
def record(tmp_path):
    """A part with a minute left."""
    return Record(tmp_path / "part.json", 60.0)


def test_the_file_says_what_the_results_depend_on(results):
    assert results["status"] == "passed"
    assert {"numpy", "scipy", "array-api-compat", "array-api-strict", "pytest"} <= results["versions"].keys()
    assert results["device"] is None
    assert results["dry_run"]
    assert results["seed"] == Problem(1, 1).seed
    assert results["limit_seconds"] <= 480
    assert {"date", "processor", "cores", "platform", "python", "blas", "seconds"} <= results.keys()


def test_every_part_has_a_status_and_its_time(results):
    assert list(results["parts"]) == ["speed", "reads", "sweep", "suite"]
    parts = [part["numpy"] for part in results["parts"].values()]
    assert all(part["status"] == "passed" for part in parts)
    assert all(0 < part["seconds"] < part["limit_seconds"] for part in parts)
    assert sum(part["seconds"] for part in parts) <= results["seconds"]


def test_speed_is_beside_plain_work_and_right(results):
    part = results["parts"]["speed"]["numpy"]
    assert part["rates"]["product"]["flops_per_second"] > 0
    assert part["rates"]["copy"]["bytes_per_second"] > 0
    sizes = [(problem["num_gradients"], problem["dim"], problem["kappa"]) for problem in part["problems"]]
    assert sizes == [(m, d, kappa) for m, d in speed.DRY_SIZES for kappa in speed.KAPPAS]
    plain = {(p["num_gradients"], p["dim"]): p for p in part["plain"]}
    for problem in part["problems"]:
        assert [case["name"] for case in problem["cases"]] == CASES
        assert problem["failure"] is None
        for case in problem["cases"]:
            work = plain[problem["num_gradients"], problem["dim"]][case["limit"]]
            assert case["ratio"] == pytest.approx(case["seconds"] / work)
            assert 0 < case["fewest"] <= case["seconds"]
            assert (case["error"] is None) == (case["name"] == "build")
            assert case["is_right"]


def test_reads_are_counted_for_every_case(results):
    part = results["parts"]["reads"]["numpy"]
    for problem in part["problems"]:
        assert [case["name"] for case in problem["cases"]] == CASES
        assert all(case["host_reads"] is None for case in problem["cases"])  # no device: no count to believe


def test_sweep_and_suite_say_how_much_they_did(results):
    sweep, suite = results["parts"]["sweep"]["numpy"], results["parts"]["suite"]["numpy"]
    assert sweep["measured"] == sweep["problems"] > 0
    assert sweep["answers"] == sum(row["answers"] for row in sweep["rows"]) > 0
    assert sweep["worst_R"] == max(row["R"] for row in sweep["rows"]) <= sweep["limit"]
    assert suite["passed"] > 0
    assert suite["failed"] == 0


def test_every_library_for_a_gpu_is_a_backend_of_the_tests():
    ours = {LIBRARIES[name](on_gpu=True).backend for name in ON_A_GPU}
    assert ours == {backend.name for backend in BACKENDS if backend.needs_gpu or backend.library == "jax.numpy"}


@pytest.mark.parametrize("name", ON_HOST)
def test_the_calls_of_a_library_do_what_they_say(name):
    library = LIBRARIES[name](on_gpu=False)
    library.require_device()
    rows, again, other = (library.to_numpy(library.rows(4, 900, seed)) for seed in (1, 1, 2))
    assert rows.dtype == np.float32
    assert np.array_equal(rows, again)
    assert not np.any(rows == other)
    assert 0.1 < np.mean(rows * other) < 0.4  # of the mean that they share
    a, b = library.asarray(rows), library.asarray(np.ascontiguousarray(other.T))
    assert np.allclose(library.to_numpy(library.product(a, b)), rows @ other.T, rtol=1e-4)
    copy = library.copy(a, library.asarray(other.copy()))
    library.wait(copy)
    assert np.array_equal(library.to_numpy(copy), rows)
    assert copy is not a
    twice = library.compiled(lambda x: x + x)
    assert np.array_equal(library.to_numpy(twice(a)), rows + rows)


@pytest.mark.parametrize("name", ON_HOST)
def test_the_error_of_a_plain_product_shows_that_it_is_float32(name):
    assert of_device(LIBRARIES[name](on_gpu=False))["product"]["error"] < 10


def test_a_product_in_fewer_digits_is_seen():
    library = LIBRARIES["numpy"](on_gpu=False)
    library.product = lambda a, b: (a.astype("float16") @ b.astype("float16")).astype("float32")
    assert of_device(library)["product"]["error"] > 100


def test_the_argument_of_a_call_is_made_anew_for_each_and_not_timed():
    made, used = iter(range(100)), []
    timing = timed(LIBRARIES["numpy"](on_gpu=False), used.append, lambda: next(made))
    assert used == list(range(timing.calls + 1))


def test_only_copies_from_the_device_are_host_reads():
    def event(kind, name, size=0, microseconds=2.0):
        return {"ph": "X", "cat": kind, "name": name, "dur": microseconds, "args": {"bytes": size, "stream": 7}}

    events = [
        {"ph": "M", "name": "process_name"},
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 8),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 4096),
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 16),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 32),
        event("cuda_runtime", "cudaMemcpyAsync", 8),
        event("kernel", "gemv", microseconds=500.0),
        event("kernel", "trsm", microseconds=1000.0),
    ]
    assert summary_of(events) == pytest.approx(dict(zip(FIELDS, (2, 4104, 2, 1.5e-3), strict=True)))


def test_no_count_is_given_where_a_known_copy_is_not_seen():
    counter, calls = HostReads(LIBRARIES["numpy"](on_gpu=False)), []
    assert not counter.is_reliable
    assert counter.of(lambda: calls.append(1)) == dict.fromkeys(FIELDS)


def test_a_count_is_given_where_a_known_copy_is_seen(monkeypatch):
    counter = HostReads(LIBRARIES["numpy"](on_gpu=False))
    counter.known_reads, counter.profiler = 1, "a profiler"
    monkeypatch.setattr(counter, "_record", lambda call: dict.fromkeys(FIELDS, call()))
    assert counter.of(lambda: 3) == dict.fromkeys(FIELDS, 3)


@pytest.mark.parametrize("part", ["speed", "sweep"])
def test_a_part_that_fails_is_recorded(part, tmp_path):
    found = command.run_part(part, "numpy", 60.0, str(tmp_path), dry_run=False)
    assert found["status"] == "crashed"
    assert "numpy must see a GPU; it sees none." in found["output"]
    assert found["exit_status"] == 1


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    found = command.run_part("sweep", "numpy", 0.2, str(tmp_path), dry_run=True)
    assert found["status"] == "out of time"
    assert found["seconds"] < 30


def test_one_part_that_fails_stops_no_other_and_shows_in_the_exit_status(tmp_path, monkeypatch, capsys):
    def run_part(part, library, seconds, compiled, *, dry_run):
        limits.append(seconds)
        failed = part == "speed"
        return {"status": "crashed" if failed else "passed", "seconds": 0.0, "limit_seconds": seconds, "output": "why"}

    limits = []
    monkeypatch.setattr(command, "run_part", run_part)
    assert command.main([str(tmp_path), "--dry-run", "--libraries", "numpy", "--seconds", "100"]) == 1
    saved = read_json(tmp_path / "gpu-dry-run.json")
    assert saved["status"] == "failed"
    assert [part["numpy"]["status"] for part in saved["parts"].values()] == ["crashed", "passed", "passed", "passed"]
    assert limits == pytest.approx([25, 100 / 3, 50, 100], rel=0.01)  # what is left over goes to the others
    assert "why" in capsys.readouterr().out


def test_one_problem_that_fails_stops_no_other(record, capsys):
    def of(case, problem, gradients):
        if problem.num_gradients == speed.DRY_SIZES[0][0] and case.name == "diagonal":
            raise MemoryError
        return {}

    speed.measure(LIBRARIES["numpy"](on_gpu=False), record, of)
    saved = read_json(record.path)
    assert saved["status"] == "failed"
    assert [bool(problem["failure"]) for problem in saved["problems"]] == [True, True, False, False]
    assert [len(problem["cases"]) for problem in saved["problems"]] == [3, 3, 5, 5]


def test_a_wrong_answer_fails_the_part(record, monkeypatch):
    case = Case("product", "two_reads", lambda: 1.0, lambda v: v, lambda v, x: 31.0)
    monkeypatch.setattr(speed, "cases", lambda *_: [case])
    speed.speed(LIBRARIES["numpy"](on_gpu=False), record)
    assert record.fields["status"] == "failed"


def test_a_size_that_the_device_has_no_memory_for_is_left_out(record, monkeypatch):
    library = LIBRARIES["numpy"](on_gpu=True)
    monkeypatch.setattr(speed, "find_device", lambda: {"memory_bytes": 10**6})
    monkeypatch.setattr(speed, "SIZES", ((8, 300), (512, 10**6)))
    speed.measure(library, record, lambda *_: {})
    assert [problem["num_gradients"] for problem in record.fields["problems"]] == [8, 8]
    assert [size["num_gradients"] for size in record.fields["left_out"]] == [512]


def test_no_time_left_ends_a_part_by_itself(record):
    record.deadline = 0.0
    speed.measure(LIBRARIES["numpy"](on_gpu=False), record, lambda *_: {})
    assert read_json(record.path)["status"] == "out of time"


def test_tests_are_counted_once_and_their_failures_kept(record):
    def report(when, outcome):
        return SimpleNamespace(
            when=when,
            outcome=outcome,
            passed=outcome == "passed",
            failed=outcome == "failed",
            nodeid="a test",
            longreprtext="why",
        )

    recorder = Recorder(record)
    for when, outcome in [("setup", "passed"), ("call", "passed"), ("teardown", "passed"), ("setup", "skipped")]:
        recorder.pytest_runtest_logreport(report(when, outcome))
    recorder.pytest_runtest_logreport(report("call", "failed"))
    assert recorder.counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert recorder.failures == [{"test": "a test", "text": "why"}]
    record.deadline = 0.0
    with pytest.raises(pytest.exit.Exception, match="out of time"):
        recorder.pytest_runtest_logreport(report("setup", "passed"))


class Driver:
    """What is asked of NVIDIA's driver."""

    def __init__(self, count):
        self.count = count

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, number, ordinal):  # noqa: N802
        number._obj.value = ordinal

    def cuDeviceGetName(self, name, length, number):  # noqa: N802
        name.value = b"NVIDIA A10G (test)"

    def cuDeviceTotalMem_v2(self, memory, number):  # noqa: N802
        memory._obj.value = 24 * 2**30

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 13020


def test_a_device_is_described_by_its_driver(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(1))
    monkeypatch.setattr(device, "_driver", lambda: "580.1")
    found = device.find_device()
    assert found == {
        "name": "NVIDIA A10G (test)",
        "memory_bytes": 24 * 2**30,
        "devices": 1,
        "driver": "580.1",
        "cuda": "13.2",
    }
    assert device.file_name(found) == "gpu-nvidia-a10g-test.json"


def test_processes_share_the_memory_of_the_device(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 100)
    monkeypatch.setattr(device, "find_device", lambda: {"memory_bytes": 7 * 2**30})
    assert device.processes(16) == 3
    monkeypatch.setattr(device, "find_device", lambda: {"memory_bytes": 2**30})
    assert device.processes(16) == 1


def test_without_a_device_nothing_runs_and_the_message_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(0))
    assert command.main([str(tmp_path)]) == 2
    assert "A GPU must be there; the NVIDIA driver shows none. `--dry-run`" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_results_need_a_place(monkeypatch, capsys):
    monkeypatch.delenv("OUT", raising=False)
    with pytest.raises(SystemExit):
        command.parse([])
    assert "must say where the results go; got neither" in capsys.readouterr().err
    monkeypatch.setenv("OUT", "somewhere")
    assert str(command.parse([]).folder) == "somewhere"
