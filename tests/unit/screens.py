# SPDX-License-Identifier: MIT
"""Screens of the live view as text: recordings up to a time, and that time as the clock."""

import io
from dataclasses import dataclass
from functools import cache

from rich.console import Console

from tests.unit.golden_text import recording
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.model.host import HostInfo
from vftrace.model.migration import Snapshot
from vftrace.outputs.top.state import ViewState, press
from vftrace.outputs.top.view import Frame


@dataclass(frozen=True)
class Moment:
    """A recording up to some time after it began."""

    host: HostInfo
    snapshot: Snapshot
    now_ns: int


@cache
def at(name: str, seconds: float) -> Moment:
    """What was known so long after the recording began."""
    opened = Recording(recording(name))
    tracker = Tracker()
    now_ns = opened.host.started_at_ns + round(seconds * 1e9)
    for event in events_of(opened):
        if event.at_ns > now_ns:
            break
        tracker.feed(event)
    return Moment(opened.host, tracker.snapshot(), now_ns)


def keys(moment: Moment, *pressed: str) -> ViewState:
    """The state after these keys."""
    state = ViewState()
    for key in pressed:
        state = press(state, key, moment.snapshot)
    return state


def screen(
    moment: Moment,
    state: ViewState | None = None,
    size: tuple[int, int] = (80, 24),
    *,
    ascii: bool = False,  # noqa: A002
    note: str = "",
) -> str:
    """The whole screen, line by line."""
    out = io.StringIO()
    console = Console(file=out, width=size[0], height=size[1], color_system=None, highlight=False)
    frame = Frame(moment.host, moment.snapshot, moment.now_ns, state or ViewState(), note, ascii)
    console.print(frame)
    return out.getvalue()
