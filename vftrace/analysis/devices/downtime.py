"""What passed-through devices add to a migration: their downtime, checkpoints, troubles and its strategy."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vftrace.analysis.devices.device import (
    TRANSFER,
    Away,
    PassedDevice,
    Trouble,
    device_use,
    moved_away,
    pairs,
)
from vftrace.analysis.devices.mailbox_evidence import Around, function_of, kept, said
from vftrace.analysis.devices.strategy import (
    RESTS,
    SETUP_BYTES,
    UNPLUG_WINDOW_NS,
    Facts,
    Said,
    classify,
    helped,
    left_before,
)
from vftrace.analysis.devices.vf_phases import Lives, destination_vf, heard_vf, ready_ns, source_vf
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


@dataclass(frozen=True)
class Passthrough:
    """The devices of both sides that take part. `since_ns`: the migration's begin.

    `load_since_ns`: the destination's, which may be earlier: RESUMING comes with the head of the stream.
    """

    process: Process | None
    outgoing: OutgoingMigration | None
    peer: Process | None
    incoming: IncomingMigration | None
    since_ns: int
    load_since_ns: int
    until_ns: int
    """When the source's next migration began."""
    sources: list[PassedDevice] = field(default_factory=list)
    destinations: list[PassedDevice] = field(default_factory=list)

    def stop_copy_bytes(self) -> int | None:
        """What all devices of the source have to transfer while stopped; None if there is none, or one did not say."""
        sizes = [device.stop_copy_bytes for device in self.sources]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    def checkpoints(
        self, times: dict[Checkpoint, int], incoming: IncomingMigration | None
    ) -> dict[Checkpoint, int]:
        """Times of the blackout that devices tell, beside those of vCPUs and clock in `times`."""
        found: dict[Checkpoint, int] = {}
        stopped_at = times.get(Checkpoint.VCPUS_STOPPED)
        if self.sources and stopped_at is not None:
            stops = [device.stopped_ns(stopped_at) for device in self.sources]
            known = [stop for stop in stops if stop is not None]
            last = max(known, default=0)
            # A stop after the source went on, or ended, is another one.
            after = [
                times[n] for n in (Checkpoint.CLOCK_READ, Checkpoint.VCPUS_RUNNING) if n in times
            ]
            if len(known) == len(stops) and last <= min(after, default=last):
                found[Checkpoint.DEVICES_STOPPED] = last
        if Checkpoint.STATE_SAVED in times:
            ends = [d.data_ended_ns(VfioData.SAVE, self.since_ns) for d in self.sources]
            found[Checkpoint.STATE_SAVED] = max(
                [times[Checkpoint.STATE_SAVED], *(e for e in ends if e is not None)]
            )
        if Checkpoint.DEVICES_LOADED in times:
            ends = [d.data_ended_ns(VfioData.LOAD, self.load_since_ns) for d in self.destinations]
            found[Checkpoint.DEVICES_LOADED] = max(
                [times[Checkpoint.DEVICES_LOADED], *(e for e in ends if e is not None)]
            )
        if Checkpoint.HELD in times and incoming is not None:
            # With devices `cont` sets these running first, then the clock.
            starts = [
                request.enter_ns
                for device in self.destinations
                for request in device.requests
                if request.state.startswith("RUNNING") and request.at_ns >= incoming.first_act_ns
            ]
            found[Checkpoint.HELD] = min([times[Checkpoint.HELD], *starts])
        return found

    def trouble(self, until_ns: int) -> tuple[PassedDevice, Trouble] | None:
        """The first thing a device refused or failed at."""
        found = [
            (trouble, device)
            for device in (*self.sources, *self.destinations)
            for trouble in device.troubles(self.load_since_ns, until_ns)
        ]
        if not found:
            return None
        trouble, device = min(found, key=lambda pair: pair[0].at_ns)
        return device, trouble

    def uses(self, ended_ns: int | None, *, came_to_nothing: bool) -> tuple[DeviceUse, ...]:
        """Each device's own part. Where the migration came to nothing the source's run on."""
        over = ended_ns if came_to_nothing else None
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
        """Devices the source closed around the migration and did not open again before the handover."""
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
        """Devices the destination opened after the migration had begun."""
        if self.peer is None:
            return []
        return [d for d in self.peer.devices.all if (d.opened_at_ns or 0) > self.since_ns]

    def facts(
        self,
        around: Around,
        times: Mapping[Checkpoint, int],
        handover_ns: int | None,
        ended_ns: int | None,
    ) -> Facts:
        """What the strategy's rules look at. `times`: the checkpoints that were passed."""
        sweeps = self.outgoing.dirty_syncs if self.outgoing else []
        own = [process for process in (self.process, self.peer) if process is not None]
        stopped = times.get(Checkpoint.VCPUS_STOPPED)
        found = said(around, own, stopped)
        closed = self.closed(handover_ns)
        transfers = [
            (r.at_ns, f"{device.label}: {r.state}" + ("" if r.ret == 0 else f" refused, {r.ret}"))
            for device in (*self.sources, *self.destinations)
            for r in device.requests
            if r.state in TRANSFER and self.load_since_ns <= r.at_ns <= self.until_ns
        ]
        return Facts(
            started_ns=self.since_ns,
            second_round_ns=sweeps[1].start_ns if len(sweeps) > 1 else None,
            handover_ns=handover_ns,
            ended_ns=ended_ns,
            peer_seen=self.peer is not None,
            transfers=tuple(sorted(transfers)),
            closed=tuple((d.closed_at_ns or 0, d.label) for d in closed),
            opened=tuple((d.opened_at_ns or 0, d.label) for d in self.opened()),
            source_seen=self.process is not None,
            stopped_ns=stopped,
            running_ns=times.get(Checkpoint.VCPUS_RUNNING),
            waited=tuple((d.closed_at_ns or 0, d.label) for d in closed if self._waited(d)),
            sent_memory_ns=self.outgoing.sent_much_ns if self.outgoing else None,
            said=found,
            holds_functions=any(kept(process, stopped or self.since_ns) for process in own),
            alone=not found or around.alone(self.outgoing, self.incoming),
        )

    def _waited(self, device: PassedDevice) -> bool:
        """Whether a device was closed while the source had not begun to send memory."""
        sent = None if self.outgoing is None else self.outgoing.sent_at_close.get(device.fd)
        return sent is not None and sent[0] == device.closed_at_ns and sent[1] <= SETUP_BYTES


