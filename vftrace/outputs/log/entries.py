"""The contents of a log line: a message and its fields, made from a migration. Pure.

Values are those of the report; None is not known. Text of a command line is cut, but not yet escaped: how a value is
escaped depends on the format (`formats`).
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from vftrace.dataclass import dataclass
from vftrace.model import figures
from vftrace.model.figures import ClockSamples
from vftrace.model.migration import Migration, Outcome
from vftrace.outputs.text.calls import top_calls

Value = str | int | bool | None
FileOf = Callable[[Migration], Path | None]
"""Finds the recording that a migration is kept in; None where it is not kept."""

BEGAN = "migration began"
ENDED = "migration ended"
NOT_LOGGED = "migrations not logged one by one"

LONGEST_TEXT = 256
"""Characters of a name or a path: argv has no limit that a log could live with."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One log line. `level` is one of the logging module's."""

    level: int
    message: str
    fields: Mapping[str, Value]


def began(m: Migration, clock: ClockSamples) -> Entry:
    """The line of a migration that began. Its recording is not named: at the end it gets another name."""
    return Entry(logging.INFO, BEGAN, {"time": _time(clock, m.started_at_ns), **_who(m)})


def ended(m: Migration, clock: ClockSamples, file: Path | None) -> Entry:
    """The line of a migration that ended: a warning if it failed. Durations are nanoseconds."""
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
    """`2026-02-03T04:05:06.789Z` of a time in UTC."""
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
    """The other side: its process on this host, else the address that the source sends to."""
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
