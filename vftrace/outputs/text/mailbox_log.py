# SPDX-License-Identifier: MIT
"""Prints mailbox messages as text, like a packet dump, or as JSON, one object per line.

    23:41:07.501234  0000:01:00.0 vf0 >  SET_VLAN add=yes vlan=100
    23:41:07.501301  0000:01:00.0 vf0 <  SET_VLAN ACK  67 us

`>` is from the VF, `<` to it; `--` are lines about the VF itself.
"""

import json
import time
from collections.abc import Collection, Iterator

from vftrace import events
from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.sequence import SequenceTracker
from vftrace.events import NO_PROCESS, Event
from vftrace.mailbox.driver import Drivers, Value
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.message import Message
from vftrace.model import figures
from vftrace.model.vf import StateSpan, VfHistory

ARROWS = {"from-vf": ">", "to-vf": "<"}


def printable(text: str) -> str:
    """Return a text from a recording, which can hold any characters, without control characters."""
    return figures.printable(text).encode("ascii", "replace").decode()[:64]


class Dump:
    """Takes all events in order of time; each call returns the lines to print."""

    def __init__(
        self,
        pfs: Collection[str] = (),
        vfs: Collection[int] = (),
        as_json: bool = False,
        drivers: Drivers = DRIVERS,
    ) -> None:
        """`pfs` (PCI addresses, with or without domain) and `vfs` (numbers) limit what is printed.

        `drivers`: with the messages that profiles add.
        """
        self._pfs = {pf.lower() if pf.count(":") > 1 else f"0000:{pf.lower()}" for pf in pfs}
        self._vfs = set(vfs)
        self._json = as_json
        self._mailboxes = Mailboxes(drivers)
        self._stream = SequenceTracker()
        self._states: dict[tuple[str, int], StateSpan] = {}
        self._clock: tuple[tuple[int, int, int], ...] = ()
        """The latest clock sample."""
        self._lost = 0
        self.heard = False
        """Whether there was an event of a mailbox."""

    def feed(self, event: Event) -> Iterator[str]:
        """Yield the lines of one event: a message, a reset, a change of state, a flood, a loss."""
        if isinstance(event, events.ClockSample):
            self._clock = ((event.at_ns, event.realtime_offset_ns, event.error_ns),)
        if isinstance(event, events.Lost) and event.count > self._lost:
            yield from self._said(event.at_ns, "lost", None, {"records": event.count - self._lost})
            self._lost = event.count
        if event.tgid == NO_PROCESS and not self._stream.accept(event.seq):
            return
        message = self._mailboxes.feed(event)
        if isinstance(event, events.Tick):
            yield from self._quiet()
        elif isinstance(
            event, events.Mailbox | events.Virtchnl | events.VfReset | events.MailboxFlood
        ):
            self.heard = True
            if not self._wanted(event.pf, event.vf):
                return
            if message is not None:
                if not message.quiet:
                    yield self._message(message)
            elif isinstance(event, events.VfReset):
                yield from self._said(event.at_ns, "function-reset", event, {})
            elif isinstance(event, events.MailboxFlood):
                counts = {"from_vf": event.from_vf, "to_vf": event.to_vf, "resets": event.resets}
                yield from self._said(event.at_ns, "not-recorded", event, counts)
            yield from self._state(event.pf, event.vf)

    def summary(self) -> Iterator[str]:
        """Yield the final state of each VF; call it at the end."""
        yield from self._quiet()
        for life in self._mailboxes.vf_histories():
            if self._wanted(life.pf, life.vf):
                yield json.dumps(_life_fields(life)) if self._json else _life_line(life)

    def _quiet(self) -> Iterator[str]:
        """Yield states that were reached because no message arrived."""
        for pf, vf in tuple(self._states):
            yield from self._state(pf, vf)

    def _state(self, pf: str, vf: int) -> Iterator[str]:
        now = self._mailboxes.state(pf, vf)
        before = self._states.get((pf, vf))
        if now is None or now == before:
            return
        self._states[pf, vf] = now
        took = None if before is None else now.start_at_ns - before.start_at_ns
        was = None if before is None else before.name
        if self._json:
            yield self._object(
                now.start_at_ns, "state", pf, vf, state=now.name, before=was, before_ns=took
            )
        else:
            after = "" if took is None else f" (was {was} for {_span(took)})"
            yield f"{self._head(now.start_at_ns, pf, vf)} -- {now.name}{after}"

    def _message(self, message: Message) -> str:
        if self._json:
            return self._object(
                message.at_ns,
                "message",
                message.pf,
                message.vf,
                driver=message.driver,
                direction=message.direction,
                opcode=message.opcode,
                message=message.name,
                role=message.role,
                arguments=message.arguments,
                result=message.result,
                clear_to_send=message.clear_to_send,
                refused=message.refused,
                note=message.note,
                latency_ns=message.latency_ns,
                error=message.error,
            )
        head = self._head(message.at_ns, message.pf, message.vf)
        return f"{head} {ARROWS[message.direction]}  {message_words(message)}"

    def _said(
        self,
        at_ns: int,
        what: str,
        of: events.Mailbox | events.Virtchnl | events.VfReset | events.MailboxFlood | None,
        facts: dict[str, int],
    ) -> Iterator[str]:
        if self._json:
            yield self._object(at_ns, what, of.pf if of else None, of.vf if of else None, **facts)
            return
        head = self._head(at_ns, of.pf, of.vf) if of else self._time(at_ns)
        text = " ".join([what.replace("-", " "), *(f"{k}={v}" for k, v in facts.items())])
        yield f"{head} -- {text}"

    def _object(
        self, at_ns: int, what: str, pf: str | None, vf: int | None, **fields: object
    ) -> str:
        realtime = figures.realtime_ns(self._clock, at_ns)
        return json.dumps(
            {"at_ns": at_ns, "realtime_ns": realtime, "event": what, "pf": pf, "vf": vf, **fields}
        )

    def _head(self, at_ns: int, pf: str, vf: int) -> str:
        return f"{self._time(at_ns)}  {printable(pf)} vf{vf}"

    def _time(self, at_ns: int) -> str:
        """Return the wall time if the clock is known, else seconds since boot."""
        realtime = figures.realtime_ns(self._clock, at_ns)
        if realtime is None:
            return f"{at_ns / 1e9:15.6f}"
        seconds, rest = divmod(realtime, 1_000_000_000)
        try:
            return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{rest // 1000:06d}"
        except (OverflowError, OSError, ValueError):
            return f"{at_ns / 1e9:15.6f}"

    def _wanted(self, pf: str, vf: int) -> bool:
        return (not self._pfs or pf in self._pfs) and (not self._vfs or vf in self._vfs)


def message_words(message: Message) -> str:
    """Return a message as text: name, result, arguments, meaning, latency."""
    words = [message.title, *(f"{k}={_value(v)}" for k, v in message.arguments.items())]
    if message.result != "none":
        words.insert(1, message.result)
    if message.role:
        words.append(f"[{message.role}]")
    if message.note:
        words.append(f"({message.note})")
    if message.error:
        words.append(f"error {message.error}")
    if message.latency_ns is not None:
        words.append(f" {_span(message.latency_ns)}")
    return " ".join(words)


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _span(ns: int) -> str:
    if ns < 1_000_000:
        return f"{ns / 1000:.0f} us"
    return f"{ns / 1e6:.1f} ms" if ns < 1_000_000_000 else f"{ns / 1e9:.2f} s"


def _life_line(life: VfHistory) -> str:
    parts = [life.state, *(f"{name} {value}" for name, value in life.settings)]
    if life.vlans:
        shown = ",".join(str(vlan) for vlan in life.vlans[:8])
        parts.append(f"VLANs {shown}{',...' if len(life.vlans) > 8 else ''}")
    parts.append(f"resets {life.message_resets} by message, {life.function_resets} as a function")
    counts = {
        "refused": life.refused,
        "not answered": life.unanswered,
        "not recorded": life.not_recorded,
    }
    parts += [f"{name} {count}" for name, count in counts.items() if count]
    if life.keeps_resetting:
        parts.append("KEEPS RESETTING")
    address = f" ({printable(life.address)})" if life.address else ""
    return f"{printable(life.pf)} vf{life.vf}{address}, {life.driver}: {'; '.join(parts)}"


def _life_fields(life: VfHistory) -> dict[str, object]:
    return {
        "event": "vf",
        "pf": life.pf,
        "vf": life.vf,
        "address": life.address,
        "driver": life.driver,
        "state": life.state,
        "since_ns": life.since_ns,
        "settings": dict(life.settings),
        "vlans": life.vlans,
        "changes": [
            {"at_ns": change.at_ns, "what": change.what, "value": change.value}
            for change in life.changes
        ],
        "function_resets": life.function_resets,
        "message_resets": life.message_resets,
        "keeps_resetting": life.keeps_resetting,
        "unanswered": life.unanswered,
        "refused": life.refused,
        "not_recorded": life.not_recorded,
    }
