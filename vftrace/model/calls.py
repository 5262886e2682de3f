# SPDX-License-Identifier: MIT
"""The calls and waits of a migrating VMM's threads while its guest is stopped, and the causes of each step's time.

Times are CLOCK_BOOTTIME nanoseconds on the clock of the migration.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

import msgspec

from vftrace.model.checkpoint import Checkpoint

CallSide = Literal["source", "destination"]


class CauseKind(StrEnum):
    """What a thread did.

    `call`: a system call that works itself. `channel`: a call that waits for the other end of a socket or a pipe.
    `wait`: a call that waits for another thread or process. `on-cpu`: the VMM's own code. `run-queue`: the thread
    waited for a CPU. `throttled`: auto-converge or the dirty limit held the guest before the VMM stopped it.
    `stopped`: a signal stopped the thread. `page-fault`: the thread slept outside of system calls. `not-traced`: not
    seen.
    """

    CALL = "call"
    CHANNEL = "channel"
    WAIT = "wait"
    ON_CPU = "on-cpu"
    RUN_QUEUE = "run-queue"
    THROTTLED = "throttled"
    STOPPED = "stopped"
    PAGE_FAULT = "page-fault"
    NOT_TRACED = "not-traced"


IDLE = frozenset({CauseKind.WAIT, CauseKind.NOT_TRACED})
"""Kinds in which the thread did no work."""


class CallSpan(msgspec.Struct, frozen=True):
    """A call of one thread, several short calls, or a time in which a thread did not run.

    `thread` is the thread's part or its name, `call` a system call's or an ioctl request's name, `target` the file or
    socket that it was on. `ns` is the time of all `count` calls: less than `end_ns - start_ns` for several calls.
    """

    side: CallSide
    tid: int
    thread: str
    kind: CauseKind
    call: str | None
    target: str | None
    start_ns: int
    end_ns: int
    ns: int
    longest_ns: int
    count: int
    sleep_ns: int = 0
    queue_ns: int = 0


class Cause(msgspec.Struct, frozen=True):
    """The cause of a part of a step's time, `ns` long. Causes of a step do not overlap: their sum is the step's time.

    `thread` is None if several threads are the cause. `longest_ns` is the longest single call or wait, which may have
    begun before the step.
    """

    kind: CauseKind
    side: CallSide
    call: str | None
    target: str | None
    thread: str | None
    ns: int
    count: int
    longest_ns: int


class StepCauses(msgspec.Struct, frozen=True):
    """The causes of the time until a checkpoint, longest first."""

    checkpoint: Checkpoint
    ns: int
    causes: tuple[Cause, ...]


class CallTotal(msgspec.Struct, frozen=True):
    """All calls of one kind on one target by one side in the blackout, also those that did not delay it."""

    side: CallSide
    call: str
    target: str | None
    count: int
    ns: int
    longest_ns: int
    sleep_ns: int
    queue_ns: int


class BlackoutCalls(msgspec.Struct, frozen=True):
    """The calls of one blackout. `missed` counts the calls that were not recorded.

    `spans` are all calls, or if not `whole` the longest; `critical` are the threads that drive the migration.
    `traced` has the beginning and end of tracing for each side; `attach_ns` is the time that attaching the probes took.
    """

    steps: tuple[StepCauses, ...]
    totals: tuple[CallTotal, ...]
    spans: tuple[CallSpan, ...]
    whole: bool
    critical: frozenset[tuple[CallSide, int]]
    traced: tuple[tuple[CallSide, int, int | None], ...]
    missed: int
    attach_ns: int | None

    @property
    def ns(self) -> int:
        """The length of all steps."""
        return sum(step.ns for step in self.steps)

    @property
    def named_ns(self) -> int:
        """The time of the steps that calls, waits and the VMM's own code took."""
        return sum(
            cause.ns
            for step in self.steps
            for cause in step.causes
            if cause.kind != CauseKind.NOT_TRACED
        )

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The causes of the whole blackout, longest first."""
        return merged(cause for step in self.steps for cause in step.causes)


def merged(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Add up equal causes, longest first."""
    by_key: dict[tuple[object, ...], Cause] = {}
    for one in causes:
        key = (one.kind, one.side, one.call, one.target, one.thread)
        before = by_key.get(key)
        by_key[key] = (
            one
            if before is None
            else Cause(
                *key[:5],
                before.ns + one.ns,
                before.count + one.count,
                max(before.longest_ns, one.longest_ns),
            )
        )
    return tuple(sorted(by_key.values(), key=lambda cause: -cause.ns))
