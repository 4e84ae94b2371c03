"""The GPU of this machine, from the driver itself: no array library is needed to ask for it."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess

DRIVER = "libcuda.so.1"
NAME_LENGTH = 256
PROCESS_BYTES = 2**31


def find_device() -> dict[str, object] | None:
    """Return name, memory in bytes, driver and its CUDA version of the first GPU; None where there is none."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    count, number, version = (ctypes.c_int() for _ in range(3))
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    name, memory = ctypes.create_string_buffer(NAME_LENGTH), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(number), 0)
    cuda.cuDeviceGetName(name, NAME_LENGTH, number)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), number)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return {
        "name": name.value.decode(),
        "memory_bytes": memory.value,
        "devices": count.value,
        "driver": _driver(),
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def _driver() -> str | None:
    """The version of the driver, which only its own tool tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None


def processes(most: int) -> int:
    """How many processes can use the first GPU at a time: one a core, and each with memory for its own context."""
    device = find_device()
    fitting = most if device is None else int(device["memory_bytes"]) // PROCESS_BYTES
    return max(1, min(most, os.cpu_count() or 1, fitting))


def file_name(device: dict[str, object] | None) -> str:
    """The name of the file with the results of a device: ``gpu-nvidia-h200.json``."""
    name = "dry-run" if device is None else re.sub(r"[^a-z0-9]+", "-", str(device["name"]).lower()).strip("-")
    return f"gpu-{name}.json"