@dataclass(frozen=True)
class Verdict:
    """What all this comes to."""

    strategy: Strategy
    evidence: tuple[Evidence, ...]
    downtimes: tuple[DeviceDowntime, ...]
    devices: tuple[DeviceUse, ...]
    vfs: tuple[VfUse, ...]
    awaits_device: bool
    """One left before it began, and none has come for it yet: whether this is an unplug is still open."""


def gather(
    process: Process | None,
    outgoing: OutgoingMigration | None,
    peer: Process | None,
    incoming: IncomingMigration | None,
) -> Passthrough:
    """The devices that take part, of the sides that are seen."""
    since = outgoing.started_at_ns if outgoing else incoming.first_act_ns if incoming else 0
    load_since = min(since, incoming.first_act_ns) if incoming else since
    until = _EVER
    if process is not None and outgoing is not None:
        later = [s.started_at_ns for s in process.outgoing if s.started_at_ns > since]
        until = min(later, default=_EVER)
    return Passthrough(
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
    found: Passthrough,
    around: Around,
    times: Mapping[Checkpoint, int],
    handover_ns: int | None,
    ended_ns: int | None,
    *,
    came_to_nothing: bool,
) -> Verdict:
    """Strategy, downtimes and all that the report shows of devices."""
    lives = around.lives
    facts = found.facts(around, times, handover_ns, ended_ns)
    strategy, evidence = classify(facts)
    away = moved_away(found.sources, found.destinations, found.since_ns)
    gone: list[tuple[PassedDevice, PassedDevice | None]] = []
    if strategy in (Strategy.UNPLUG, Strategy.LATE_UNPLUG, Strategy.FAILOVER):
        gone = pairs(found.closed(handover_ns), found.opened())
        away += [
            Away(device, peer, device.closed_at_ns, _back(found, peer, lives))
            for device, peer in gone
        ]
        away += _kept(found, facts, gone, lives) if strategy == Strategy.FAILOVER else []
    rested = _rested(facts, lives) if strategy == Strategy.MAILBOX else ()
    return Verdict(
        strategy,
        evidence,
        (*(a.downtime() for a in away), *rested),
        found.uses(ended_ns, came_to_nothing=came_to_nothing),
        (
            *_vfs(found, lives, gone, ended_ns),
            *(_told(facts, lives, ended_ns) if strategy == Strategy.MAILBOX else ()),
        ),
        strategy == Strategy.PLAIN and bool(left_before(facts)),
    )


