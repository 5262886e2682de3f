# SPDX-License-Identifier: MIT
"""Shows virtual functions by their mailboxes: the state of each, its duration, its last message."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from vftrace.analysis.devices.vf_history import MAX_FALLS, MAX_RESETS, RESETTING_NS
from vftrace.mailbox.message import Message
from vftrace.model.migration import Snapshot
from vftrace.model.vf import StateSpan, VfHistory
from vftrace.outputs.text.clock import precise_time
from vftrace.outputs.text.glyphs import Glyphs, clean, shorten
from vftrace.outputs.text.mailbox_log import ARROWS, message_words
from vftrace.units import format_ns

TITLE = "bold"
WARNING = "bold yellow"
LAST_MESSAGES = 8
LAST_STATES = 8


def name_of(life: VfHistory) -> str:
    """`0000:01:00.0 VF 0`"""
    return f"{life.pf} VF {life.vf}"


def state_of(life: VfHistory) -> str:
    """Return the state of a function in one word, or its trouble."""
    if life.keeps_resetting:
        return "resetting"
    return "no answer" if _waits(life) else life.state


def vf_warnings(life: VfHistory) -> Iterator[str]:
    """Yield what is wrong with a function, in words."""
    if life.keeps_resetting:
        often = (
            f"down {MAX_FALLS} times, or reset {MAX_RESETS} times, within {format_ns(RESETTING_NS)}"
        )
        yield f"KEEPS RESETTING: {often}"
    if life.unanswered:
        times = "once" if life.unanswered == 1 else f"{life.unanswered} times"
        still = ", and waits now" if _waits(life) else ""
        yield f"THE CARD'S DRIVER DID NOT ANSWER within a second: {times}{still}"
    if life.refused:
        requests = "request" if life.refused == 1 else "requests"
        yield f"{life.refused} {requests} refused by the card's driver"
    if life.not_recorded:
        yield f"{life.not_recorded} messages came too fast to be recorded"


def vf_lines(
    life: VfHistory, snapshot: Snapshot, width: int, g: Glyphs, messages: int = LAST_MESSAGES
) -> list[RenderableType]:
    """Return one function in full: its state, the states before, its settings, its last message."""
    now = snapshot.at_ns
    address = f" ({clean(life.address, g)})" if life.address else ""
    since = "" if life.since_ns is None else f" for {format_ns(max(0, now - life.since_ns))}"
    lines: list[RenderableType] = [
        Text(f"{clean(name_of(life), g)}{address}, {life.driver}: {life.state}{since}", TITLE),
        *(Text(f"! {warning}", WARNING) for warning in vf_warnings(life)),
    ]
    if life.states:
        lines.append(Text(f"  {_way(life.states, now, g)}"))
    facts = [f"{name} {clean(value, g)}" for name, value in life.settings]
    if life.vlans:
        facts.append("VLANs " + shorten(", ".join(map(str, life.vlans)), 40, g))
    resets = f"resets {life.message_resets} by message, {life.function_resets} as a function"
    lines.append(Text(f"  {'; '.join([*facts, resets])}", "dim"))
    shown = life.recent[-messages:] if messages else ()
    lines += [
        Text(shorten(f"  {_said(message, snapshot, g)}", width, g), no_wrap=True)
        for message in shown
    ]
    return lines


def vfs_part(
    lives: Sequence[VfHistory], snapshot: Snapshot, width: int, g: Glyphs
) -> Iterator[RenderableType]:
    """Yield all functions with a state or a message; empty without such a function."""
    heard = [life for life in lives if life.states or life.recent or life.not_recorded]
    if heard:
        yield Text(f"Virtual functions, by their mailboxes: {len(heard)}", TITLE)
        for life in heard:
            yield Text()
            yield from vf_lines(life, snapshot, width, g)


def last_message(life: VfHistory, g: Glyphs) -> str:
    """Return the last message in one line."""
    if not life.recent:
        return "-"
    message = life.recent[-1]
    return f"{ARROWS[message.direction]} {clean(message_words(message), g)}"


def _waits(life: VfHistory) -> bool:
    """Whether its last request has been without an answer for long."""
    return bool(life.unanswered and life.recent and life.recent[-1].is_request)


def _way(states: Sequence[StateSpan], now_ns: int, g: Glyphs) -> str:
    """Return the last states, each with its duration."""
    shown = states[-LAST_STATES:]
    ends = [now_ns if span.end_at_ns is None else span.end_at_ns for span in shown]
    words = [
        f"{span.name} {format_ns(max(0, end - span.start_at_ns))}"
        for span, end in zip(shown, ends, strict=True)
    ]
    left_out = f"... {g.arrow} " if len(shown) < len(states) else ""
    return left_out + f" {g.arrow} ".join(words)


def _said(message: Message, snapshot: Snapshot, g: Glyphs) -> str:
    at = precise_time(snapshot, message.at_ns)
    return f"{at} {ARROWS[message.direction]} {clean(message_words(message), g)}"
