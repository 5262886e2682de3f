# SPDX-License-Identifier: MIT
"""Shows the causes of each step of a blackout in words."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vftrace.model.calls import BlackoutCalls, Cause, CauseKind, StepCauses, merged
from vftrace.model.checkpoint import Checkpoint
from vftrace.model.migration import Migration
from vftrace.outputs.text.glyphs import Glyphs, clean, shorten
from vftrace.units import format_ns

if TYPE_CHECKING:
    from rich.console import RenderableType

TOP = 3
LEAST_PART = 0.01
"""The least part of the blackout that a step, and of its step that a cause, must take to be shown."""


def top_calls(migration: Migration, most: int = TOP) -> str:
    """Return the causes of the blackout, longest first, in one line; empty if none is known."""
    calls = migration.calls
    if calls is None:
        return ""
    return "; ".join(cause_words(cause) for cause in calls.causes[:most])


def cause_words(cause: Cause) -> str:
    """`fdatasync(/var/lib/disk.qcow2) 897 ms`; `512 KVM_IRQFD 31 ms`; `nothing: waited 2.95 s in futex (...)`."""
    took = format_ns(cause.ns)
    who = cause.thread or f"the {cause.side}"
    match cause.kind:
        case CauseKind.CALL if cause.call is None:
            return f"{cause.count} other calls {took}"
        case CauseKind.CALL:
            count = f"{cause.count} " if cause.count > 1 else ""
            return f"{count}{_call(cause)} {took}"
        case CauseKind.CHANNEL:
            return f"{_call(cause)} waited {took} for the other end"
        case CauseKind.ON_CPU:
            return f"{_of_side(cause, who)} ran its own code {took}"
        case CauseKind.RUN_QUEUE:
            return f"{_of_side(cause, who)} waited {took} for a CPU"
        case CauseKind.THROTTLED:
            return f"held by {who} for {took} before the stop"
        case CauseKind.STOPPED:
            return f"{_of_side(cause, who)} stopped by a signal for {took}"
        case CauseKind.PAGE_FAULT:
            return f"{_of_side(cause, who)} slept {took} outside of system calls"
        case CauseKind.NOT_TRACED:
            return f"not traced for {took}"
    if cause.call is None:
        return f"nothing: waited {took}"
    return f"nothing: waited {took} in {_call(cause)} ({_of_side(cause, who)})"


def step_words(step: StepCauses, most: int = TOP) -> tuple[str, ...]:
    """Return the causes of one step, longest first, and the rest of its time."""
    shown = [cause for cause in step.causes[:most] if cause.ns >= LEAST_PART * step.ns]
    said = [cause_words(cause) for cause in shown]
    held = _held(step)
    if held:
        said[0] += f": {held}"
    rest = step.ns - sum(cause.ns for cause in shown)
    if rest >= LEAST_PART * step.ns:
        said.append(f"the rest {format_ns(rest)}")
    return tuple(said)


def shown_steps(calls: BlackoutCalls) -> list[StepCauses]:
    """Return the steps that took long enough to be shown."""
    return [step for step in calls.steps if step.ns >= LEAST_PART * calls.ns]


def caveats(calls: BlackoutCalls) -> Iterator[str]:
    """Yield the losses of the calls."""
    if calls.missed:
        yield f"{calls.missed} calls were not recorded: too many in a moment"
    unseen = calls.ns - calls.named_ns
    if unseen > LEAST_PART * calls.ns:
        yield f"{format_ns(unseen)} were not traced: the tracing began too late, or only the other side was traced"


def calls_part(m: Migration, g: Glyphs) -> "Iterator[RenderableType]":
    """The part of the report: one line for each step that took long enough."""
    # Logs need the functions above too, in processes that do not import rich (5 MiB).
    from rich.table import Table
    from rich.text import Text

    calls = m.calls
    if calls is None or not calls.steps:
        return
    yield Text()
    yield Text("What took it", "bold")
    table = Table.grid(padding=(0, 2, 0, 0))
    for step in shown_steps(calls):
        said = "\n".join(clean(words, g) for words in step_words(step))
        took = Text(format_ns(step.ns), justify="right")
        table.add_row(Text(step.checkpoint), took, Text(said, overflow="fold"))
    yield table
    for caveat in caveats(calls):
        yield Text(f"! {caveat}", "bold yellow")


def top_line(m: Migration, width: int, g: Glyphs) -> str:
    """Return the top three causes in one line of a live view; empty if none is known."""
    said = top_calls(m)
    return shorten(f"took it: {clean(said, g)}", width, g) if said else ""


def _held(step: StepCauses) -> str:
    """Return who kept the guest stopped, if no thread worked."""
    waits: Sequence[Cause] = merged(c for c in step.causes if c.kind == CauseKind.WAIT)
    waited = sum(cause.ns for cause in waits)
    if waited * 2 < step.ns or not waits or step.causes[0].kind != CauseKind.WAIT:
        return ""
    if step.checkpoint == Checkpoint.FINAL_SYNC_DONE and waits[0].call == "futex":
        return "held before its last sync, as pause-before-switchover does"
    if step.checkpoint == Checkpoint.HELD:
        return "held until cont"
    return ""


def _call(cause: Cause) -> str:
    if cause.call is None:
        return "a call"
    return cause.call if cause.target is None else f"{cause.call}({cause.target})"


def _of_side(cause: Cause, who: str) -> str:
    return who if who == f"the {cause.side}" else f"the {cause.side}'s {who}"
