# SPDX-License-Identifier: MIT
"""Events of system calls of a migrating VMM's threads while its guest is stopped, and of times in which these threads
did not run.

The collector writes the events of one blackout together, after the blackout began: `at_ns` is the time of writing,
`start_ns` and `end_ns` are the times of the call.
"""

from vftrace.events import layout
from vftrace.events.base import Event
from vftrace.events.layout import Kind


class Call(Event, frozen=True):
    """One call of a thread, or several calls shorter than 100 us with the same `nr`, `cmd` and `fd` (struct vft_call in
    bpf/wire.h). `ns` is the sum of their times. `start_ns` 0: the call began before it was traced."""

    KIND = Kind.CALL
    PROBE = "calls"

    start_ns: int
    end_ns: int
    ns: int
    longest_ns: int
    sleep_ns: int
    queue_ns: int
    ret: int
    pid: int
    thread: int
    nr: int
    cmd: int
    fd: int
    count: int


class OffCpu(Event, frozen=True):
    """A thread was off its CPU for at least 100 us, for a `reason` that no call explains."""

    KIND = Kind.OFF_CPU
    PROBE = "calls"

    QUEUED = layout.QUEUED
    STOPPED = layout.STOPPED
    SLEPT = layout.SLEPT

    start_ns: int
    end_ns: int
    pid: int
    thread: int
    reason: int
    state: int


class CallsTraced(Event, frozen=True):
    """Tracing of a process's calls began at `since_ns`, or (`on` False) it ended.

    `machine` is `uname -m`, which decides what the numbers of calls mean. `attach_ns`: how long attaching took, 0
    where the probes were attached already.
    """

    KIND = Kind.CALLS_TRACED

    pid: int
    on: bool
    since_ns: int
    machine: str
    attach_ns: int


class CallThread(Event, frozen=True):
    """The name of a thread that made calls (/proc/PID/task/TID/comm)."""

    KIND = Kind.CALL_THREAD

    pid: int
    thread: int
    name: str


class CallFd(Event, frozen=True):
    """The file behind an fd when a call used it: a path, or `socket`, `pipe`, `kvm-vm` ..."""

    KIND = Kind.CALL_FD

    pid: int
    fd: int
    target: str


class CallsMissed(Event, frozen=True):
    """Calls of a process that were not recorded, in total: the process made too many, or the ring buffer was full."""

    KIND = Kind.CALLS_MISSED

    pid: int
    count: int
