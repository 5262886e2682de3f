# SPDX-License-Identifier: MIT
"""Builds one immutable Migration of the data of both sides: outcome, phases, checkpoints."""

import errno
import sys
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from vftrace.analysis.calls.blackout import Side, calls_of
from vftrace.analysis.devices import downtime as device_downtime
from vftrace.analysis.devices.downtime import MigrationDevices
from vftrace.analysis.devices.mailbox_evidence import HostContext
from vftrace.analysis.devices.strategy import UNPLUG_WINDOW_NS
from vftrace.analysis.forecast.precopy import of_migration
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.kinds import kind_of, loaded_from, saved_to
from vftrace.analysis.missed import concerning
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.phases import checkpoint_times, downtime_of, phases_of
from vftrace.analysis.process import BURST_NS, NEXT_LIFE, Process
from vftrace.analysis.vcpus.brownout import Running, brownout_of
from vftrace.analysis.verdict import Verdict, decide, device_verdict, facts_of, was_paused
from vftrace.model.brownout import Brownout
from vftrace.model.migration import (
    Cause,
    ChannelUse,
    Checkpoint,
    Dirty,
    DmaSource,
    Evidence,
    Forecast,
    Loss,
    Migration,
    Outcome,
    Role,
    Round,
    Strategy,
)
from vftrace.uapi import PAGE_SIZE

_FOREVER = sys.maxsize
REAPER_NS = 1_000_000_000
"""How often QEMU empties the dirty rings in between (accel/kvm/kvm-all.c, kvm_dirty_ring_reaper_thread)."""

Source = tuple[Process, OutgoingMigration]
Destination = tuple[Process, IncomingMigration]


class Sides(msgspec.Struct, frozen=True):
    """The data of one migration: at least one of `source` and `destination` is given.

    `context`: mailboxes and other processes. `peer_ended_ns`: when a destination that never acted ended.
    `collector_loss_ns`: since when records of the collector itself are missing. `peer_loss_ns`: the latest loss of
    records of a process that may be the side that is not given. `trace_ended_ns`: the end of the trace,
    None while it runs. `contested`: another VM may have been the destination. `brief`: without the time line of the
    guest's speed.
    """

    key: str
    context: HostContext
    source: Source | None = None
    destination: Destination | None = None
    peer_ended_ns: int | None = None
    collector_loss_ns: int | None = None
    peer_loss_ns: int | None = None
    trace_ended_ns: int | None = None
    contested: bool = False
    brief: bool = False

    @property
    def internal_error(self) -> tuple[int, str] | None:
        """The time and place of the latest failure of vftrace on an event of one side."""
        sides = [side[0].internal_error for side in (self.source, self.destination) if side]
        return max((error for error in sides if error is not None), default=None)


