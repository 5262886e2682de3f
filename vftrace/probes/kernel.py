"""What the running kernel offers, found by looking and trying, never by its version."""

import ctypes
import os
import re
from pathlib import Path

from vftrace.errors import MachineError

TRACEFS_PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


def tracefs() -> Path:
    """The mounted tracefs; mounts it where it belongs if it is not. Raises MachineError.

    perf, bpftrace and libtracefs mount it in the same place.
    """
    for place in TRACEFS_PLACES:
        if (place / "events").is_dir():
            return place
    libc = ctypes.CDLL(None, use_errno=True)
    place = TRACEFS_PLACES[0]
    if libc.mount(b"tracefs", str(place).encode(), b"tracefs", 0, None) != 0:
        raise MachineError(
            f"tracefs is not mounted and cannot be ({os.strerror(ctypes.get_errno())})",
            fix=f"mount -t tracefs tracefs {place}",
        )
    return place


def has_tracepoint(name: str) -> bool:
    """Whether `category:event` exists."""
    category, _, event = name.partition(":")
    return (tracefs() / "events" / category / event / "id").exists()


def tracepoint_field_offset(name: str, field: str) -> int | None:
    """Byte offset of a field in a tracepoint's record; None if it has no such field."""
    category, _, event = name.partition(":")
    try:
        text = (tracefs() / "events" / category / event / "format").read_text()
    except OSError:
        return None
    match = re.search(rf"\b{re.escape(field)};\s+offset:(\d+);", text)
    return None if match is None else int(match[1])


def has_kprobes() -> bool:
    """Whether this kernel was built with kprobes (a kernel without them has no such PMU)."""
    return Path("/sys/bus/event_source/devices/kprobe/type").exists()


def require_bpf() -> None:
    """Raises MachineError unless this process may load BPF programs: root, or CAP_BPF and CAP_PERFMON."""
    if os.geteuid() == 0:
        return
    capabilities = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            capabilities = int(line.split()[1], 16)
    cap_bpf, cap_perfmon, cap_sys_ptrace = 1 << 39, 1 << 38, 1 << 19
    wanted = cap_bpf | cap_perfmon | cap_sys_ptrace
    if capabilities & wanted != wanted:
        raise MachineError("loading BPF programs needs root", fix="run it with sudo")
