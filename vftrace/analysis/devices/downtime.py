# SPDX-License-Identifier: MIT
"""The devices' part in a migration: their downtime, their checkpoints, their failures, and the strategy."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import msgspec

from vftrace.analysis.devices.device import (
    TRANSFER,
    DeviceAbsence,
    PassedDevice,
    Trouble,
    absences,
    device_use,
    pairs,
)
from vftrace.analysis.devices.mailbox_evidence import (
    HostContext,
    assigned,
    history_of,
    mailbox_agreements,
)
from vftrace.analysis.devices.strategy import (
    QUIESCED,
    SETUP_BYTES,
    UNPLUG_WINDOW_NS,
    Facts,
    MailboxAgreement,
    assisting,
    classify,
    left_before,
)
from vftrace.analysis.devices.vf_phases import (
    VfHistories,
    destination_vf,
    mailbox_vf,
    ready_ns,
    source_vf,
)
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.events import VfioData
from vftrace.model.migration import (
    Checkpoint,
    DeviceDowntime,
    DeviceUse,
    Evidence,
    Role,
    Strategy,
    VfUse,
)
from vftrace.model.vf import VfHistory

_EVER = sys.maxsize


class MigrationDevices(msgspec.Struct, frozen=True):
    """The devices of both sides that take part. `since_ns`: the start of the migration.

    `load_since_ns`: the start on the destination, which may be earlier: RESUMING comes with the head of the stream.
    """

    process: Process | None
    outgoing: OutgoingMigration | None
    peer: Process | None
    incoming: IncomingMigration | None
    since_ns: int
    load_since_ns: int
    until_ns: int
    """When the source's next migration began."""
    sources: list[PassedDevice] = msgspec.field(default_factory=list)
    destinations: list[PassedDevice] = msgspec.field(default_factory=list)

    def stop_copy_bytes(self) -> int | None:
        """The bytes that the source's devices transfer while stopped; None without devices or without an estimate."""
        sizes = [device.stop_copy_bytes for device in self.sources]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    def checkpoints(
        self, times: dict[Checkpoint, int], incoming: IncomingMigration | None
    ) -> dict[Checkpoint, int]:
        """The blackout's checkpoints that devices determine, given those of vCPUs and clock in `times`."""
        found: dict[Checkpoint, int] = {}
        stopped_at = times.get(Checkpoint.VCPUS_STOPPED)
        if self.sources and stopped_at is not None:
            stops = [device.stopped_ns(stopped_at) for device in self.sources]
            known = [stop for stop in stops if stop is not None]
            last = max(known, default=0)
            # A stop after the source continued, or ended, belongs to something else.
            after = [
                times[n] for n in (Checkpoint.CLOCK_READ, Checkpoint.VCPUS_RUNNING) if n in times
            ]
            if len(known) == len(stops) and last <= min(after, default=last):
                found[Checkpoint.DEVICES_STOPPED] = last
        if Checkpoint.STATE_SAVED in times:
            ends = [d.data_ended_ns(VfioData.SAVE, self.since_ns) for d in self.sources]
            loaded = times.get(Checkpoint.DEVICES_LOADED, _EVER)
            found[Checkpoint.STATE_SAVED] = max(
                [
                    times[Checkpoint.STATE_SAVED],
                    *(e for e in ends if e is not None),
                    *(at for at in self._stop_requests_in_stream() if at <= loaded),
                ]
            )
        if Checkpoint.DEVICES_LOADED in times:
            ends = [d.data_ended_ns(VfioData.LOAD, self.load_since_ns) for d in self.destinations]
            found[Checkpoint.DEVICES_LOADED] = max(
                [times[Checkpoint.DEVICES_LOADED], *(e for e in ends if e is not None)]
            )
        if Checkpoint.HELD in times and incoming is not None:
            # `cont` sets devices running before it sets the clock.
            starts = [
                request.enter_ns
                for device in self.destinations
                for request in device.requests
                if request.state.startswith("RUNNING") and request.at_ns >= incoming.first_act_ns
            ]
            found[Checkpoint.HELD] = min([times[Checkpoint.HELD], *starts])
        return found

    def _stop_requests_in_stream(self) -> Iterator[int]:
        """Yield when each request to leave STOP_COPY returned, where the source sent more of its stream after it.

        QEMU 8.0 and 8.1 make this request between the device's data and the rest of the stream
        (hw/vfio/migration.c, vfio_save_complete_precopy), so the destination waits for it. Later versions make it when
        the stream has ended (vfio_save_cleanup).
        """
        if self.process is None or self.outgoing is None:
            return
        fds = self.outgoing.channel_fds(self.process.peers)
        channels = self.outgoing.channels
        sent_ns = max((channels[fd].last_ns for fd in fds if fd in channels), default=0)
        for device in self.sources:
            for before, request in pairwise(device.requests):
                left = before.state == "STOP_COPY" and request.state == "STOP"
                if left and self.since_ns <= request.at_ns < min(sent_ns, self.until_ns):
                    yield request.at_ns

    def trouble(self, until_ns: int) -> tuple[PassedDevice, Trouble] | None:
        """The first refused request or failed transfer of a device."""
        found = [
            (trouble, device)
            for device in (*self.sources, *self.destinations)
            for trouble in device.troubles(self.load_since_ns, until_ns)
        ]
        if not found:
            return None
        trouble, device = min(found, key=lambda pair: pair[0].at_ns)
        return device, trouble

    def uses(self, ended_ns: int | None, *, failed: bool) -> tuple[DeviceUse, ...]:
        """Each device's part. If the migration failed or was cancelled, the source's devices continue to run."""
        over = ended_ns if failed else None
        both = pairs(self.sources, self.destinations)
        found = [
            device_use(device, Role.SOURCE, peer, self.since_ns, ended_ns, over)
            for device, peer in both
        ]
        before = {id(peer): device for device, peer in both if peer is not None}
        found += [
            device_use(
                device,
                Role.DESTINATION,
                before.get(id(device)),
                self.load_since_ns,
                ended_ns,
                self.load_since_ns,
            )
            for device in self.destinations
        ]
        return tuple(found)

    def closed(self, handover_ns: int | None) -> list[PassedDevice]:
        """Devices that the source closed around the migration and did not open again before the handover."""
        if self.process is None:
            return []
        until = handover_ns or self.until_ns
        every = self.process.devices.all
        return [
            device
            for device in every
            if device.closed_at_ns is not None
            and self.since_ns - UNPLUG_WINDOW_NS <= device.closed_at_ns <= until
            and not any(
                other.address == device.address
                and device.closed_at_ns <= other.opened_at_ns <= until
                for other in every
                if other.opened_at_ns is not None
            )
        ]

    def opened(self) -> list[PassedDevice]:
        """Devices that the destination opened after the migration began."""
        if self.peer is None:
            return []
        return [d for d in self.peer.devices.all if (d.opened_at_ns or 0) > self.since_ns]

    def facts(
        self,
        context: HostContext,
        times: Mapping[Checkpoint, int],
        handover_ns: int | None,
        ended_ns: int | None,
    ) -> Facts:
        """Collect what the rules for the strategy need. `times`: the checkpoints that were passed."""
        syncs = self.outgoing.dirty_syncs if self.outgoing else []
        own = [process for process in (self.process, self.peer) if process is not None]
        stopped = times.get(Checkpoint.VCPUS_STOPPED)
        found = mailbox_agreements(context, own, stopped)
        closed = self.closed(handover_ns)
        transfers = [
            (r.at_ns, f"{device.label}: {r.state}" + ("" if r.ret == 0 else f" refused, {r.ret}"))
            for device in (*self.sources, *self.destinations)
            for r in device.requests
            if r.state in TRANSFER and self.load_since_ns <= r.at_ns <= self.until_ns
        ]
        return Facts(
            started_ns=self.since_ns,
            second_round_ns=syncs[1].start_ns if len(syncs) > 1 else None,
            handover_ns=handover_ns,
            ended_ns=ended_ns,
            peer_seen=self.peer is not None,
            transfers=tuple(sorted(transfers)),
            closed=tuple((d.closed_at_ns or 0, d.label) for d in closed),
            opened=tuple((d.opened_at_ns or 0, d.label) for d in self.opened()),
            source_seen=self.process is not None,
            stopped_ns=stopped,
            running_ns=times.get(Checkpoint.VCPUS_RUNNING),
            closed_before_memory=tuple(
                (d.closed_at_ns or 0, d.label) for d in closed if self._closed_before_memory(d)
            ),
            sent_memory_ns=self.outgoing.sent_much_ns if self.outgoing else None,
            agreements=found,
            has_vfs=any(assigned(process, stopped or self.since_ns) for process in own),
            only_migration=not found or context.alone(self.outgoing, self.incoming),
        )

    def _closed_before_memory(self, device: PassedDevice) -> bool:
        """Whether a device was closed before the source began to send memory."""
        sent = None if self.outgoing is None else self.outgoing.sent_at_close.get(device.fd)
        return sent is not None and sent[0] == device.closed_at_ns and sent[1] <= SETUP_BYTES


