# SPDX-License-Identifier: MIT
"""Decides a migration's strategy for its devices from events alone, with the evidence for each verdict.

No rule reads a name, a command line or QMP. The rules are tried in order: the requests to a device during the
migration are stronger evidence than events before and after it.
"""

from collections.abc import Iterable

import msgspec

from vftrace.mailbox.driver import Role
from vftrace.model.migration import Evidence, Strategy

UNPLUG_WINDOW_NS = 60_000_000_000
"""A device closed longer than this before a migration began, or opened longer after it ended, has no part in it."""

SETUP_BYTES = 256 * 1024
"""More than the head of a migration stream, less than the first pages: QEMU sends the names and sizes of its memory
before it waits for unplugs (migration/savevm.c, qemu_savevm_wait_unplug)."""

RESUMES_WITHIN_NS = 10_000_000_000
"""A resume message that comes later than this belongs to something else."""


QUIESCED = "driver puts it to rest"
"""`MailboxAgreement.what` where a VF's driver left the state up without a message of its own for that."""


class MailboxAgreement(msgspec.Struct, frozen=True):
    """A card and a VF agreed on a message that an ordinary driver does not know; or, with no `role` and `assigned`, a
    VF's driver quiesced its VF or brought it up again.

    `assigned`: the VM's process had the VF open then. Otherwise only the time links it to the migration.
    """

    at_ns: int
    what: str
    function: str
    """`VF 0 of 0000:01:00.0`"""
    role: Role | None
    assigned: bool

    def evidence(self) -> Evidence:
        """The agreement as evidence, with what links it to the VM."""
        how = "held by this VM" if self.assigned else "bound to this VM by the time alone"
        return Evidence(f"{self.what}: {self.function}, {how}", self.at_ns)


class Facts(msgspec.Struct, frozen=True):
    """What both sides did. Times are CLOCK_BOOTTIME ns; a pair is a time and a device's label."""

    started_ns: int
    second_round_ns: int | None
    """The start of the first dirty sync after the initial one."""
    handover_ns: int | None
    """When the source handed its guest over; None if it has not."""
    ended_ns: int | None
    peer_seen: bool
    transfers: tuple[tuple[int, str], ...] = ()
    """Requests for device states that only a transfer needs."""
    closed: tuple[tuple[int, str], ...] = ()
    """Devices that the source closed and did not open again before the handover."""
    opened: tuple[tuple[int, str], ...] = ()
    """Devices that the destination opened."""
    source_seen: bool = True
    stopped_ns: int | None = None
    """Latest exit of a vCPU on the source."""
    running_ns: int | None = None
    """First entry of a vCPU after that, on either side."""
    closed_before_memory: tuple[tuple[int, str], ...] = ()
    """Those of `closed` that were closed before the source sent memory."""
    sent_memory_ns: int | None = None
    """When the source began to send memory; None if that was not seen."""
    agreements: tuple[MailboxAgreement, ...] = ()
    """Agreements of VFs that no other VM had open."""
    has_vfs: bool = False
    """Whether the VM keeps VFs through the blackout."""
    only_migration: bool = True
    """Whether no other migration ran at the same time."""


def classify(facts: Facts) -> tuple[Strategy, tuple[Evidence, ...]]:
    """Return the strategy and its evidence."""
    rules = (_vfio, _failover, _late_unplug, _unplug, _mailbox)
    return next((found for rule in rules if (found := rule(facts))), (Strategy.PLAIN, ()))


Verdict = tuple[Strategy, tuple[Evidence, ...]]


def _vfio(facts: Facts) -> Verdict | None:
    """vfio: the VMM requested a state in which the device's own state can be read or written."""
    if not facts.transfers:
        return None
    return Strategy.VFIO, tuple(Evidence(what, at) for at, what in facts.transfers)