def build_migration(sides: Sides) -> Migration:
    """Build the migration of the two sides."""
    process, outgoing = sides.source or (None, None)
    peer, incoming = sides.destination or (None, None)
    fds = outgoing.channel_fds(process.peers) if process and outgoing else set()
    save = (
        saved_to(process, outgoing, fds, paired=peer is not None) if process and outgoing else None
    )
    if outgoing is not None and save is not None:
        outgoing.adopt_pause()
    if outgoing is not None and incoming is not None:
        outgoing.adopt_stop(incoming.loaded_at_ns, incoming.running_at_ns)
    devices = device_downtime.gather(process, outgoing, peer, incoming)
    times = checkpoint_times(outgoing, incoming, devices)
    postcopy = incoming is not None and incoming.postcopy_first_ns is not None
    channel = _channel(process, outgoing, fds, postcopy=postcopy)
    load = None
    if peer is not None and incoming is not None and process is None:
        load = loaded_from(peer, incoming, sides.context.processes)
    kind = kind_of(save, load)
    now = sides.context.now_ns if sides.trace_ended_ns is None else _FOREVER
    verdict = decide(facts_of(kind, outgoing, incoming, times, fds, sides.peer_ended_ns, now))
    if verdict.outcome in (Outcome.FAILED, Outcome.CANCELLED):
        verdict = device_verdict(devices, verdict)
    if verdict.outcome is None and sides.trace_ended_ns is not None:
        verdict = Verdict(Outcome.UNKNOWN, Cause.TRACE_ENDED, None)
    started = outgoing.started_at_ns if outgoing else incoming.first_act_ns if incoming else 0
    if outgoing is not None and outgoing.missed_beginning:
        started = min(started, times.get(Checkpoint.VCPUS_STOPPED, started))
    rounds = outgoing.rounds(fds) if outgoing else ()
    main = process or peer
    assert main is not None
    ended = verdict.ended_at_ns
    if ended is not None:
        # Records out of order make the migration incomplete, but must not make a time negative.
        ended = max(ended, started)
    error = sides.internal_error
    if error is not None and (error[0] < started or (ended is not None and error[0] > ended)):
        error = None
    missed_runs = concerning(
        sides.context.missed.between(started, ended),
        sends=outgoing is not None or sides.context.may_send_unseen(started, ended),
        has_rings=outgoing is not None and outgoing.may_have_rings,
    )
    handover = times.get(Checkpoint.STATE_SAVED) or times.get(Checkpoint.VCPUS_RUNNING)
    failed = verdict.outcome in (Outcome.FAILED, Outcome.CANCELLED)
    until = sides.context.now_ns if ended is None else ended
    brownout = _brownout(process, outgoing, peer, incoming, times, rounds, until, brief=sides.brief)
    judged = device_downtime.judge(devices, sides.context, times, handover, ended, failed=failed)
    role: Role = Role.STITCHED if process and peer else Role.SOURCE if process else Role.DESTINATION
    return Migration(
        key=sides.key,
        attempt=outgoing.number if outgoing else 0,
        pid=process.pid if process else main.pid,
        peer_pid=peer.pid if process and peer else None,
        uuid=main.identity.uuid if main.identity else None,
        name=main.identity.name if main.identity else None,
        role=role,
        strategy=judged.strategy,
        strategy_evidence=judged.evidence or _evidence(outgoing, incoming),
        outcome=verdict.outcome,
        cause=verdict.cause,
        was_paused=was_paused(outgoing),
        postcopy=postcopy,
        incomplete=sides.contested
        or error is not None
        or bool(missed_runs)
        or _incomplete(process, peer, started, ended, sides)
        or (outgoing is not None and outgoing.miscounts(fds))
        or (
            (
                bool(judged.vfs)
                or sides.context.has_roles
                # If all messages of a function are lost, no other record shows that it took part.
                or any(_had_function(p, started) for p in (process, peer) if p is not None)
            )
            and sides.context.mailbox_lost(started, ended)
        ),
        missed_beginning=outgoing.missed_beginning if outgoing else False,
        guest_clock_ns=_guest_clock(process, outgoing, incoming),
        started_at_ns=started,
        ended_at_ns=ended,
        phases=phases_of(outgoing, incoming, times, verdict),
        rounds=rounds,
        dirty=replace(
            _dirty(outgoing, rounds, times, until), dma=_dma(devices, outgoing, judged.strategy)
        ),
        channel=channel,
        downtime=replace(downtime_of(times), devices=judged.downtimes),
        stopped_at_ns=times.get(Checkpoint.VCPUS_STOPPED),
        forecast=_forecast(outgoing, rounds, started, times, devices.stop_copy_bytes()),
        cause_detail=verdict.detail,
        calls=calls_of(
            {name: times[name] for name in Checkpoint if name in times},
            _call_sides(process, outgoing, peer, fds),
            None if brownout is None else brownout.stop,
            on_source=incoming is None or Checkpoint.CLOCK_SET not in times,
        ),
        brownout=brownout,
        devices=judged.devices,
        vfs=judged.vfs,
        awaits_device=judged.awaits_device,
        contested=sides.contested,
        stopped_before=_stopped_before(outgoing),
        kind=kind,
        save=save or load,
        throttled=outgoing.throttled if outgoing is not None else False,
        vcpu_pause_ns=outgoing.longest_pause_ns or None if outgoing is not None else None,
        internal_error=None if error is None else error[1],
        loss=sum(
            (p.lost.between(started - BURST_NS, ended) for p in (process, peer) if p is not None),
            Loss(),
        ),
        missed_runs=missed_runs,
    )