class Verdict(msgspec.Struct, frozen=True):
    """The result for one migration."""

    strategy: Strategy
    evidence: tuple[Evidence, ...]
    downtimes: tuple[DeviceDowntime, ...]
    devices: tuple[DeviceUse, ...]
    vfs: tuple[VfUse, ...]
    awaits_device: bool
    """A device was closed before the migration and no other was opened yet: this may become an unplug."""


def gather(
    process: Process | None,
    outgoing: OutgoingMigration | None,
    peer: Process | None,
    incoming: IncomingMigration | None,
) -> MigrationDevices:
    """Find the devices that take part, on the sides that were seen."""
    since = outgoing.started_at_ns if outgoing else incoming.first_act_ns if incoming else 0
    load_since = min(since, incoming.first_act_ns) if incoming else since
    until = _EVER
    if process is not None and outgoing is not None:
        later = [s.started_at_ns for s in process.outgoing if s.started_at_ns > since]
        until = min(later, default=_EVER)
    return MigrationDevices(
        process=process if outgoing else None,
        outgoing=outgoing,
        peer=peer,
        incoming=incoming,
        since_ns=since,
        load_since_ns=load_since,
        until_ns=until,
        sources=process.devices.transferring(since, until) if process and outgoing else [],
        destinations=peer.devices.transferring(load_since, until) if peer else [],
    )


