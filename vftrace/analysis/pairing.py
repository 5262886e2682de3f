# SPDX-License-Identifier: MIT
"""Finds which source and which destination on one host belong together.

Anyone can start a process with another VM's UUID and `-incoming`, so a command line only suggests a destination.
The guest's clock proves it: a destination sets the value, to the nanosecond, that its source read when it
stopped (QEMU hw/i386/kvm/clock.c: kvmclock_pre_save, kvmclock_vm_state_change).
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from vftrace import events
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.kinds import saves
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.events import Event

SETUP_NS = 10_000_000_000
"""A destination's RESUMING comes with the head of the stream, which the source may send before it logs
(QEMU migration/savevm.c, qemu_savevm_state_header)."""

PAIRING_EVENTS = frozenset(
    {events.Channel, events.Clock, events.VcpuState, events.Userfault, events.VfioState}
)
"""Types of the events that `Pairing.feed` needs."""

Everyone = Callable[[], Sequence[Process]]


class Pair(msgspec.Struct):
    """A source and a destination that belong together.

    `proved`: the destination set the clock that the source had read. `rivalled`: another VM with the same UUID
    waited when they were paired.
    """

    source: Process
    outgoing: OutgoingMigration
    destination: Process
    incoming: IncomingMigration
    proved: bool = False
    rivalled: bool = False

    @property
    def contested(self) -> bool:
        """Whether another VM may have been the destination."""
        return self.rivalled and not self.proved


_Source = tuple[Process, OutgoingMigration]


class Pairing:
    """The pairs on one host, found as soon as a destination acts, or as soon as its source sends."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self._paired: set[int] = set()
        """By id: the incoming migrations that have a source."""
        self._unpaired: dict[int, Process] = {}
        """By id: processes that acted as a destination and have no source yet."""

    def forget(self, process: Process) -> None:
        """Drop all entries of a process."""
        self._unpaired.pop(id(process), None)
        self._keep(
            p for p in self.pairs if process is not p.source and process is not p.destination
        )

    def settle(self, done: set[int]) -> None:
        """Drop the pairs whose attempts, by id, do not change any more."""
        self._keep(pair for pair in self.pairs if id(pair.outgoing) not in done)

    def _keep(self, pairs: Iterable[Pair]) -> None:
        self.pairs = list(pairs)
        self._paired = {id(pair.incoming) for pair in self.pairs}

    def feed(self, process: Process, event: Event, everyone: Everyone) -> None:
        """Take an event that `process` has already taken; `everyone` returns all known processes."""
        if isinstance(event, events.Channel):
            if self._unpaired:
                self._source_sends(process, everyone)
            return
        if isinstance(event, events.Clock):
            self._drop_refuted()
            self._takes_over(process, event, everyone)
        elif isinstance(event, events.VcpuState) and process.incoming is None and process.waits:
            self._loads(process, event, everyone())
        if process.incoming is None:
            return
        if isinstance(event, events.Clock):
            self._prove(process, everyone())
        if id(process.incoming) not in self._paired:
            self._pair(process, everyone())

    def _source_sends(self, process: Process, everyone: Everyone) -> None:
        """Note that a process sends, which makes it a source: a destination with its UUID may have acted before."""
        for waiting in list(self._unpaired.values()):
            if waiting.incoming is None:
                del self._unpaired[id(waiting)]
            elif waiting is not process and waiting.uuid == process.uuid:
                self._pair(waiting, everyone())

    def _takes_over(self, process: Process, event: events.Clock, everyone: Everyone) -> None:
        """Pair a VM that never ran and sets the clock that another VM has read: it is a destination.

        If the source logged nothing, it passed the memory itself: `cloud-hypervisor --local` sends its file descriptor
        (vmm/src/lib.rs, send_migration). Such a destination exists before the source stops; a VM that loads a save
        starts later.
        """
        if event.op != events.Clock.SET or event.ret != 0 or not event.clock or process.has_run:
            return
        for source in everyone():
            stop = source.last_stop
            if source is process or stop is None or stop.clock != event.clock:
                continue
            ran_on = (source.last_run_ns or 0) > stop.at_ns
            there = process.created_at_ns is not None and process.created_at_ns < stop.enter_ns
            if ran_on or not there:
                continue
            if process.incoming is None:
                process.takes_clock(event)
            if not any(event.clock in _clocks_read(source, a) for a in source.outgoing):
                source.passed_memory(stop)

    def _loads(
        self, process: Process, event: events.VcpuState, everyone: Sequence[Process]
    ) -> None:
        """Take the registers that a waiting VM sets after its source read its own: they are the load.

        A boot sets them earlier; a destination that gives up sets them while the source still runs.
        """
        found = self._by_uuid(process, event.at_ns, everyone)
        if found is not None and (found[1].saved or found[1].paused_before):
            process.loads_state(event.at_ns)
            assert process.incoming is not None
            process.incoming.loaded_at_ns = event.at_ns

    def _prove(self, process: Process, everyone: Sequence[Process]) -> None:
        """Pair a destination with the source whose clock it set; this replaces a pair without proof."""
        found = self._by_clock(process, everyone)
        if found is not None and process.incoming is not None:
            self._add(Pair(*found, process, process.incoming, proved=True))

    def _pair(self, process: Process, everyone: Sequence[Process]) -> None:
        """Pair a destination that has acted with its source, by UUID."""
        incoming = process.incoming
        if incoming is None or id(incoming) in self._paired:
            return
        found = self._by_uuid(process, incoming.first_act_ns, everyone)
        if found is None:
            self._unpaired[id(process)] = process
        else:
            rivalled = _has_rival(process, everyone)
            self._add(Pair(*found, process, incoming, rivalled=rivalled))

    def _add(self, pair: Pair) -> None:
        for other in [
            p for p in self.pairs if p.outgoing is pair.outgoing or p.incoming is pair.incoming
        ]:
            self._drop(other)
        self._unpaired.pop(id(pair.destination), None)
        self.pairs.append(pair)
        self._paired.add(id(pair.incoming))

    def _drop(self, pair: Pair) -> None:
        self.pairs = [p for p in self.pairs if p is not pair]
        self._paired.discard(id(pair.incoming))
        if pair.destination.incoming is pair.incoming:
            self._unpaired[id(pair.destination)] = pair.destination

    def _drop_refuted(self) -> None:
        """End a pair if its destination set another clock than its source read."""
        for pair in [p for p in self.pairs if not p.proved]:
            if not _may_be_its(pair.source, pair.outgoing, pair.incoming):
                self._drop(pair)

    def _by_clock(self, destination: Process, everyone: Iterable[Process]) -> _Source | None:
        """Return the one source that read the clock which this destination set."""
        incoming = destination.incoming
        if incoming is None or not incoming.guest_clock_ns:
            return None
        proved = {id(pair.outgoing) for pair in self.pairs if pair.proved}
        found = [
            (process, outgoing)
            for process in everyone
            if process is not destination
            for outgoing in process.outgoing
            if id(outgoing) not in proved
            and outgoing.is_migration
            and incoming.guest_clock_ns in _clocks_read(process, outgoing)
            and _was_there(destination, outgoing)
            and not saves(process, outgoing)
        ]
        return found[0] if len(found) == 1 else None

    def _by_uuid(
        self, destination: Process, at_ns: int, everyone: Sequence[Process]
    ) -> _Source | None:
        """Return the latest source with this destination's UUID that may be its own; without a UUID the only possible
        source."""
        taken = {id(pair.outgoing) for pair in self.pairs}
        incoming = destination.incoming
        candidates = [
            (process, outgoing)
            for process in everyone
            for outgoing in process.outgoing
            if process is not destination
            and process.uuid == destination.uuid
            and outgoing.is_migration
            and id(outgoing) not in taken
            and outgoing.started_at_ns < at_ns + SETUP_NS
            and outgoing.over_at_ns is None
            and outgoing.started_at_ns >= (destination.created_at_ns or 0)
            and (incoming is None or _may_be_its(process, outgoing, incoming))
            and not saves(process, outgoing)
        ]
        if destination.uuid is not None:
            return max(candidates, key=lambda c: c[1].started_at_ns) if candidates else None
        # Without a UUID: by time and exclusivity, one stopped source and one destination.
        stopped = [c for c in candidates if c[1].stop is not None]
        return stopped[0] if len(stopped) == 1 and not _has_rival(destination, everyone) else None


