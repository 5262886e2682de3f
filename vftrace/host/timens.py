"""The time namespace this process is in (time_namespaces(7)).

The kernel's own records carry the host's CLOCK_BOOTTIME (bpf_ktime_get_boot_ns). In a namespace whose clock was
moved, whatever the collector writes beside them would be on another clock.
"""

from pathlib import Path

from vftrace.errors import MachineError

_OFFSETS = Path("/proc/self/timens_offsets")


def boottime_offset_ns(text: str) -> int:
    """How much more CLOCK_BOOTTIME shows here than on the host, from /proc/PID/timens_offsets; 0 if it is silent."""
    for line in text.splitlines():
        match line.split():
            case ["boottime", seconds, nanoseconds]:
                return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0


def require_host_clock() -> None:
    """Raise MachineError where the boot clock is not the host's. Kernels without time namespaces have one clock."""
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