def judge(
    found: MigrationDevices,
    context: HostContext,
    times: Mapping[Checkpoint, int],
    handover_ns: int | None,
    ended_ns: int | None,
    *,
    failed: bool,
) -> Verdict:
    """Decide the strategy, and compute the downtimes and everything else the report shows of devices."""
    histories = context.histories
    facts = found.facts(context, times, handover_ns, ended_ns)
    strategy, evidence = classify(facts)
    absent = absences(found.sources, found.destinations, found.since_ns)
    unplugged: list[tuple[PassedDevice, PassedDevice | None]] = []
    if strategy in (Strategy.UNPLUG, Strategy.LATE_UNPLUG, Strategy.FAILOVER):
        unplugged = pairs(found.closed(handover_ns), found.opened())
        absent += [
            DeviceAbsence(
                device, peer, device.closed_at_ns, _ready_again_ns(found, peer, histories)
            )
            for device, peer in unplugged
        ]
        absent += (
            _primaries_kept(found, facts, unplugged, histories)
            if strategy == Strategy.FAILOVER
            else []
        )
    by_mailbox = _mailbox_downtimes(facts, histories) if strategy == Strategy.MAILBOX else ()
    return Verdict(
        strategy,
        evidence,
        (*(a.downtime() for a in absent), *by_mailbox),
        found.uses(ended_ns, failed=failed),
        (
            *_vfs(found, histories, unplugged, ended_ns),
            *(
                _vfs_bound_by_time(facts, histories, ended_ns)
                if strategy == Strategy.MAILBOX
                else ()
            ),
        ),
        strategy == Strategy.PLAIN and bool(left_before(facts)),
    )


def _primaries_kept(
    found: MigrationDevices,
    facts: Facts,
    unplugged: list[tuple[PassedDevice, PassedDevice | None]],
    histories: VfHistories,
) -> list[DeviceAbsence]:
    """Primaries that a failover's source keeps open: absent since their driver quiesced them."""
    if found.process is None or facts.stopped_ns is None:
        return []
    closed = [device for device, _ in unplugged]
    kept = [d for d in assigned(found.process, facts.stopped_ns) if d not in closed]
    taken = [peer for _, peer in unplugged]
    came = [device for device in found.opened() if device not in taken]
    absent = []
    for device, peer in pairs(kept, came):
        history = _history_of(device, histories)
        quiesced = [
            s.at_ns
            for s in facts.agreements
            if s.what == QUIESCED and history_of(s, histories) is history
        ]
        if history is not None and quiesced:
            absent.append(
                DeviceAbsence(device, peer, quiesced[-1], _ready_again_ns(found, peer, histories))
            )
    return absent


