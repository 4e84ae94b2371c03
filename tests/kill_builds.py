"""Build in a folder, kill the build at random moments and resume it: ``python kill_builds.py FOLDER TIMES SEED``.

Prints how many kills came in time, and exits with 1 where an unfinished folder was loaded, or where a finished one gave
other answers than an undisturbed build.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

import mfac_linalg._files.folder
from mfac_linalg import InvalidFileError, WoodburyRankOneInverse, load

DIM = 400_000
mfac_linalg._files.folder.SECONDS, mfac_linalg._files.folder.RUN_BYTES = 0.0, 2**18


def build(gradients: np.ndarray, path: Path, *, resume: bool) -> None:
    """A build of many small panels."""
    WoodburyRankOneInverse(gradients, 0.5, out=path, resume=resume, memory_limit=2 * 10**7)


def is_loaded(path: Path) -> bool:
    """Whether a folder is taken for an inverse."""
    try:
        load(path)
    except InvalidFileError:
        return False
    return True


def main(path: Path, times: int, seed: int) -> int:
    """Each time a new folder, killed once or twice, and resumed until it is whole."""
    gradients = np.random.default_rng(seed).standard_normal((8, DIM), dtype=np.float32)
    build(gradients, path / "first", resume=False)  # which loads what takes longer than a build
    start = time.perf_counter()
    build(gradients, path / "whole", resume=False)
    duration, wait, killed = time.perf_counter() - start, random.Random(seed), 0
    expected = load(path / "whole").matvec(gradients[0])
    for _ in range(times):
        for resume in (False, True):
            child = os.fork()
            if child == 0:
                build(gradients, path / "killed", resume=resume)
                os._exit(0)
            time.sleep(wait.uniform(0.1, 0.8) * duration)
            os.kill(child, signal.SIGKILL)
            came_in_time = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            killed += came_in_time
            whole = (path / "killed" / "inverse.npz").exists()
            if came_in_time and is_loaded(path / "killed") != whole:
                return 1
        build(gradients, path / "killed", resume=True)
        if not np.array_equal(load(path / "killed").matvec(gradients[0]), expected):
            return 1
        shutil.rmtree(path / "killed")
    print(killed)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