def local_source(process: Process, everyone: Iterable[Process]) -> _Source | None:
    """Return the source of a destination that got no memory over a channel: both share it (cloud-hypervisor --local),
    so the source logs nothing. It is the one VM that has not run since it read the clock that the destination set."""
    incoming = process.incoming
    if incoming is None or not incoming.guest_clock_ns or incoming.clock_set_at_ns is None:
        return None
    found = [
        (other, other.last_stop)
        for other in everyone
        if other is not process
        and other.last_stop is not None
        and other.last_stop.clock == incoming.guest_clock_ns
        and (other.last_run_ns or 0) < other.last_stop.at_ns < incoming.clock_set_at_ns
        and (other.ended_at_ns or incoming.clock_set_at_ns) > (process.created_at_ns or 0)
        and not other.migrates
    ]
    if len(found) != 1:
        return None
    other, stop = found[0]
    return other, OutgoingMigration(
        pid=other.pid,
        tid=stop.tid,
        number=other.attempts,
        started_at_ns=stop.last_exit_ns,
        baseline={},
        baseline_errors={},
        paused_before=False,
        switched_on=False,
        stop=stop,
        process_ended_at_ns=other.ended_at_ns,
    )


def is_impostor(process: Process, everyone: Iterable[Process]) -> bool:
    """Whether a destination without a source set another clock than a source with its UUID reads, or while a VM with
    its UUID ran here that did not migrate."""
    incoming = process.incoming
    if incoming is None or process.uuid is None or incoming.clock_set_at_ns is None:
        return False
    alike = [p for p in everyone if p is not process and p.uuid == process.uuid]
    if any(each.ran_at(incoming.clock_set_at_ns) for each in alike):
        return True
    return any(
        not _may_be_its(source, outgoing, incoming)
        for source in alike
        for outgoing in source.outgoing
        if outgoing.is_migration and _goes_on_at(outgoing, incoming.clock_set_at_ns)
    )


