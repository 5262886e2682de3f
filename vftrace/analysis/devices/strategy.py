"""Which way a migration takes with its devices, from events alone, each verdict with its evidence.

No rule reads a name, a command line or QMP. The rules are tried in order: what a device did during the
migration says more than what happened around it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vftrace.mailbox.driver import Role
from vftrace.model.migration import Evidence, Strategy

UNPLUG_WINDOW_NS = 60_000_000_000
"""A device that left longer than this before a migration began, or came longer after it, has no part in it."""

SETUP_BYTES = 256 * 1024
"""More than a migration's head has, less than what the first pages make: QEMU sends the names and sizes of its
memory before it waits for unplugs (migration/savevm.c, qemu_savevm_wait_unplug)."""

RESUMES_WITHIN_NS = 10_000_000_000
"""A VF that is told later that it may go on has another reason."""


RESTS = "driver puts it to rest"
"""`Said.what` of a driver that left work without a word of its own for that."""


@dataclass(frozen=True)
class Said:
    """Something that a card and a VF agreed on, of which an ordinary driver knows nothing; or, with no `role`
    and `held`, that a driver put its function to rest or up again.

    `held`: by the VM's process then. Otherwise only the time binds it to the migration.
    """

    at_ns: int
    what: str
    function: str
    """`VF 0 of 0000:01:00.0`"""
    role: Role | None
    held: bool

    def evidence(self) -> Evidence:
        """With how it is bound to the VM."""
        how = "held by this VM" if self.held else "bound to this VM by the time alone"
        return Evidence(f"{self.what}: {self.function}, {how}", self.at_ns)


@dataclass(frozen=True)
class Facts:
    """What both sides were seen to do. Times are CLOCK_BOOTTIME ns; a pair is a time and a device's label."""

    started_ns: int
    second_round_ns: int | None
    """The begin of the second sweep after the first."""
    handover_ns: int | None
    """When the source gave up its guest; None if it has not."""
    ended_ns: int | None
    peer_seen: bool
    transfers: tuple[tuple[int, str], ...] = ()
    """Device states asked for that only a transfer needs."""
    closed: tuple[tuple[int, str], ...] = ()
    """Devices the source closed and did not open again before the handover."""
    opened: tuple[tuple[int, str], ...] = ()
    """Devices the destination opened."""
    source_seen: bool = True
    stopped_ns: int | None = None
    """Latest exit of a vCPU on the source."""
    running_ns: int | None = None
    """First entry of one after that, wherever."""
    waited: tuple[tuple[int, str], ...] = ()
    """Those of `closed` before which no memory was sent."""
    sent_memory_ns: int | None = None
    """When the source had begun to send memory, as far as that was seen."""
    said: tuple[Said, ...] = ()
    """By functions that no other VM holds."""
    holds_functions: bool = False
    """Whether the VM keeps virtual functions through the blackout."""
    alone: bool = True
    """Whether no other migration went on meanwhile."""


def classify(facts: Facts) -> tuple[Strategy, tuple[Evidence, ...]]:
    """The strategy and what shows it."""
    rules = (_vfio, _failover, _late_unplug, _unplug, _mailbox)
    return next((found for rule in rules if (found := rule(facts))), (Strategy.PLAIN, ()))


Verdict = tuple[Strategy, tuple[Evidence, ...]]


def _vfio(facts: Facts) -> Verdict | None:
    """A device was asked for a state in which its own state can be read or written."""
    if not facts.transfers:
        return None
    return Strategy.VFIO, tuple(Evidence(what, at) for at, what in facts.transfers)


def _failover(facts: Facts) -> Verdict | None:
    """Closed, or put to rest by its driver, after logging went on, while the source waited with everything it has
    to send; and where the destination is seen to run, opened there while it was loaded.

    QEMU unplugs the primary device when it has set the migration up (hw/net/virtio-net.c,
    virtio_net_migration_state_notifier) and plugs the other one when the guest's features are loaded, before
    it runs (virtio_net_set_features). Nothing else unplugs while a migration goes on: qdev_unplug refuses. In a
    PCIe slot it keeps what the guest has let go of, should the migration fail (hw/pci/pcie.c,
    pcie_unplug_device: partially_hotplugged): such a device is at rest, and not closed.
    """
    waited = [
        Evidence(f"source closes {device} before it sends memory", at)
        for at, device in facts.waited
        if at > facts.started_ns
    ]
    waited += [
        Evidence(f"{s.what} before memory is sent: {s.function}, held by this VM", s.at_ns)
        for s in facts.said
        if s.what == RESTS and s.held and facts.started_ns < s.at_ns
        if facts.sent_memory_ns is None or s.at_ns <= facts.sent_memory_ns
    ]
    if not waited:
        return None
    back = _back(facts)
    ran = facts.running_ns
    loaded = [e for e in back if ran is not None and e.at_ns <= ran]
    if facts.peer_seen and ran is not None and not loaded:
        return None
    return Strategy.FAILOVER, (
        Evidence("dirty logging on for the largest memslot", facts.started_ns),
        *waited,
        *back,
    )


