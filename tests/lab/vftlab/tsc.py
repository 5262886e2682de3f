# SPDX-License-Identifier: MIT
"""The frequency of this machine's time stamp counter, which an emulated x86 machine shows its kernel."""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

_MEASURED_S = 0.05
# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")


def tsc_khz() -> int | None:
    """Ticks a millisecond, measured over 50 ms; None where there is no such counter."""
    if platform.machine() != "x86_64":
        return None
    with mmap.mmap(
        -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ) as code:
        code.write(_READ)
        start = ctypes.c_char.from_buffer(code)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
        begun_ns, first = time.monotonic_ns(), int(read())
        time.sleep(_MEASURED_S)
        ended_ns, last = time.monotonic_ns(), int(read())
        # The map cannot be closed while something points into it.
        del start
    return round((last - first) * 1_000_000 / (ended_ns - begun_ns))