def _failover(facts: Facts) -> Verdict | None:
    """failover: closed, or quiesced by its driver, after dirty logging was switched on and before memory was sent; and,
    where the destination is seen to run, opened there before it ran.

    QEMU unplugs the primary device when it has set the migration up (hw/net/virtio-net.c,
    virtio_net_migration_state_notifier) and plugs the other one when the guest's features are loaded, before
    it runs (virtio_net_set_features). Nothing else unplugs during a migration: qdev_unplug refuses. A device in a
    PCIe slot stays open in case the migration fails (hw/pci/pcie.c, pcie_unplug_device: partially_hotplugged): it is
    quiesced, and not closed.
    """
    unplugged = [
        Evidence(f"source closes {device} before it sends memory", at)
        for at, device in facts.closed_before_memory
        if at > facts.started_ns
    ]
    unplugged += [
        Evidence(f"{s.what} before memory is sent: {s.function}, held by this VM", s.at_ns)
        for s in facts.agreements
        if s.what == QUIESCED and s.assigned and facts.started_ns < s.at_ns
        if facts.sent_memory_ns is None or s.at_ns <= facts.sent_memory_ns
    ]
    if not unplugged:
        return None
    opened = _opened_on_destination(facts)
    ran = facts.running_ns
    loaded = [e for e in opened if ran is not None and e.at_ns <= ran]
    if facts.peer_seen and ran is not None and not loaded:
        return None
    return Strategy.FAILOVER, (
        Evidence("dirty logging on for the largest memslot", facts.started_ns),
        *unplugged,
        *opened,
    )


def _late_unplug(facts: Facts) -> Verdict | None:
    """late-unplug: closed after the second round began and before the handover."""
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
        *_opened_on_destination(facts),
    )


def _unplug(facts: Facts) -> Verdict | None:
    """unplug: closed before dirty logging was switched on, another device opened after it.

    Where only the source is seen, the first half is enough.
    """
    before = left_before(facts)
    opened = _opened_on_destination(facts)
    if not before or (facts.peer_seen and not opened):
        return None
    return Strategy.UNPLUG, (
        *(Evidence(f"source closes {device}", at) for at, device in before),
        Evidence("dirty logging on for the largest memslot", facts.started_ns),
        *opened,
    )


def left_before(facts: Facts) -> list[tuple[int, str]]:
    """Devices that the source closed shortly before dirty logging was switched on."""
    since = facts.started_ns - UNPLUG_WINDOW_NS
    return [(at, device) for at, device in facts.closed if since <= at <= facts.started_ns]


def _opened_on_destination(facts: Facts) -> tuple[Evidence, ...]:
    since = facts.handover_ns or facts.started_ns
    return tuple(
        Evidence(f"destination opens {device}", at)
        for at, device in facts.opened
        if facts.started_ns < at <= since + UNPLUG_WINDOW_NS
    )


def _mailbox(facts: Facts) -> Verdict | None:
    """mailbox: card and VF agree on messages before the blackout and after it; no device state is transferred and no
    device unplugged. Where one side is not seen, or the migration has not ended, the half that is seen is enough, if a
    profile names its messages.

    Messages of a VF that another VM has open do not count. A message that only the time links to the migration counts
    by its role in a profile, and only where the VM has no VFs of its own and no other migration ran at the same time.
    """
    if facts.closed:
        return None
    before, after = assisting(facts)
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


def assisting(facts: Facts) -> tuple[list[MailboxAgreement], list[MailboxAgreement]]:
    """The agreements that belong to the migration: before the blackout, and after it."""
    found = [s for s in facts.agreements if s.assigned]
    if not found and not facts.has_vfs and facts.only_migration:
        found = [s for s in facts.agreements if s.role is not None]
    return _before(facts, found), _after(facts, found)


def _before(facts: Facts, found: Iterable[MailboxAgreement]) -> list[MailboxAgreement]:
    """Agreements to stop the VF while the guest runs, and to save its state before the handover."""
    stopped = facts.stopped_ns
    if stopped is None:
        return []
    until = facts.handover_ns or facts.ended_ns or stopped
    ends = {"stop": stopped, "save": max(stopped, until), None: stopped}
    return [s for s in found if s.role in ends and facts.started_ns <= s.at_ns <= ends[s.role]]


def _after(facts: Facts, found: Iterable[MailboxAgreement]) -> list[MailboxAgreement]:
    """Agreements to restore the VF's state before the guest runs on the destination or soon after, and to resume."""
    since = facts.stopped_ns or facts.started_ns
    ran = facts.running_ns or facts.ended_ns
    return [
        s
        for s in found
        if s.role in ("restore", "resume", None)
        and s.at_ns > since
        and (ran is None or s.at_ns <= ran + RESUMES_WITHIN_NS)
    ]
