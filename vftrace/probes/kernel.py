# SPDX-License-Identifier: MIT
"""Finds out what the running kernel supports, by trying and never by its version."""

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from vftrace.errors import MachineError
from vftrace.probes import btf
from vftrace.probes.bpf import syscall

_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")

_NO_FUNCTION = 1
"""The BTF id of a number type: a kernel that takes fentry refuses it as not a function, another one refuses without
its BTF being read."""

# r0 = 0; exit (struct bpf_insn, include/uapi/linux/bpf.h)
_RETURN_ZERO = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)

TRACEFS_PLACES = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))


def tracefs() -> Path:
    """Return the mounted tracefs, after mounting it in the usual place if needed. Raises MachineError.

    perf, bpftrace and libtracefs mount it in the same place.
    """
    for place in TRACEFS_PLACES:
        try:
            if (place / "events").is_dir():
                return place
        except PermissionError:  # tracefs is mounted with mode 0700
            raise MachineError(f"{place}: only root may read it", fix="run it with sudo") from None
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
    """Return the byte offset of a field in a tracepoint's record; None if it has no such field."""
    category, _, event = name.partition(":")
    try:
        text = (tracefs() / "events" / category / event / "format").read_text()
    except OSError:
        return None
    match = re.search(rf"\b{re.escape(field)};\s+offset:(\d+);", text)
    return None if match is None else int(match[1])


def refuses_kprobes() -> str | None:
    """Return why this kernel does not support kprobes, None if it does (a kernel without them has no such PMU)."""
    there = Path("/sys/bus/event_source/devices/kprobe/type").exists()
    return None if there else "this kernel is built without kprobes"


def require_bpf() -> None:
    """Raise MachineError unless this process may load BPF programs: root, or CAP_BPF and CAP_PERFMON."""
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


def perf_events_need_admin() -> bool:
    """Whether this kernel lets only CAP_SYS_ADMIN open perf events: with a perf_event_paranoid above 2, the
    default of Debian's kernels, which other kernels do not have."""
    try:
        return int(_PARANOID.read_text()) > 2
    except (OSError, ValueError):
        return False


def refuses_fentry() -> str | None:
    """Return why this kernel does not support fentry programs, None if it does: by attaching an empty program."""
    reason = _refuses_tracing(_NO_FUNCTION)
    if reason is not None:
        return reason
    function = btf.function_id("ksys_write")
    return "no BTF of the kernel" if function is None else _refuses_tracing(function)


def _refuses_tracing(function: int) -> str | None:
    """Return why an empty program cannot be attached to a function, by its BTF id; None if it can, or if the id is not
    a function's."""
    fds = []
    try:
        attach = (syscall.TRACE_FENTRY, function, 0)
        fds.append(syscall.load_program(syscall.TRACING, _RETURN_ZERO, "GPL", attach=attach))
        # An empty program for a moment changes nothing.
        fds.append(syscall.attach_tracing(fds[0]))
    except OSError as error:
        if function == _NO_FUNCTION and error.errno == errno.EINVAL:
            return None
        return f"the kernel refuses it ({error.strerror})"
    finally:
        for fd in reversed(fds):
            os.close(fd)
    return None


def never_runs(functions: Iterable[str]) -> str | None:
    """Return why programs attached to these functions by fentry do not run, None if they do.

    A kernel with X86_KERNEL_IBT and without prefix symbols (CALL_PADDING) attaches to a site that it has
    disabled. ftrace then does not list the function; where there is no list, nothing can be said.
    """
    try:
        listed = (tracefs() / "enabled_functions").read_text().splitlines()
    except OSError:
        return None
    enabled = {line.split(maxsplit=1)[0] for line in listed if line}
    missing = [function for function in functions if function not in enabled]
    if not missing:
        return None
    return f"attached, but ftrace has not enabled {', '.join(missing)}"


def functions_ending(end: str) -> list[str]:
    """Return the names of the modules' functions with this ending. Slow, because it reads all of /proc/kallsyms."""
    text, tail = Path("/proc/kallsyms").read_bytes(), end.encode() + b"\t["
    found = set()
    at = text.find(tail)
    while at >= 0:
        start = text.rindex(b" ", 0, at) + 1
        found.add(text[start : at + len(end)].decode())
        at = text.find(tail, at + 1)
    return sorted(found)
