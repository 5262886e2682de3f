# SPDX-License-Identifier: MIT
"""Tracks each virtual function's mailbox: events in, `VfHistory` out (vftrace/model/vf.py lists the states).

Times are those of the events; nothing here reads a clock.
"""

from collections import Counter, deque
from collections.abc import Iterator
from functools import cached_property

import msgspec
from msgspec.structs import replace

from vftrace.events import Event, Mailbox, MailboxFlood, Tick, VfAddress, VfReset, Virtchnl
from vftrace.faults import FAULTS, Where
from vftrace.mailbox.driver import Direction, Driver, Drivers, Result, Stage
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.message import Message, Pairing, message_of
from vftrace.mailbox.words import NOT_CLEAR, WORD_PROTOCOL
from vftrace.model import figures
from vftrace.model.vf import Agreement, Change, LinkReport, State, StateSpan, VfHistory

SETTLED_NS = 500_000_000
"""A VF's driver that configures sends its requests back to back. After this pause it has finished."""

UNANSWERED_NS = 1_000_000_000
"""A VF's driver waits this long for a reply (IXGBE_VF_MBX_INIT_TIMEOUT × _DELAY), then resets."""

RESETTING_NS = 60_000_000_000
MAX_FALLS, MAX_RESETS = 5, 20
"""A VF keeps resetting if within a minute it was reset this often while configuring or up, or this often at all.
(igbvf resets once for a new frame size, and several times when it is bound; an operator does not do that five times
per minute.)"""

MAX_VFS = 4096
MAX_RECENT = 32
MAX_CHANGES = 64
MAX_STATES = 64
MAX_VLANS = 4096
MAX_AGREEMENTS = 64
MAX_LINKS = 64

_MAC_MESSAGES = ("RESET", "SET_MAC_ADDR", "GET_VF_RESOURCES")

NOT_RECORDED = "not-recorded"
UNKNOWN = "unknown"
"""Names in the counts: messages above the recorded rate, and opcodes that no table has."""