def _kept(
    found: Passthrough,
    facts: Facts,
    gone: list[tuple[PassedDevice, PassedDevice | None]],
    lives: Lives,
) -> list[Away]:
    """Primaries that a failover's source keeps: away since their driver let go of them."""
    if found.process is None or facts.stopped_ns is None:
        return []
    closed = [device for device, _ in gone]
    held = [d for d in kept(found.process, facts.stopped_ns) if d not in closed]
    taken = [peer for _, peer in gone]
    came = [device for device in found.opened() if device not in taken]
    away = []
    for device, peer in pairs(held, came):
        life = _life(device, lives)
        rests = [s.at_ns for s in facts.said if s.what == RESTS and function_of(s, lives) is life]
        if life is not None and rests:
            away.append(Away(device, peer, rests[-1], _back(found, peer, lives)))
    return away


def _rested(facts: Facts, lives: Lives) -> Iterator[DeviceDowntime]:
    """How long each function that was told to stop before the blackout was out of work: until it, or the one in
    its place, was told to go on."""
    before, after = helped(facts)
    stops = _by_function(before, "stop")
    goes_on = list(_by_function(after, "resume").values())
    for number, (function, stopped) in enumerate(stops.items()):
        life = function_of(stopped, lives)
        back = goes_on[number].at_ns if number < len(goes_on) else None
        yield DeviceDowntime(
            address=life.address if life is not None and life.address else function,
            id=None,
            from_ns=stopped.at_ns,
            ns=None if back is None else back - stopped.at_ns,
        )


def _by_function(said: list[Said], role: str) -> dict[str, Said]:
    """What each function said first in this role; where none has it, what each said first."""
    chosen = [s for s in said if s.role == role] or said
    first: dict[str, Said] = {}
    for each in sorted(chosen, key=lambda s: s.at_ns):
        first.setdefault(each.function, each)
    return first


def _told(facts: Facts, lives: Lives, ended_ns: int | None) -> Iterator[VfUse]:
    """Functions that only the time binds to a migration in which they took part."""
    stopped = facts.stopped_ns
    shown: dict[tuple[str, int], Role] = {}
    for each in facts.said:
        life = function_of(each, lives)
        if life is not None and not each.held and each.role is not None:
            side: Role = (
                Role.SOURCE
                if stopped is not None and each.role in ("stop", "save")
                else Role.DESTINATION
            )
            shown.setdefault((life.pf, life.vf), side)
    for key, side in shown.items():
        yield heard_vf(lives[key], side, facts.started_ns, ended_ns)


def _life(device: PassedDevice, lives: Lives) -> VfHistory | None:
    if device.pf is None or device.vf is None:
        return None
    return lives.get((device.pf, device.vf))


def _back(found: Passthrough, device: PassedDevice | None, lives: Lives) -> int | None:
    """When a function that took another's place was ready; where no mailbox tells, when it was opened.

    Only as long as its VMM held it: the next one's driver may bring the same function up.
    """
    if device is None:
        return None
    gone = found.peer.ended_at_ns if found.peer is not None else None
    use = destination_vf(device, _life(device, lives), 0, None, gone)
    ready = ready_ns(use) if use is not None else None
    return ready if ready is not None else device.opened_at_ns


def _vfs(
    found: Passthrough,
    lives: Lives,
    gone: list[tuple[PassedDevice, PassedDevice | None]],
    ended_ns: int | None,
) -> Iterator[VfUse]:
    """Every virtual function of both sides, the source's first."""
    successors = {id(device): peer for device, peer in gone}
    until = _EVER if ended_ns is None else ended_ns
    if found.process is not None:
        held = found.process.devices.present(found.since_ns, until)
        for device in _unique([*(device for device, _ in gone), *held]):
            peer = successors.get(id(device))
            back = peer.opened_at_ns if peer is not None else None
            use = source_vf(device, _life(device, lives), found.since_ns, ended_ns, back)
            if use is not None:
                yield use
    if found.peer is not None:
        held = found.peer.devices.present(found.load_since_ns, until)
        came = [peer for _, peer in gone if peer is not None]
        since = found.load_since_ns
        if found.process is None:
            # When its source began, and whether it closed a function, is known on the source's host.
            late = until + UNPLUG_WINDOW_NS
            came = [d for d in found.peer.devices.all if d.opened_at_ns and d.opened_at_ns <= late]
            since = min([since, *(d.opened_at_ns or since for d in came)])
        for device in _unique([*came, *held]):
            life = _life(device, lives)
            use = destination_vf(device, life, since, ended_ns, found.peer.ended_at_ns)
            if use is not None:
                yield use


def _unique(devices: Iterable[PassedDevice]) -> list[PassedDevice]:
    """Each device once, in order."""
    return list({id(device): device for device in devices}.values())
