"""What a call does on the device, as CUDA's own profiling interface sees it, in any library: copies to the host."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.libraries import Library
from benchmarks.gpu.record import Json, read_json

TO_HOST = "DtoH"


FIELDS = ("host_reads", "host_bytes", "kernels", "kernel_seconds")


def summary_of(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Number and bytes of the copies to the host in a trace; number and total time of what the device computed."""
    events = list(events)
    sizes = [
        int(event.get("args", {}).get("bytes", 0))
        for event in events
        if event.get("cat") == "gpu_memcpy" and TO_HOST in event.get("name", "")
    ]
    seconds = [1e-6 * float(event.get("dur", 0)) for event in events if event.get("cat") == "kernel"]
    return dict(zip(FIELDS, (len(sizes), sum(sizes), len(seconds), sum(seconds)), strict=True))


class HostReads:
    """Counts copies to the host by PyTorch's profiler, which records every one that this process makes.

    One copy that is known is counted first: where it is not seen, no count can be believed, and none is given.

    Parameters
    ----------
    library : Library
        Whose calls are counted.
    """

    def __init__(self, library: Library) -> None:
        self.library, self.profiler, self.known_reads = library, None, None
        with contextlib.suppress(ImportError):
            import torch
            from torch import profiler

            self.profiler = profiler
            if library.on_gpu:
                torch.zeros(
                    1, device="cuda"
                )  # what PyTorch's profiler sees begins with PyTorch's own use of the device
            self._count_known()  # the first use of the profiler starts it
            self.known_reads = self._count_known()

    def _count_known(self) -> float:
        """Count the one copy of an array that was never read: JAX keeps what it has read."""
        known = self.library.normal((4,), 0)
        self.library.wait(known)
        return self._record(lambda: self.library.to_numpy(known))["host_reads"]

    @property
    def is_reliable(self) -> bool:
        """Whether the known copy was seen."""
        return self.known_reads == 1

    def of(self, call: Callable[[], Any]) -> Json:
        """Make a call; the `FIELDS` of it, each None where copies cannot be counted."""
        found = self._record(call) if self.profiler else {}
        return dict(found) if self.is_reliable else dict.fromkeys(FIELDS)

    def _record(self, call: Callable[[], Any]) -> dict[str, float]:
        kinds = self.profiler.ProfilerActivity
        with self.profiler.profile(activities=[kinds.CUDA if self.library.on_gpu else kinds.CPU]) as trace:
            self.library.wait(call())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            trace.export_chrome_trace(str(path))
            return summary_of(read_json(path).get("traceEvents", []))
