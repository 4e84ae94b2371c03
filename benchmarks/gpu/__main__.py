"""Tests, accuracy and speed on the GPU of this machine, in eight minutes and without a network, as one JSON file.

``python -m benchmarks.gpu FOLDER`` writes ``FOLDER/gpu-DEVICE.json``; without FOLDER the environment's OUT is taken.
``--dry-run`` goes through the same calls on the CPU, on tiny problems, where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from benchmarks import machine
from benchmarks.gpu.device import file_name, find_device
from benchmarks.gpu.libraries import LIBRARIES, ON_A_GPU, at_hand
from benchmarks.gpu.record import Json, read_json, write_json
from benchmarks.problems import Problem

SECONDS, GRACE = 460.0, 5.0
SHARES = {
    "speed": {"torch": 30, "cupy": 40, "jax": 60},
    "reads": {"torch": 15, "cupy": 15, "jax": 25},
    "sweep": {"torch": 25, "cupy": 30, "jax": 35},
    "suite": {"torch": 40, "cupy": 50, "jax": 95},
}
"""Shares of the time: what a part leaves over goes to the parts after it."""
OTHER_SHARE = 30
PACKAGES = ("cupy", "cupy-cuda12x", "cupy-cuda13x", "jax", "jaxlib", "array-api-strict", "pytest", "hypothesis")
JAX_SETTINGS = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
"""Each process of JAX would take most of the device's memory, and compile for itself."""
LAST_CHARACTERS = 4000
ROOT = Path(__file__).parents[2]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; an error where the results have no place."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=os.environ.get("OUT"), help="of the JSON file")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, help="all that are for a GPU by default")
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--dry-run", action="store_true", help="tiny problems on the CPU")
    given = parser.parse_args(arguments)
    if given.folder is None:
        parser.error("FOLDER, or OUT in the environment, must say where the results go; got neither.")
    given.folder = Path(given.folder)
    if given.libraries is None:
        on_host = [name for name, library in LIBRARIES.items() if library.runs_on_host and at_hand(name)]
        given.libraries = on_host if given.dry_run else list(ON_A_GPU)
    return given


def describe(device: Json | None, given: argparse.Namespace) -> Json:
    """Device, machine, versions and seed: what the results depend on."""
    host = machine.describe()
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            host["versions"][package] = metadata.version(package)
    return {
        "schema": 1,
        "device": device,
        "dry_run": given.dry_run,
        "seed": Problem(1, 1).seed,
        "limit_seconds": given.seconds,
        **host,
    }


def run_part(part: str, library: str, seconds: float, compiled: str, *, dry_run: bool) -> Json:
    """Run a part in a process of its own, and end it with all that it started when its time is over."""
    start = time.monotonic()
    environment = {**JAX_SETTINGS, "JAX_COMPILATION_CACHE_DIR": compiled, **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder, "part.json"), Path(folder, "log")
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.part",
            part,
            library,
            str(file),
            str(max(1.0, seconds - GRACE)),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command + ["--dry-run"] * dry_run,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
            killed = _ends_late(process, seconds)
        fields = read_json(file)
        text = log.read_text(encoding="utf-8", errors="replace")
    if killed:
        fields["status"] = "out of time"
    elif fields.get("status") in (None, "unfinished"):
        fields["status"] = "crashed"
    if fields["status"] != "passed":
        fields |= {"exit_status": process.returncode, "output": text[-LAST_CHARACTERS:]}
    return {**fields, "seconds": time.monotonic() - start, "limit_seconds": seconds}


def _ends_late(process: subprocess.Popen, seconds: float) -> bool:
    """Wait for a process; whether it had to be killed. Those that it started are killed in any case."""
    try:
        process.wait(max(0.0, seconds))
        return False
    except subprocess.TimeoutExpired:
        return True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_parts(given: argparse.Namespace, start: float) -> Iterator[tuple[str, str, Json]]:
    """Run part after part; the time that is left is divided by their shares."""
    jobs = [(part, library) for part in SHARES if part in given.parts for library in given.libraries]
    shares = [SHARES[part].get(library, OTHER_SHARE) for part, library in jobs]
    with tempfile.TemporaryDirectory() as compiled:
        for index, (part, library) in enumerate(jobs):
            left = given.seconds - (time.monotonic() - start)
            seconds = left * shares[index] / sum(shares[index:])
            yield part, library, run_part(part, library, seconds, compiled, dry_run=given.dry_run)


def main(arguments: list[str] | None = None) -> int:
    """Run every part; the exit status is 0 if all passed, 1 if one did not, 2 if nothing could run."""
    given = parse(sys.argv[1:] if arguments is None else arguments)
    device = None if given.dry_run else find_device()
    if device is None and not given.dry_run:
        print(
            "A GPU must be there; the NVIDIA driver shows none. `--dry-run` goes through everything on the CPU.",
            file=sys.stderr,
        )
        return 2
    given.folder.mkdir(parents=True, exist_ok=True)
    path, start = given.folder / file_name(device), time.monotonic()
    results = describe(device, given) | {"status": "unfinished", "parts": {}}
    for part, library, found in run_parts(given, start):
        results["parts"].setdefault(part, {})[library] = found
        results["seconds"] = time.monotonic() - start
        write_json(path, results)
        print(f"{part} {library}: {found['status']} in {found['seconds']:.1f} of {found['limit_seconds']:.1f} s")
        print(found.get("output", ""), end="", flush=True)
    passed = all(found["status"] == "passed" for part in results["parts"].values() for found in part.values())
    write_json(path, results | {"status": "passed" if passed else "failed"})
    print(f"{path}: {'all parts passed' if passed else 'not all parts passed'} in {results['seconds']:.0f} s")
    return int(not passed)


if __name__ == "__main__":
    raise SystemExit(main())