class _Vf(msgspec.Struct):
    pf: str
    vf: int
    pf_driver: Driver
    max_recent: int
    address: str | None = None
    states: deque[StateSpan] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_STATES))
    pairing: Pairing = msgspec.field(default_factory=Pairing)
    opened: bool = False
    last_ns: int = 0
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    vlans: set[int] = msgspec.field(default_factory=set)
    changes: deque[Change] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_CHANGES))
    resets: deque[int] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_RESETS))
    falls: deque[int] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_FALLS))
    function_resets: int = 0
    message_resets: int = 0
    unanswered: int = 0
    complained_ns: int = -1
    refused: int = 0
    not_recorded: int = 0
    recent: deque[Message] = msgspec.field(default_factory=deque)
    agreements: deque[Agreement] = msgspec.field(
        default_factory=lambda: deque(maxlen=MAX_AGREEMENTS)
    )
    links: deque[LinkReport] = msgspec.field(default_factory=lambda: deque(maxlen=MAX_LINKS))
    counts: Counter[tuple[str, Direction, Result]] = msgspec.field(default_factory=Counter)

    @property
    def state(self) -> State:
        return self.states[-1].name if self.states else "absent"

    def enter(self, state: State, at_ns: int) -> None:
        if state == self.state:
            return
        if self.states:
            self.states[-1] = replace(self.states[-1], end_at_ns=at_ns)
        self.states.append(StateSpan(state, at_ns, None))

    def pass_time(self, now_ns: int) -> None:
        """Apply what follows from a pause between messages."""
        pending = self.pairing.pending
        if pending is not None:
            if now_ns - pending.at_ns >= UNANSWERED_NS and self.complained_ns != pending.at_ns:
                self.unanswered += 1
                self.complained_ns = pending.at_ns
        elif now_ns - self.last_ns >= SETTLED_NS:
            state = self.state
            if state == "configuring" and self.opened:
                self.enter("up", self.last_ns)
            elif state in ("configuring", "negotiating"):
                self.enter("reset", self.last_ns)

    def was_reset(self, at_ns: int) -> None:
        self.resets.append(at_ns)
        if self.state in ("configuring", "up"):
            self.falls.append(at_ns)
        self.enter("reset", at_ns)
        self.opened = False
        # ixgbe_vf_reset_event and igb_vf_reset remove its filters and VLANs
        self.vlans.clear()
        self.settings = {k: v for k, v in self.settings.items() if k == "mac"}

    def take(self, message: Message) -> Message:
        asked = self.pairing.pending
        message = self.pairing.take(message)
        opcode = self.pf_driver.opcodes.get(message.opcode) if message.name else None
        name = opcode.name if opcode else UNKNOWN
        self.counts[name, message.direction, message.result] += 1
        if not message.quiet:
            self.recent.append(message)
        if len(self.recent) > self.max_recent:
            self.recent.popleft()
        self.last_ns = message.at_ns
        if message.is_request:
            self._asked(opcode.stage if opcode else Stage.ANY, message.at_ns)
        elif message.direction == "to-vf" and asked is not None and message.opcode == asked.opcode:
            self._answered(asked, message)
        if message.arguments.get("event") == "link" and not message.error:
            self.links.append(LinkReport(message.at_ns, bool(message.arguments["up"])))
        if _agrees(message, asked) and (opcode is None or opcode.role is not None):
            self.agreements.append(
                Agreement(message.at_ns, message.title, message.direction, message.role)
            )
        return message

    def _asked(self, stage: Stage, at_ns: int) -> None:
        if stage is Stage.RESET:
            self.message_resets += 1
            self.was_reset(at_ns)
        elif stage is Stage.NEGOTIATE:
            if self.state in ("absent", "reset"):
                self.enter("negotiating", at_ns)
        elif self.state == "absent":
            # It was up before tracing began.
            self.enter("up", at_ns)
        elif stage in (Stage.PREPARE, Stage.OPEN, Stage.UP):
            if self.state != "up":
                self.enter("configuring", at_ns)
            self.opened |= stage is Stage.OPEN

    def _answered(self, asked: Message, reply: Message) -> None:
        self.refused += reply.refused
        if asked.name == "RESET":
            self.enter("negotiating", reply.at_ns)
        elif reply.note == NOT_CLEAR:
            self.enter("reset", reply.at_ns)
        if reply.result != "ACK":
            return
        known = self.pf_driver.opcodes.get(asked.opcode) if asked.name else None
        stage = known.stage if known is not None else Stage.ANY
        if stage is Stage.UP:
            self.enter("up", reply.at_ns)
        elif stage is Stage.DOWN:
            self.enter("reset", reply.at_ns)
        arguments = {**asked.arguments, **reply.arguments}
        # A guest may send less than the message needs, which then has no arguments.
        if asked.name in ("ADD_VLAN", "DEL_VLAN") and arguments.get("count") == 1:
            self._vlan(int(arguments["vlan"]), asked.name == "ADD_VLAN", reply.at_ns)
        if asked.name == "SET_VLAN" and "vlan" in arguments and "add" in arguments:
            self._vlan(int(arguments["vlan"]), bool(arguments["add"]), reply.at_ns)
        for what in ("mac", "max_frame", "mode", "version", "features"):
            keeps = asked.name in _MAC_MESSAGES or what != "mac"
            if what in arguments and keeps and arguments.get("act", "set") == "set":
                self._changed(what, str(arguments[what]), reply.at_ns)

    def _vlan(self, vlan: int, add: bool, at_ns: int) -> None:
        if add and vlan not in self.vlans and len(self.vlans) < MAX_VLANS:
            self.vlans.add(vlan)
            self.changes.append(Change(at_ns, "vlan", f"+{vlan}"))
        elif not add and vlan in self.vlans:
            self.vlans.discard(vlan)
            self.changes.append(Change(at_ns, "vlan", f"-{vlan}"))

    def _changed(self, what: str, value: str, at_ns: int) -> None:
        if self.settings.get(what) != value:
            self.settings[what] = value
            self.changes.append(Change(at_ns, what, value))

    def history(self, now_ns: int) -> VfHistory:
        return VfHistory(
            pf=self.pf,
            vf=self.vf,
            address=self.address,
            driver=self.pf_driver.name,
            state=self.state,
            since_ns=self.states[-1].start_at_ns if self.states else None,
            states=tuple(self.states),
            settings=tuple(sorted(self.settings.items())),
            vlans=tuple(sorted(self.vlans)),
            changes=tuple(self.changes),
            function_resets=self.function_resets,
            message_resets=self.message_resets,
            keeps_resetting=_within(self.resets, MAX_RESETS, now_ns)
            or _within(self.falls, MAX_FALLS, now_ns),
            unanswered=self.unanswered,
            refused=self.refused,
            not_recorded=self.not_recorded,
            recent=tuple(self.recent),
            counts=tuple(sorted(self.counts.items())),
            agreements=tuple(self.agreements),
            links=tuple(self.links),
        )


