# SPDX-License-Identifier: MIT
"""Makes the contents of a log line from a migration: a message and its fields. Pure.

Values are those of the report; None is not known. Text of a command line is cut, but not yet escaped: the format
(`formats`) decides how a value is escaped.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from vftrace.model import figures
from vftrace.model.figures import ClockSamples
from vftrace.model.migration import Migration, Outcome
from vftrace.outputs.text.calls import top_calls

Value = str | int | bool | None
FileOf = Callable[[Migration], Path | None]
"""A function that returns the recording of a migration; None without one."""

BEGAN = "migration began"
ENDED = "migration ended"
NOT_LOGGED = "migrations not logged one by one"

LONGEST_TEXT = 256
"""The longest name or path in characters: argv has no limit that suits a log."""


class Entry(msgspec.Struct, frozen=True):
    """One log line. `level` is one of the logging module's."""

    level: int
    message: str
    fields: Mapping[str, Value]


def began(m: Migration, clock: ClockSamples) -> Entry:
    """Return the line of a migration that began. Its recording is not named, because its name changes at the end."""
    return Entry(logging.INFO, BEGAN, {"time": _time(clock, m.started_at_ns), **_who(m)})


def ended(m: Migration, clock: ClockSamples, file: Path | None) -> Entry:
    """Return the line of a migration that ended: a warning if it failed. Durations are nanoseconds."""
    at_ns = m.ended_at_ns
    fields: dict[str, Value] = {
        "time": None if at_ns is None else _time(clock, at_ns),
        **_who(m),
        "outcome": m.outcome,
        "cause": m.cause,
        "cause_detail": _text(m.cause_detail),
        "total_ns": figures.total_ns(m),
        "downtime_ns": m.downtime.vcpu_ns,
        "set_by": m.downtime.set_by,
        "calls": _text(top_calls(m) or None),
        "guest_speed_percent": _speed(m),
        "strategy": m.strategy,
        "incomplete": m.incomplete,
        "file": _text(file),
    }
    level = logging.WARNING if m.outcome == Outcome.FAILED else logging.INFO
    return Entry(level, ENDED, fields)


def iso_time(at: datetime) -> str:
    """Format a time in UTC as `2026-02-03T04:05:06.789Z`."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z"


def _speed(m: Migration) -> int | None:
    speed = None if m.brownout is None else m.brownout.speed
    return None if speed is None else round(100 * speed)


def _who(m: Migration) -> dict[str, Value]:
    return {
        "name": _text(m.name),
        "uuid": _text(m.uuid),
        "pid": m.pid,
        "kind": m.kind,
        "role": m.role,
        "peer": _peer(m),
    }


def _peer(m: Migration) -> str | None:
    """Return the other side: its process on this host, else the address to which the source sends."""
    if m.peer_pid is not None:
        return f"pid-{m.peer_pid}"
    return _text(m.channel.peer)


def _time(clock: ClockSamples, at_ns: int) -> str | None:
    at = figures.wall_time(clock, at_ns)
    return None if at is None else iso_time(at)


def _text(value: str | Path | None) -> str | None:
    if value is None:
        return None
    # A lone surrogate stands for a byte that is no UTF-8; neither JSON nor the journal takes one.
    text = str(value).encode(errors="replace").decode()
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
