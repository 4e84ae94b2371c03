"""Save over a file again and again, and kill each save at a random moment: ``python kill_saves.py FILE TIMES SEED``.

Prints how many kills came in time and exits with 1 where the file ever was anything but one of the two inverses.
"""

import os
import random
import signal
import sys
import time

import numpy as np

from mfac_linalg import WoodburyRankOneInverse, load

DIM = 60_000


def main(path: str, times: int, seed: int) -> int:
    """Alternate between two inverses that differ in their damping."""
    gradients = np.random.default_rng(seed).standard_normal((8, DIM))
    inverses = [WoodburyRankOneInverse(gradients * damping, damping) for damping in (1.0, 2.0)]
    start = time.perf_counter()
    inverses[0].save(path)
    duration = time.perf_counter() - start
    wait, killed = random.Random(seed), 0
    for turn in range(times):
        child = os.fork()
        if child == 0:
            inverses[turn % 2].save(path)
            os._exit(0)
        time.sleep(wait.uniform(0, 1.2 * duration))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        found = load(path)
        expected = inverses[0] if found.damping == 1.0 else inverses[1]
        if not np.array_equal(found.matvec(gradients[0]), expected.matvec(gradients[0])):
            return 1
    print(killed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
