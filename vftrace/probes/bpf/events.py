# SPDX-License-Identifier: MIT
"""Attaches programs to tracepoints and kernel functions by perf_event_open(2)."""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import re
from pathlib import Path

import msgspec

from vftrace.errors import MachineError
from vftrace.probes import kernel
from vftrace.probes.bpf import syscall

_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe")
_GROUP = "vftrace"
"""The group of the probes in tracefs."""
_OURS = re.compile(rf"^r\d*:({_GROUP}/\w+_(\d+)_\d+) ", re.MULTILINE)
_serial = itertools.count()


class Attached(msgspec.Struct, frozen=True):
    """`fd`: the event that runs the program, or `linked` the link that holds the event; `probe`: its name in tracefs if
    it was made there."""

    fd: int
    probe: str | None = None
    linked: bool = False

    def close(self) -> None:
        """Detach the program."""
        os.close(self.fd)
        if self.probe is not None:
            _order(f"-:{self.probe}")


def tracepoint(program: int, name: str) -> Attached:
    """Attach to `category:event`. Raises OSError."""
    place = kernel.tracefs() / "events" / name.replace(":", "/")
    return Attached(_running(program, _event_in(place)))


def raw_tracepoint(program: int, name: str | None) -> Attached:
    """Attach to a raw tracepoint, which has no category in its name; None: the one that the program was loaded for.
    Raises OSError."""
    text = None if name is None else ctypes.create_string_buffer(name.encode())
    opened = syscall.RawTracepoint(name=syscall.address(text), prog_fd=program)
    return Attached(syscall.bpf(syscall.RAW_TRACEPOINT_OPEN, opened))


def kprobe(program: int, function: str) -> Attached:
    """Attach to the entry of a kernel function. Raises OSError."""
    return _by_name(program, function, 0)


def kretprobe(program: int, function: str, instances: int, *, must: bool = True) -> Attached:
    """Attach to the return of a kernel function, for a number of simultaneous calls. Raises OSError.

    Only a probe made in tracefs can have that number (Documentation/trace/kprobetrace.rst). If this process
    may not make one and it is not a `must`, the kernel's default applies: twice the number of CPUs, at least ten.
    """
    name = re.sub(r"\W", "_", function)
    probe = f"{_GROUP}/{name}_{os.getpid()}_{next(_serial)}"
    try:
        _order(f"r{instances}:{probe} {function}")
    except PermissionError:
        if must:
            raise
        (bit,) = re.findall(r"config:(\d+)", (_KPROBE_PMU / "format/retprobe").read_text())
        return _by_name(program, function, 1 << int(bit))
    try:
        return _linked(program, _event_in(kernel.tracefs() / "events" / probe), probe)
    except BaseException:
        _order(f"-:{probe}")
        raise


def _by_name(program: int, function: str, config: int) -> Attached:
    text = ctypes.create_string_buffer(function.encode())
    kind = int((_KPROBE_PMU / "type").read_text())
    event = syscall.PerfEvent(type=kind, config=config, config1=ctypes.addressof(text))
    return _linked(program, event)


def remove_left_over() -> None:
    """Remove the probes in tracefs of processes that were killed before they could do it."""
    with contextlib.suppress(OSError):
        text = (kernel.tracefs() / "kprobe_events").read_text()
        for probe, pid in _OURS.findall(text):
            if not Path(f"/proc/{pid}").exists():
                _order(f"-:{probe}")


def missed_hits() -> dict[str, int]:
    """Return by name, without the group, how often each probe in tracefs was hit and did not run: inside another
    probe, or with all instances of a return probe in use. Empty if the list may not be read.

    The same is shown by a link since Linux 6.7 (`syscall.missed_hits`), also of probes that are not in tracefs.
    """
    try:
        lines = (kernel.tracefs() / "kprobe_profile").read_text().splitlines()
    except (OSError, MachineError):
        return {}
    # "  %-44s %15lu %15lu": name, hits, misses (kernel/trace/trace_kprobe.c, probes_profile_seq_show).
    found = (line.split() for line in lines)
    return {
        fields[0]: int(fields[2]) for fields in found if len(fields) == 3 and fields[2].isdigit()
    }


def _event_in(place: Path) -> syscall.PerfEvent:
    return syscall.PerfEvent(
        type=syscall.PERF_TYPE_TRACEPOINT,
        config=int((place / "id").read_text()),
        sample_period=1,
        wakeup_events=1,
    )


def _linked(program: int, event: syscall.PerfEvent, probe: str | None = None) -> Attached:
    """Run a program at a kprobe by a link, which shows how often the probe was hit and did not run, else without."""
    fd = syscall.perf_event_open(event)
    try:
        link = syscall.link_perf_event(program, fd)
    except OSError:
        os.close(fd)
        return Attached(_running(program, event), probe)
    try:
        fcntl.ioctl(fd, syscall.PERF_EVENT_IOC_ENABLE, 0)
    except BaseException:
        os.close(link)
        raise
    finally:
        # The link holds the event (kernel/bpf/syscall.c, bpf_perf_link_attach).
        os.close(fd)
    return Attached(link, probe, linked=True)


def _running(program: int, event: syscall.PerfEvent) -> int:
    fd = syscall.perf_event_open(event)
    try:
        fcntl.ioctl(fd, syscall.PERF_EVENT_IOC_SET_BPF, program)
        fcntl.ioctl(fd, syscall.PERF_EVENT_IOC_ENABLE, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _order(line: str) -> None:
    """Make or remove a probe in tracefs. Raises OSError, but not if a probe to remove does not exist."""
    try:
        fd = os.open(kernel.tracefs() / "kprobe_events", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
    except OSError as error:
        if not (line.startswith("-") and error.errno == errno.ENOENT):
            raise
