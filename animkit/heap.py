"""Memory that a step frees is kept for the next one: on Linux, training and drawing on a CPU gain about a tenth.

glibc returns large blocks to the kernel as soon as they are freed, so every page of the next block must be requested
again and zeroed. A training step of the miniature's motion module has 120,000 page faults; with the memory kept it has
5,000 (benchmarks/heap.py). The results are the same.
"""
import ctypes
import re
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MIB = 2**20


def keep_freed_memory() -> bool:
    """Keep freed blocks of up to 32 MiB (glibc's most) in this process; larger ones, such as the weights of a full-size
    model, still go back at once. -> whether this system can do it. A second call is harmless."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl's libc has none
    if mallopt is None:
        return False
    return all([mallopt(M_MMAP_THRESHOLD, 32 * MIB), mallopt(M_TRIM_THRESHOLD, 1024 * MIB), mallopt(M_TOP_PAD, 64 * MIB)])


def peak_memory() -> int | None:
    """The most main memory that this process has held so far, in bytes; None where the system does not tell.

    On Linux not ru_maxrss: a new program begins with the peak of the one that started it.
    """
    if sys.platform == "linux":
        told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # some sandboxes do not have it
        return 1024 * int(told[1]) if told else None
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
