"""System calls of a migrating VMM's threads while its guest stood still, and when these threads did not run.

The collector writes these, all of one blackout together and after it began: `at_ns` is when it did so, `start_ns` and
`end_ns` are when it happened.
"""

from vftrace.events import layout
from vftrace.events.base import Event
from vftrace.events.layout import Kind


class Call(Event, frozen=True):
    """Calls of one thread with the same `nr`, `cmd` and `fd`: one, or several that were shorter than 100 us (struct
    vft_call in bpf/wire.h). `ns` is their sum. `start_ns` 0: it began before it was traced."""

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
    """The calls of a process are traced since `since_ns`, or (`on` False) no longer.

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
    """What an fd was when a call on it was seen: a path, or `socket`, `pipe`, `kvm-vm` ..."""

    KIND = Kind.CALL_FD

    pid: int
    fd: int
    target: str


class CallsMissed(Event, frozen=True):
    """Calls of a process that were not recorded, in total: it made too many, or the ring buffer was full."""

    KIND = Kind.CALLS_MISSED

    pid: int
    count: int
