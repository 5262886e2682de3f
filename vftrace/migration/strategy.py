"""Which way a migration takes with its devices, from events alone, each verdict with its evidence.

No rule reads a name, a command line or QMP. The rules are tried in order: what a device did during the
migration says more than what happened around it.
"""

from dataclasses import dataclass

from vftrace.migration.model import Evidence, Strategy

UNPLUG_WINDOW_NS = 60_000_000_000
"""A device that left longer than this before a migration began, or came longer after it, has no part in it."""


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


def classify(facts: Facts) -> tuple[Strategy, tuple[Evidence, ...]]:
    """The strategy and what shows it. Failover and mailbox need events of the PF, which come with their probes."""
    return _vfio(facts) or _late_unplug(facts) or _unplug(facts) or ("plain", ())


Verdict = tuple[Strategy, tuple[Evidence, ...]]


def _vfio(facts: Facts) -> Verdict | None:
    """A device was asked for a state in which its own state can be read or written."""
    if not facts.transfers:
        return None
    return "vfio", tuple(Evidence(what, at) for at, what in facts.transfers)


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
    return "late-unplug", (
        Evidence("second round begins", facts.second_round_ns),
        *(Evidence(f"source closes {device}", at) for at, device in late),
        *_back(facts),
    )


def _unplug(facts: Facts) -> Verdict | None:
    """Closed before logging went on, another opened after it. Where only the source is seen, the first half."""
    before = [
        (at, device)
        for at, device in facts.closed
        if facts.started_ns - UNPLUG_WINDOW_NS <= at <= facts.started_ns
    ]
    back = _back(facts)
    if not before or (facts.peer_seen and not back):
        return None
    return "unplug", (
        *(Evidence(f"source closes {device}", at) for at, device in before),
        Evidence("dirty logging on for the largest memslot", facts.started_ns),
        *back,
    )


def _back(facts: Facts) -> tuple[Evidence, ...]:
    since = facts.handover_ns or facts.started_ns
    return tuple(
        Evidence(f"destination opens {device}", at)
        for at, device in facts.opened
        if facts.started_ns < at <= since + UNPLUG_WINDOW_NS
    )
