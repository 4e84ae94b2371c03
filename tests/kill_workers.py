"""Ask a cluster of two processes while one of them is killed: ``python -m tests.kill_workers FOLDER --runs 20``.

G is a folder of .npy files, one for each chunk; its size and the workers' memory are arguments, so that G may be larger
than all of that memory. Prints how many answers were those of the undisturbed run to the bit, and exits with 1 where
one was not, or where a cluster that lost its workers for good did not give up in time.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from distributed.core import Status

import mfac_linalg as ml

SETTINGS = {
    "distributed.scheduler.allowed-failures": 10,
    "distributed.scheduler.no-workers-timeout": "1m",
    "distributed.deploy.lost-worker-timeout": "1h",  # a cluster looks after this time whether a lost worker is back; if
    # that is just when it was killed again, its place stays empty
}


def write(folder: Path, rows: int, chunks: int, width: int) -> None:
    """One .npy file for each chunk."""
    for index in range(chunks):
        block = np.random.default_rng(index).standard_normal((rows, width), dtype=np.float32)
        np.save(folder / f"{index:05}.npy", block)


def gradients(folder: Path) -> da.Array:
    """The files side by side, read where they are needed, as often as they are."""
    files = sorted(folder.glob("*.npy"))
    shape = np.load(files[0], mmap_mode="r").shape
    chunks = [da.from_delayed(dask.delayed(np.load)(file), shape, meta=np.empty((0, 0), np.float32)) for file in files]
    return da.concatenate(chunks, axis=1)


def answers(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A build, a product and a diagonal."""
    g = gradients(folder)
    inverse = ml.WoodburyRankOneInverse(g, 1.0)
    v = da.random.default_rng(0).standard_normal(g.shape[1], chunks=g.chunks[1], dtype=np.float32)
    return dask.compute(inverse @ v, inverse.diagonal())


def kill_later(client: Client, delay: float, wait: random.Random) -> threading.Thread:
    """Kill one worker process, whose nanny starts another, after a delay."""

    def kill() -> None:
        time.sleep(delay)
        # a nanny gives up a worker that dies while it starts: one that runs is killed
        processes = [nanny.process for nanny in client.cluster.workers.values()]
        running = [process.pid for process in processes if process and process.status == Status.running]
        if running:
            os.kill(wait.choice(running), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def count_right_runs(folder: Path, client: Client, runs: int, seed: int) -> int:
    """How many of `runs` runs with a kill at a random moment give the answers of the run without."""
    start = time.perf_counter()
    expected = answers(folder)
    duration, wait, same = time.perf_counter() - start, random.Random(seed), 0
    print(f"undisturbed: {duration:.1f} s", flush=True)
    for run in range(runs):
        client.wait_for_workers(2, timeout=60)
        delay, start = wait.uniform(0, duration), time.perf_counter()
        thread = kill_later(client, delay, wait)
        found = answers(folder)
        thread.join()
        changed = [int(np.count_nonzero(one != other)) for one, other in zip(found, expected, strict=True)]
        same += not any(changed)
        seconds = time.perf_counter() - start
        print(f"run {run}: killed after {delay:.1f} s, done after {seconds:.1f} s, changed {changed}", flush=True)
    return same


def gives_up(folder: Path) -> bool:
    """Whether a cluster without workers refuses, as `no-workers-timeout` says, instead of waiting for ever."""
    with (
        dask.config.set({"distributed.scheduler.no-workers-timeout": "1s"}),
        LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster),
    ):
        try:
            answers(folder)
        except Exception as refused:
            return type(refused).__name__ == "NoWorkerError"
    return False


def main(arguments: list[str]) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--width", type=int, default=2**14)
    parser.add_argument("--memory", default="1GiB", help="of each worker")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write(options.folder, options.rows, options.chunks, options.width)
    size = options.rows * options.chunks * options.width * 4
    print(f"G: {size / 1e9:.2f} GB in {options.chunks} files; two workers of {options.memory} each", flush=True)
    workers = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": options.memory}
    with (
        dask.config.set(SETTINGS),
        LocalCluster(**workers, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        same = count_right_runs(options.folder, client, options.runs, options.seed)
    refused = gives_up(options.folder)
    fate = "refused" if refused else "HUNG OR WRONG"
    print(f"{same} of {options.runs} runs the same to the bit; without workers: {fate}")
    return 0 if same == options.runs and refused else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