def _mailbox_downtimes(facts: Facts, histories: VfHistories) -> Iterator[DeviceDowntime]:
    """The downtime of each VF that was stopped by mailbox: from its stop message to the resume message of it or of its
    successor."""
    before, after = assisting(facts)
    stops = _by_function(before, "stop")
    resumed = list(_by_function(after, "resume").values())
    for number, (function, stopped) in enumerate(stops.items()):
        history = history_of(stopped, histories)
        back = resumed[number].at_ns if number < len(resumed) else None
        yield DeviceDowntime(
            address=history.address if history is not None and history.address else function,
            id=None,
            from_ns=stopped.at_ns,
            ns=None if back is None else back - stopped.at_ns,
        )


def _by_function(agreements: list[MailboxAgreement], role: str) -> dict[str, MailboxAgreement]:
    """Each VF's first agreement with this role; if no agreement has the role, each VF's first agreement."""
    chosen = [s for s in agreements if s.role == role] or agreements
    first: dict[str, MailboxAgreement] = {}
    for each in sorted(chosen, key=lambda s: s.at_ns):
        first.setdefault(each.function, each)
    return first


def _vfs_bound_by_time(
    facts: Facts, histories: VfHistories, ended_ns: int | None
) -> Iterator[VfUse]:
    """VFs that took part in the migration and that only the time links to it."""
    stopped = facts.stopped_ns
    shown: dict[tuple[str, int], Role] = {}
    for each in facts.agreements:
        history = history_of(each, histories)
        if history is not None and not each.assigned and each.role is not None:
            side: Role = (
                Role.SOURCE
                if stopped is not None and each.role in ("stop", "save")
                else Role.DESTINATION
            )
            shown.setdefault((history.pf, history.vf), side)
    for key, side in shown.items():
        yield mailbox_vf(histories[key], side, facts.started_ns, ended_ns)


def _history_of(device: PassedDevice, histories: VfHistories) -> VfHistory | None:
    if device.pf is None or device.vf is None:
        return None
    return histories.get((device.pf, device.vf))


def _ready_again_ns(
    found: MigrationDevices, device: PassedDevice | None, histories: VfHistories
) -> int | None:
    """Return when a successor VF was ready; without its mailbox, when it was opened.

    Only while its VMM has it open: the driver of the next VM may bring the same VF up.
    """
    if device is None or found.peer is None:
        return None
    released = found.peer.released_ns(device)
    use = destination_vf(device, _history_of(device, histories), 0, None, released)
    ready = ready_ns(use) if use is not None else None
    return ready if ready is not None else device.opened_at_ns


def _vfs(
    found: MigrationDevices,
    histories: VfHistories,
    unplugged: list[tuple[PassedDevice, PassedDevice | None]],
    ended_ns: int | None,
) -> Iterator[VfUse]:
    """Yield every VF of both sides, the source's first."""
    successors = {id(device): peer for device, peer in unplugged}
    until = _EVER if ended_ns is None else ended_ns
    if found.process is not None:
        held = found.process.devices.present(found.since_ns, until)
        for device in _unique([*(device for device, _ in unplugged), *held]):
            peer = successors.get(id(device))
            back = peer.opened_at_ns if peer is not None else None
            use = source_vf(device, _history_of(device, histories), found.since_ns, ended_ns, back)
            if use is not None:
                yield use
    if found.peer is not None:
        held = found.peer.devices.present(found.load_since_ns, until)
        came = [peer for _, peer in unplugged if peer is not None]
        since = found.load_since_ns
        if found.process is None:
            # Only the source's host knows when its source began, and whether it closed a VF.
            late = until + UNPLUG_WINDOW_NS
            came = [d for d in found.peer.devices.all if d.opened_at_ns and d.opened_at_ns <= late]
            since = min([since, *(d.opened_at_ns or since for d in came)])
        for device in _unique([*came, *held]):
            history = _history_of(device, histories)
            released = found.peer.released_ns(device)
            use = destination_vf(device, history, since, ended_ns, released)
            if use is not None:
                yield use


def _unique(devices: Iterable[PassedDevice]) -> list[PassedDevice]:
    """Return each device once, in order."""
    return list({id(device): device for device in devices}.values())
