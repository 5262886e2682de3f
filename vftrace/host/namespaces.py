# SPDX-License-Identifier: MIT
"""Checks the pid and time namespaces of this process (pid_namespaces(7), time_namespaces(7)).

The kernel's records carry pids of the initial pid namespace (bpf_get_current_pid_tgid) and the host's CLOCK_BOOTTIME
(bpf_ktime_get_boot_ns). In another pid namespace /proc shows other pids, so vftrace would find no VM under the pid in
its records. In a time namespace with an offset the collector's own times would be on another clock.
"""

from pathlib import Path

from vftrace.errors import MachineError

_OFFSETS = Path("/proc/self/timens_offsets")
_PIDS = Path("/proc/self/ns/pid")

_INITIAL_PIDS = 0xEFFFFFFC
"""PROC_PID_INIT_INO (include/linux/proc_ns.h): inode of the initial pid namespace."""


def require_host_namespaces() -> None:
    """Raise MachineError in a pid namespace or on a boot clock that is not the host's."""
    require_host_pids()
    require_host_clock()


def require_host_pids() -> None:
    """Raise MachineError if pids are not the host's. A kernel without pid namespaces has only the host's."""
    try:
        inode = _PIDS.stat().st_ino
    except OSError:
        return
    if inode != _INITIAL_PIDS:
        raise MachineError(
            "this pid namespace is not the host's: the kernel's records name pids that this /proc does not have",
            fix="run vftrace on the host, or in a container with the host's pid namespace (--pid=host, hostPID: true)",
        )


def boottime_offset_ns(text: str) -> int:
    """Return how much more CLOCK_BOOTTIME shows here than on the host (/proc/PID/timens_offsets); 0 without that
    file."""
    for line in text.splitlines():
        match line.split():
            case ["boottime", seconds, nanoseconds]:
                return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0


def require_host_clock() -> None:
    """Raise MachineError if the boot clock is not the host's. Kernels without time namespaces have one clock."""
    try:
        offset = boottime_offset_ns(_OFFSETS.read_text())
    except OSError:
        return
    if offset:
        raise MachineError(
            "this time namespace's boot clock is not the host's, which the kernel's records carry: it shows"
            f" {offset / 1e9:+g} s",
            fix="nsenter --time=/proc/1/ns/time vftrace ...",
        )
