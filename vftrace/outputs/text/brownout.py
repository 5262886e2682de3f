# SPDX-License-Identifier: MIT
"""Shows how slow a guest was while it migrated, in words and as a drawing of one line."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from vftrace.model import figures
from vftrace.model.brownout import (
    HELD_BY,
    Brownout,
    VcpuState,
    lost_to,
)
from vftrace.model.migration import Migration
from vftrace.outputs.text.glyphs import Glyphs, level
from vftrace.units import format_ns

_LOST = {
    VcpuState.FAULT: "in page faults",
    VcpuState.USER: "in the VMM",
    VcpuState.QUEUE: "waiting for a CPU",
    VcpuState.STOPPED: "stopped or waiting for a lock",
    VcpuState.UNKNOWN: "not known",
} | {state: f"held by {who}" for state, who in HELD_BY.items()}


def percent(part: float) -> str:
    """`87 %`; `0.4 %` below one."""
    return f"{part * 100:.0f} %" if part == 0 or part >= 0.01 else f"{part * 100:.1f} %"


def speed_line(brownout: Brownout) -> str:
    """`guest speed 61 % of before; brownout 14.2 s at 1 to 20 %`."""
    if brownout.speed is None:
        return "guest speed not known"
    known = "" if brownout.baseline is not None else " (how it ran before is not known)"
    said = f"guest speed {percent(brownout.speed)} of before{known}"
    slow = slow_words(brownout)
    return f"{said}; {slow}" if slow else said


def slow_words(brownout: Brownout) -> str:
    """`brownout 14.2 s at 1 to 20 %`; empty where the guest was never slow."""
    least, most = brownout.slow_least, brownout.slow_most
    if least is None or most is None:
        return ""
    low, high = percent(least), percent(most)
    at = low if low == high else f"{low.removesuffix(' %')} to {high}"
    return f"brownout {format_ns(brownout.slow_ns)} at {at}"


def lost_words(brownout: Brownout) -> str:
    """Return what kept the vCPUs from running, the largest first, with the values before the migration."""
    total = brownout.total
    if total is None:
        return ""
    before = brownout.baseline
    said = []
    for state, part in lost_to(total):
        words = f"{_LOST[state]} {percent(part)}"
        if before is not None and state == VcpuState.QUEUE:
            words += f" (before {percent(before.queue)})"
        if before is not None and state == VcpuState.USER:
            words += f" (before {percent(before.user)})"
        said.append(words)
    return ", ".join(said)


def waits_words(brownout: Brownout) -> str:
    """Return how long vCPUs slept in page faults, as in postcopy; empty if they did not."""
    waits = brownout.waits
    half, most = (waits.quantile_ns(0.5), waits.quantile_ns(0.99)) if waits else (None, None)
    if waits is None or half is None or most is None:
        return ""
    return (
        f"{waits.count} page faults waited {format_ns(waits.ns)} in all: half of them at most {format_ns(half)}, "
        f"99 % at most {format_ns(most)}, the longest {format_ns(waits.longest_ns)}"
    )


def drawn(brownout: Brownout, width: int, g: Glyphs) -> str:
    """Draw the speed over time; a full cell is the speed before the migration."""
    speeds = [span.speed for span in brownout.timeline]
    if len(speeds) > width > 0:
        groups = [
            speeds[len(speeds) * i // width : len(speeds) * (i + 1) // width] for i in range(width)
        ]
        speeds = [_mean([s for s in group if s is not None]) for group in groups]
    return "".join("?" if speed is None else level(speed, 1.0, g) for speed in speeds)


def brownout_part(m: Migration, width: int, g: Glyphs) -> Iterator[RenderableType]:
    """The part of the report."""
    brownout = m.brownout
    if brownout is None:
        return
    yield Text()
    yield Text(f"Brownout: {speed_line(brownout)}", "bold")
    yield Text(f"speed {drawn(brownout, max(10, min(60, width - 8)), g)}", no_wrap=True)
    for hold in brownout.holds:
        yield Text(hold.words)
    lost = lost_words(brownout)
    if lost:
        yield Text(f"vCPUs could not run: {lost}")
    waits = waits_words(brownout)
    if waits:
        yield Text(waits)


def top_line(m: Migration, width: int, g: Glyphs) -> str:
    """Return the speed in one line of a live view; empty if it is not known."""
    if m.brownout is None or m.brownout.speed is None:
        return ""
    last = figures.speed_now(m)
    said = speed_line(m.brownout)
    if last is not None:
        said = f"now {percent(last)}, {said}"
    line = drawn(m.brownout, max(10, min(60, width - 44)), g)
    return f"guest speed {line}  {said.replace('guest speed ', '')}"


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