def _late_unplug(facts: Facts) -> Verdict | None:
    """Closed after the second round and before the handover."""
    if facts.second_round_ns is None:
        return None
    until = facts.handover_ns or facts.ended_ns
    late = [
        (at, device)
        for at, device in facts.closed
        if at > facts.second_round_ns and (until is None or at <= until)
    ]
    if not late:
        return None
    return Strategy.LATE_UNPLUG, (
        Evidence("second round begins", facts.second_round_ns),
        *(Evidence(f"source closes {device}", at) for at, device in late),
        *_back(facts),
    )


def _unplug(facts: Facts) -> Verdict | None:
    """Closed before logging went on, another opened after it. Where only the source is seen, the first half."""
    before = left_before(facts)
    back = _back(facts)
    if not before or (facts.peer_seen and not back):
        return None
    return Strategy.UNPLUG, (
        *(Evidence(f"source closes {device}", at) for at, device in before),
        Evidence("dirty logging on for the largest memslot", facts.started_ns),
        *back,
    )


def left_before(facts: Facts) -> list[tuple[int, str]]:
    """Devices that the source closed not long before logging went on."""
    since = facts.started_ns - UNPLUG_WINDOW_NS
    return [(at, device) for at, device in facts.closed if since <= at <= facts.started_ns]


def _back(facts: Facts) -> tuple[Evidence, ...]:
    since = facts.handover_ns or facts.started_ns
    return tuple(
        Evidence(f"destination opens {device}", at)
        for at, device in facts.opened
        if facts.started_ns < at <= since + UNPLUG_WINDOW_NS
    )


def _mailbox(facts: Facts) -> Verdict | None:
    """Card and function agree on something before the blackout and after it; no state is transferred, no device
    unplugged. Where one side is not seen, or it is not over yet, the half that is seen, if a profile names it.

    What a function says that another VM holds says nothing. What only the time binds counts by its role in a
    profile, and only where the VM has no functions of its own and no other migration comes into question.
    """
    if facts.closed:
        return None
    before, after = helped(facts)
    if facts.source_seen:
        halves_due = facts.peer_seen and facts.running_ns is not None
        if facts.stopped_ns is None or not before or (halves_due and not after):
            return None
    elif not after:
        return None
    if not (before and after) and not any(s.role for s in (*before, *after)):
        return None
    return Strategy.MAILBOX, tuple(
        s.evidence() for s in sorted((*before, *after), key=lambda s: s.at_ns)
    )


def helped(facts: Facts) -> tuple[list[Said], list[Said]]:
    """What was said by the functions that have a part in it: before the blackout and after it."""
    said = [s for s in facts.said if s.held]
    if not said and not facts.holds_functions and facts.alone:
        said = [s for s in facts.said if s.role is not None]
    return _before(facts, said), _after(facts, said)


def _before(facts: Facts, said: Iterable[Said]) -> list[Said]:
    """The function is told to stop while the guest runs; its state is saved until the handover."""
    stopped = facts.stopped_ns
    if stopped is None:
        return []
    until = facts.handover_ns or facts.ended_ns or stopped
    ends = {"stop": stopped, "save": max(stopped, until), None: stopped}
    return [s for s in said if s.role in ends and facts.started_ns <= s.at_ns <= ends[s.role]]


def _after(facts: Facts, said: Iterable[Said]) -> list[Said]:
    """Its state is restored on the destination before it runs, or soon after; then it goes on."""
    since = facts.stopped_ns or facts.started_ns
    ran = facts.running_ns or facts.ended_ns
    return [
        s
        for s in said
        if s.role in ("restore", "resume", None)
        and s.at_ns > since
        and (ran is None or s.at_ns <= ran + RESUMES_WITHIN_NS)
    ]