def _was_there(destination: Process, outgoing: OutgoingMigration) -> bool:
    """Whether a destination had started when its source read the clock; one that starts later loads a save."""
    created = destination.created_at_ns
    reads = [read.at_ns for read in (outgoing.stop, outgoing.saved) if read is not None]
    if created is None or (reads and created < max(reads)):
        return True
    # QEMU read the clock of a paused guest when it was paused.
    ends = (outgoing.over_at_ns, outgoing.process_ended_at_ns)
    over = min((end for end in ends if end is not None), default=created)
    return not reads and created <= over


def _goes_on_at(outgoing: OutgoingMigration, at_ns: int) -> bool:
    ends = (outgoing.over_at_ns, outgoing.process_ended_at_ns)
    over = min((end for end in ends if end is not None), default=at_ns)
    return outgoing.started_at_ns < at_ns <= over


def _may_be_its(source: Process, outgoing: OutgoingMigration, incoming: IncomingMigration) -> bool:
    """Whether the clock that a destination set, if it did, can be the one that this source read.

    The clock of a guest that was paused before was read at the pause, which may not have been seen; and a record may be
    lost.
    """
    if not incoming.guest_clock_ns or outgoing.paused_before is not False:
        return True
    reads = _clocks_read(source, outgoing)
    if incoming.guest_clock_ns in reads:
        return True
    lost = source.last_loss_ns is not None and source.last_loss_ns >= outgoing.started_at_ns
    # Older recordings, without the clock's value, have 0 for it.
    return lost or 0 in reads


def _clocks_read(source: Process, outgoing: OutgoingMigration) -> set[int]:
    """Return the values of the guest's clock that a source has read."""
    reads = (outgoing.stop, outgoing.saved, source.clock_to_hand_over(outgoing))
    return {read.clock for read in reads if read is not None}


def _has_rival(destination: Process, everyone: Iterable[Process]) -> bool:
    """Whether another VM with the same UUID, or also without a UUID, waits too."""
    return any(
        p is not destination and p.ended_at_ns is None and p.waits and p.uuid == destination.uuid
        for p in everyone
    )