def _call_sides(
    process: Process | None,
    outgoing: OutgoingMigration | None,
    peer: Process | None,
    fds: set[int],
) -> Iterator[Side]:
    """Yield both sides' calls, with the parts of their threads (QEMU migration/migration.c: the incoming coroutine
    runs in the main thread)."""
    if process is not None and outgoing is not None:
        parts = dict.fromkeys(process.vcpu_threads, _VCPU_THREAD) | {process.pid: _MAIN_THREAD}
        parts[outgoing.tid] = parts.get(outgoing.tid, "migration thread")
        stopped = {outgoing.stop.tid} if outgoing.stop is not None else set()
        critical = frozenset({outgoing.tid} | stopped)
        channel_fds = frozenset(channel % NEXT_LIFE for channel in fds)
        yield Side("source", process.calls, parts, critical, channel_fds)
    if peer is not None:
        parts = dict.fromkeys(peer.vcpu_threads, _VCPU_THREAD) | {peer.pid: _MAIN_THREAD}
        yield Side("destination", peer.calls, parts, frozenset({peer.pid}))


def _brownout(
    process: Process | None,
    outgoing: OutgoingMigration | None,
    peer: Process | None,
    incoming: IncomingMigration | None,
    times: dict[Checkpoint, int],
    rounds: tuple[Round, ...],
    until: int,
    *,
    brief: bool,
) -> Brownout | None:
    """Return the brownout. On the source the guest runs until the blackout, and again after a failure; on the
    destination it migrates until all pages of postcopy have arrived."""
    stopped, running = times.get(Checkpoint.VCPUS_STOPPED), times.get(Checkpoint.VCPUS_RUNNING)
    sides = []
    if process is not None and outgoing is not None:
        sides.append(Running("source", process.vcpus, outgoing.started_at_ns, stopped or until))
    if peer is not None and incoming is not None and incoming.postcopy_first_ns is not None:
        began = incoming.running_at_ns or running
        if began is not None:
            done = incoming.postcopy_done_ns or until
            sides.append(Running("destination", peer.vcpus, began, done))
    read = times.get(Checkpoint.CLOCK_READ)
    stop = None if stopped is None or read is None else (stopped, read)
    return brownout_of(sides, [round_.at_ns for round_ in rounds], stop, brief=brief)


def _forecast(
    outgoing: OutgoingMigration | None,
    rounds: tuple[Round, ...],
    started: int,
    times: dict[Checkpoint, int],
    device_state_bytes: int | None,
) -> Forecast | None:
    """A forecast, which changes with a sweep, not with each snapshot: what is sent after the latest one is of no
    weight."""
    if outgoing is None or not rounds:
        return None
    last = rounds[-1]
    if len(rounds) > 1:
        last = replace(last, sent_bytes=None, burst_bytes=None, burst_ns=None)
    stopped = times.get(Checkpoint.VCPUS_STOPPED)
    key = rounds[:-1], last, started, stopped, device_state_bytes
    if outgoing.forecast is None or outgoing.forecast[0] != key:
        made = of_migration(rounds, started, stopped, device_state_bytes=device_state_bytes)
        outgoing.forecast = key, made
    return outgoing.forecast[1]


_MAIN_THREAD, _VCPU_THREAD = "main thread", "vCPU thread"


def _had_function(process: Process, started_ns: int) -> bool:
    """Whether a VM has a virtual function, or had one so shortly before that it was unplugged for the migration."""
    since = started_ns - UNPLUG_WINDOW_NS
    return any(
        device.vf is not None and (device.closed_at_ns is None or device.closed_at_ns >= since)
        for device in process.devices.all
    )


def _stopped_before(outgoing: OutgoingMigration | None) -> tuple[int, int] | None:
    before = None if outgoing is None or outgoing.stop is not None else outgoing.stopped_before
    return None if before is None else (before.last_exit_ns, before.enter_ns)


def _guest_clock(
    process: Process | None, outgoing: OutgoingMigration | None, incoming: IncomingMigration | None
) -> int | None:
    """Return the kvmclock that the source read and the destination set, from a side that was seen."""
    if process is not None and outgoing is not None:
        read = process.clock_to_hand_over(outgoing)
        return None if read is None else read.clock or None
    return incoming.guest_clock_ns if incoming is not None else None


def _incomplete(
    process: Process | None, peer: Process | None, started: int, ended: int | None, sides: Sides
) -> bool:
    """Whether a record that matters is missing: one since the beginning, or one of the collector."""
    losses = [p.last_loss_ns for p in (process, peer) if p is not None]
    losses.append(sides.peer_loss_ns)
    if any(loss is not None and loss >= started for loss in losses):
        return True
    if peer is not None and peer.last_loss_ns is not None:
        return True
    if process is not None and process.last_loss_ns is not None:
        # Losses before the beginning matter for how the migration began, and for its devices.
        window = UNPLUG_WINDOW_NS if process.devices.all else BURST_NS
        if process.last_loss_ns >= started - window:
            return True
        if process.devices.uncertain(process.last_loss_ns, started):
            return True
    own = sides.collector_loss_ns
    return own is not None and (ended is None or own <= ended)