def _agrees(message: Message, asked: Message | None) -> bool:
    """Whether this reply grants its request, or the card's driver sent the message unasked.

    A message without opcode is the card's "it must reset first" (igb_rcv_ack_from_vf) and agrees to nothing.
    """
    if message.direction != "to-vf" or message.error or not message.opcode:
        return False
    if message.result == "ACK":
        return asked is not None and asked.opcode == message.opcode
    return message.result != "NACK"


def _within(times: deque[int], count: int, now_ns: int) -> bool:
    return len(times) == count and now_ns - times[0] <= RESETTING_NS


class Mailboxes:
    """Takes all events in order of time, and returns the history of each VF whose mailbox was seen."""

    def __init__(self, drivers: Drivers = DRIVERS, recent: int = MAX_RECENT) -> None:
        """`drivers`: with the messages that profiles add. `recent`: how many messages of each VF are kept."""
        self._drivers = drivers
        self._recent = recent
        self._vfs: dict[tuple[str, int], _Vf] = {}
        self._addresses: dict[tuple[str, int], str] = {}
        """Addresses of VFs without a message so far: a flight recorder keeps the latest addresses only."""
        self._now_ns = 0
        self._next_look_ns = 0
        self.ignored = 0
        """Messages of VFs beyond the 4096th."""

    @cached_property
    def names_roles(self) -> bool:
        """Whether a message of any driver has a role in mailbox-assisted migrations, by the profiles."""
        opcodes = (o for driver in self._drivers.values() for o in driver.opcodes.values())
        return any(opcode.role is not None for opcode in opcodes)

    def feed(self, event: Event) -> Message | None:
        """Take one event of any kind. A message is returned decoded and paired."""
        if event.at_ns > self._now_ns:
            self._now_ns = event.at_ns
        if self._now_ns >= self._next_look_ns:
            self._next_look_ns = self._now_ns + SETTLED_NS // 5
            for each in self._vfs.values():
                each.pass_time(self._now_ns)
        if type(event) is Tick:
            return None
        match event:
            case Mailbox() | Virtchnl():
                vf = self._vf(event.pf, event.vf, event.driver)
                if vf is None:
                    self.ignored += 1
                    return message_of(event, self._drivers)
                vf.pass_time(event.at_ns)
                return vf.take(message_of(event, self._drivers))
            case VfReset():
                vf = self._vf(event.pf, event.vf, event.driver)
                if vf is not None:
                    vf.pass_time(event.at_ns)
                    vf.function_resets += 1
                    # A request sent before the reset gets no reply.
                    vf.pairing = Pairing()
                    vf.was_reset(event.at_ns)
            case MailboxFlood():
                self._flood(event)
            case VfAddress():
                known = self._vfs.get((event.pf, event.vf))
                if known is not None:
                    known.address = event.address
                elif len(self._addresses) < MAX_VFS:
                    self._addresses[event.pf, event.vf] = event.address
            case _:
                pass
        return None

    def _flood(self, event: MailboxFlood) -> None:
        vf = self._vf(event.pf, event.vf, event.driver)
        if vf is None:
            return
        counts: dict[Direction, int] = {"from-vf": event.from_vf, "to-vf": event.to_vf}
        for direction, count in counts.items():
            if count > 0:
                vf.counts[NOT_RECORDED, direction, "none"] += count
        vf.not_recorded += max(event.from_vf, 0) + max(event.to_vf, 0) + max(event.resets, 0)
        vf.function_resets += max(event.resets, 0)

    def _vf(self, pf: str, number: int, driver: int) -> _Vf | None:
        vf = self._vfs.get((pf, number))
        if vf is not None and vf.pf_driver.number != driver:
            # The card has another driver now, so this is another VF.
            del self._vfs[pf, number]
            vf = None
        if vf is None and len(self._vfs) < MAX_VFS:
            known = self._drivers.get(driver, Driver(str(driver), driver, WORD_PROTOCOL))
            vf = self._vfs[pf, number] = _Vf(pf, number, known, self._recent)
            vf.address = self._addresses.pop((pf, number), None)
        return vf

    def state(self, pf: str, number: int) -> StateSpan | None:
        """The state of a VF; None before its first message."""
        vf = self._vfs.get((pf, number))
        return vf.states[-1] if vf is not None and vf.states else None

    def vf_histories(self) -> Iterator[VfHistory]:
        """Yield every VF's history, sorted by card and number."""
        for _, vf in sorted(self._vfs.items()):
            try:
                history = vf.history(self._now_ns)
            except Exception as error:
                what = f"VF {vf.vf} of {figures.printable(vf.pf)} is not shown"
                FAULTS.contained(Where.MAILBOX, error, what)
            else:
                yield history
