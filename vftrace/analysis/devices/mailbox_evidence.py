# SPDX-License-Identifier: MIT
"""Collects what cards and VFs agreed on around a migration, with the VM that had each VF open at the time."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import msgspec

from vftrace.analysis.devices.device import PassedDevice
from vftrace.analysis.devices.strategy import (
    QUIESCED,
    RESUMES_WITHIN_NS,
    MailboxAgreement,
)
from vftrace.analysis.devices.vf_phases import VfHistories
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.missed import MissedLog
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.model.vf import VfHistory


class HostContext(msgspec.Struct, frozen=True, dict=True):
    """The rest of the host around a migration: the histories of all VFs, and all VMM processes, at `now_ns`."""

    histories: VfHistories
    processes: Sequence[Process] = ()
    now_ns: int = 0
    mailbox_loss: tuple[int, int] | None = None
    """The interval in which records of mailboxes were lost; None if none was."""
    has_roles: bool = False
    """Whether a profile gives messages a role, so that a card whose VFs no VM holds may have a part."""
    missed: MissedLog = msgspec.field(default_factory=MissedLog)

    def mailbox_lost(self, since_ns: int, until_ns: int | None) -> bool:
        """Whether records of mailboxes were lost that may belong to a migration from `since_ns` to `until_ns`."""
        if self.mailbox_loss is None:
            return False
        first, last = self.mailbox_loss
        return last >= since_ns and (until_ns is None or first <= until_ns + RESUMES_WITHIN_NS)

    def may_send_unseen(self, since_ns: int, until_ns: int | None) -> bool:
        """Whether a process of this host may be the source of a migration that only its destination shows: it read its
        dirty log then, and no send of it was seen."""
        return any(
            (over is None or over >= since_ns) and (until_ns is None or began <= until_ns)
            for began, over in self._without_sends
        )

    @cached_property
    def _without_sends(self) -> list[tuple[int, int | None]]:
        """When attempts without a seen send began, and when they were over."""
        return [
            (attempt.started_at_ns, attempt.over_at_ns or attempt.process_ended_at_ns)
            for process in self.processes
            for attempt in process.outgoing
            if not attempt.is_migration
        ]

    @cached_property
    def by_function(self) -> dict[tuple[str | None, int | None], list[Process]]:
        """The processes that ever held a function, by its card and number."""
        found: dict[tuple[str | None, int | None], list[Process]] = {}
        for process in self.processes:
            for key in {(device.pf, device.vf) for device in process.devices.all}:
                found.setdefault(key, []).append(process)
        return found

    @cached_property
    def lossy(self) -> list[Process]:
        """The processes of which records are missing."""
        return [process for process in self.processes if process.last_loss_ns is not None]

    def alone(self, outgoing: OutgoingMigration | None, incoming: IncomingMigration | None) -> bool:
        """Whether no other migration ran at the same time as this source or destination."""
        own = [part for part in (outgoing, incoming) if part is not None]
        mine = [self._span(part) for part in own]
        others = [
            self._span(part)
            for process in self.processes
            for part in (*process.outgoing, process.incoming)
            if part is not None and not any(part is each for each in own)
            if not isinstance(part, OutgoingMigration) or part.is_migration
        ]
        return not any(a[0] <= b[1] and b[0] <= a[1] for a in mine for b in others)

    def _span(self, part: OutgoingMigration | IncomingMigration) -> tuple[int, int]:
        """The start and end of one side; the end is now while it runs."""
        if isinstance(part, OutgoingMigration):
            ended = part.logging_off_at_ns or part.process_ended_at_ns
            return part.started_at_ns, ended or self.now_ns
        return part.first_act_ns, part.running_at_ns or part.ended_at_ns or self.now_ns


def mailbox_agreements(
    context: HostContext, own: Sequence[Process], stopped_ns: int | None
) -> tuple[MailboxAgreement, ...]:
    """The agreements of VFs that no VM but those of `own` (source, destination) had open at the time.

    An agreement without a role counts only for VFs that the VM had when the guest stopped: the driver of a VF that is
    plugged later starts like any other.
    """
    histories = context.histories
    held = [] if stopped_ns is None else [d for p in own for d in assigned(p, stopped_ns)]
    there = {(d.pf, d.vf) for d in held if (d.opened_at_ns or 0) <= (stopped_ns or 0)}
    found = [
        MailboxAgreement(
            agreement.at_ns, agreement.title, _vf_label(history), agreement.role, is_assigned
        )
        for key, history in histories.items()
        for agreement in history.agreements
        if agreement.role is not None or stopped_ns is None or key in there
        for is_assigned in _assigned_to(context, own, history, agreement.at_ns)
    ]
    if stopped_ns is not None:
        for key in sorted({(d.pf or "", d.vf or 0) for d in held} & histories.keys()):
            history = histories[key]
            found += _quiesced(history, stopped_ns)
            brought_up = _brought_up(history, stopped_ns) if key in there else ()
            # The driver of the next VM may bring the same VF up.
            found += [s for s in brought_up if any(_has_vf(p, history, s.at_ns) for p in own)]
    return tuple(sorted(found, key=lambda s: s.at_ns))


def assigned(process: Process, stopped_ns: int) -> list[PassedDevice]:
    """The VFs that a process had open when the guest stopped, or opened later."""
    return [
        device
        for device in process.devices.all
        if device.pf is not None
        and device.vf is not None
        and (device.closed_at_ns is None or device.closed_at_ns > stopped_ns)
    ]


def history_of(agreement: MailboxAgreement, histories: VfHistories) -> VfHistory | None:
    """The history of the VF that an agreement belongs to."""
    return next((h for h in histories.values() if _vf_label(h) == agreement.function), None)


def _vf_label(history: VfHistory) -> str:
    return f"VF {history.vf} of {history.pf}"


def _assigned_to(
    context: HostContext, own: Sequence[Process], history: VfHistory, at_ns: int
) -> Iterator[bool]:
    """True: one of `own` had the VF open then. False: no process had. Nothing: another VM had."""
    may = context.by_function.get((history.pf, history.vf), ())
    holders = [process for process in may if _has_vf(process, history, at_ns)]
    if any(process in own for process in holders):
        yield True
    elif not holders:
        yield False


def _has_vf(process: Process, history: VfHistory, at_ns: int) -> bool:
    return any(
        (device.pf, device.vf) == (history.pf, history.vf) and process.has_open(device, at_ns)
        for device in process.devices.all
    )


def _quiesced(history: VfHistory, stopped_ns: int) -> Iterable[MailboxAgreement]:
    """The VF's driver quiesced the VF before the guest stopped, as the patches of 2015 did with existing messages."""
    up = [s for s in history.states if s.name == "up" and s.start_at_ns <= stopped_ns]
    ended = up[-1].end_at_ns if up else None
    if ended is not None and ended <= stopped_ns:
        yield MailboxAgreement(ended, QUIESCED, _vf_label(history), None, assigned=True)


def _brought_up(history: VfHistory, stopped_ns: int) -> Iterable[MailboxAgreement]:
    """The VF's driver brought the VF up after the guest was stopped."""
    for span in history.states:
        if span.name == "up" and span.start_at_ns > stopped_ns:
            yield MailboxAgreement(
                span.start_at_ns, "driver has it up again", _vf_label(history), None, assigned=True
            )