def _dirty(
    outgoing: OutgoingMigration | None,
    rounds: tuple[Round, ...],
    times: Mapping[Checkpoint, int],
    until_ns: int,
) -> Dirty:
    if outgoing is None or not (rounds or outgoing.ring):
        return Dirty(None, None, PAGE_SIZE, None)
    # With dirty rings a migration begins without a dirty sync, and a sync without dirty pages makes no request.
    later = [round_.new_pages for round_ in (rounds if outgoing.ring else rounds[1:])]
    if outgoing.ring:
        later.append(outgoing.pages_not_synced())
    known = [pages for pages in later if pages is not None]
    new_pages = sum(known) if len(known) == len(later) else None
    return Dirty(
        new_pages=new_pages,
        distinct_pages=outgoing.distinct_pages(),
        page_size=PAGE_SIZE,
        kvm_pages=new_pages,
        counted_until_ns=_counted_until(outgoing, rounds, times, until_ns),
        vfio_pages=outgoing.dma_pages.get(True),
        iommu_pages=outgoing.dma_pages.get(False),
        ring=outgoing.ring,
    )


def _counted_until(
    outgoing: OutgoingMigration,
    rounds: tuple[Round, ...],
    times: Mapping[Checkpoint, int],
    until_ns: int,
) -> int | None:
    """Return until when all pages of the dirty rings are known; None with bitmaps.

    The VMM empties the rings at each sync, and if they are full; QEMU every second, too. If they are empty it makes no
    request, so a guest that writes nothing more leaves no record of that.
    """
    if not outgoing.ring:
        return None
    collected = max(outgoing.collected_ns or 0, rounds[-1].at_ns if rounds else 0)
    stopped = times.get(Checkpoint.VCPUS_STOPPED)
    if stopped is not None and Checkpoint.STATE_SAVED in times:
        # The last sync was after the stop, with all that the guest had written.
        return max(collected, stopped)
    over = until_ns if stopped is None else min(until_ns, stopped)
    return max(collected, over - REAPER_NS)


def _dma(
    devices: MigrationDevices, outgoing: OutgoingMigration | None, strategy: Strategy
) -> DmaSource | None:
    """Return who reported the pages that devices wrote; None if that is not known yet."""
    if outgoing is None:
        return None
    if True in outgoing.dma_pages:
        return "device"
    if False in outgoing.dma_pages:
        return "iommu"
    if strategy == Strategy.MAILBOX:
        return "guest"
    if not devices.sources:
        return "none"
    process = devices.process
    asked = process is None or process.devices.tracked or process.last_loss_ns is not None
    return None if asked or not outgoing.dirty_syncs else "untracked"


def _channel(
    process: Process | None, outgoing: OutgoingMigration | None, fds: set[int], *, postcopy: bool
) -> ChannelUse:
    if process is None or outgoing is None or not fds:
        return ChannelUse("unknown", None, None, None)
    error = outgoing.error(fds)
    return ChannelUse(
        kind=process.kind_of(fds),
        bytes=outgoing.sent_bytes(fds),
        # in postcopy the pages that are still missing follow the state
        state_bytes=None if postcopy else outgoing.state_bytes(fds),
        error=errno.errorcode.get(-error[1], str(-error[1])) if error else None,
        error_at_ns=error[0] if error else None,
        # all fds of one channel have the same peer; the lowest of them, so that it does not depend on a set's order
        peer=next((peer for fd in sorted(fds) if (peer := process.peers.get(fd))), None),
    )


def _evidence(
    outgoing: OutgoingMigration | None, incoming: IncomingMigration | None
) -> tuple[Evidence, ...]:
    evidence = []
    if outgoing is not None:
        began = "dirty logging on for the largest memslot"
        if not outgoing.switched_on and not outgoing.dirty_syncs:
            began = "guest stopped, its memory is shared with the destination"
        elif not outgoing.switched_on:
            began = "dirty log read by a thread that sends"
        if outgoing.memory_passed:
            began = "another VM set the clock that was read with the stop; memory was not copied"
        evidence.append(Evidence(began, outgoing.started_at_ns))
    if incoming is not None and incoming.clock_set_at_ns is not None:
        evidence.append(Evidence("destination sets its clock", incoming.clock_set_at_ns))
    return tuple(evidence)
