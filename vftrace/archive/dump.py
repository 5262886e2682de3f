# SPDX-License-Identifier: MIT
"""Prints every event of a recording as one line of text or of JSON."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from vftrace import events
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.events import COLLECTOR, NO_PROCESS, Event
from vftrace.model import figures

Clock = Literal["boot", "local", "utc"]

_HEAD = ("at_ns", "seq", "tgid", "tid")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lines(recording: Recording, *, as_json: bool = False, clock: Clock = "boot") -> Iterator[str]:
    """Yield the events in order of their times. `clock` is the clock of the text: CLOCK_BOOTTIME, or the wall clock as
    far as the recording has clock samples."""
    offset_ns: int | None = None
    for event in events_of(recording):
        if isinstance(event, events.ClockSample):
            offset_ns = event.realtime_offset_ns
        yield document(event) if as_json else line(event, clock, offset_ns)


def document(event: Event) -> str:
    """Return an event as JSON: its name, its probe, and its fields as in `vftrace.events`; bitmaps are hexadecimal."""
    said: dict[str, Any] = {"event": type(event).__name__, "probe": event.PROBE}
    for name in _fields(event):
        value = getattr(event, name)
        said[name] = hex(value) if isinstance(event, events.Part) and name == "bits" else value
    return json.dumps(said)


def line(event: Event, clock: Clock = "boot", offset_ns: int | None = None) -> str:
    """Return an event as text: time, process and thread, name, and fields; for a bitmap the number of set bits."""
    own = (name for name in _fields(event) if name not in _HEAD)
    fields = " ".join(f"{name}={_value(event, name)}" for name in own)
    who = {COLLECTOR: "collector", NO_PROCESS: "-"}.get(event.tgid, f"{event.tgid}/{event.tid}")
    return (
        f"{_time(event.at_ns, clock, offset_ns)} {who:>15} {type(event).__name__} {fields}".rstrip()
    )


def _fields(event: Event) -> tuple[str, ...]:
    """Return the shown fields of an event; for a bitmap the unpacked bits."""
    if isinstance(event, events.BitmapPart):
        return (*_HEAD, "call_ns", "first_page", "slot", "bits")
    return event.__struct_fields__


def _value(event: Event, name: str) -> str:
    value = getattr(event, name)
    if isinstance(event, events.Part) and name == "bits":
        return f"{value.bit_count()}-set"
    if isinstance(value, str):
        shown = figures.printable(value)
        return (
            json.dumps(shown, ensure_ascii=False) if not shown or set(' "=') & set(shown) else shown
        )
    if isinstance(value, tuple):
        return ",".join(f"{word:x}" for word in value)
    if isinstance(value, dict):
        return ",".join(f"{key}:{count}" for key, count in value.items()) or "-"
    if value is None:
        return "-"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _time(at_ns: int, clock: Clock, offset_ns: int | None) -> str:
    if clock == "boot":
        return f"{at_ns // 10**9}.{at_ns % 10**9:09}"
    if offset_ns is None:
        return "-"
    ns = at_ns + offset_ns
    try:
        moment = _EPOCH + timedelta(seconds=ns // 10**9)
        moment = moment if clock == "utc" else moment.astimezone()
    except (OverflowError, ValueError, OSError):
        return "-"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns % 10**9:09}{'Z' if clock == 'utc' else ''}"
