"""From what was gathered to one immutable Migration: outcome, phases, checkpoints."""

import errno
from dataclasses import dataclass, replace

from vftrace.analysis.devices import downtime as passthrough
from vftrace.analysis.devices.downtime import Passthrough
from vftrace.analysis.devices.mailbox_evidence import Around
from vftrace.analysis.devices.strategy import UNPLUG_WINDOW_NS
from vftrace.analysis.forecast.precopy import of_migration
from vftrace.analysis.outgoing import Session
from vftrace.analysis.process import BURST_NS, PAGE_SIZE, Arrival, Process
from vftrace.model.migration import (
    CHECKPOINTS,
    Cause,
    ChannelUse,
    Checkpoint,
    Dirty,
    DmaSource,
    Downtime,
    Evidence,
    Migration,
    Outcome,
    Phase,
    Role,
    Round,
    Strategy,
)

Source = tuple[Process, Session]
Destination = tuple[Process, Arrival]


@dataclass(frozen=True)
class Verdict:
    """How it ended: `outcome` None while it runs."""

    outcome: Outcome | None
    cause: Cause | None
    ended_at_ns: int | None
    detail: str | None = None


def build_migration(
    source: Source | None,
    destination: Destination | None,
    peer_ended_ns: int | None,
    key: str,
    around: Around,
    doubt_ns: int | None,
    peer_doubt_ns: int | None,
    trace_ended_ns: int | None,
) -> Migration:
    """One migration from either side or both. At least one of `source` and `destination` is given.

    `around`: mailboxes and other processes. `peer_ended_ns`: when a destination that never
    acted ended. `doubt_ns`: since when records of the collector itself are missing. `peer_doubt_ns`: when
    records went missing, latest, of whoever may be the side that is not given. `trace_ended_ns`: the end of
    the trace, None while it goes on.
    """
    process, session = source if source else (None, None)
    peer, arrival = destination if destination else (None, None)
    fds = session.channel_fds(process.peers) if process and session else set()
    devices = passthrough.gather(process, session, peer, arrival)
    times = _times(session, arrival, devices)
    postcopy = arrival is not None and arrival.postcopy_first_ns is not None
    channel = _channel(process, session, fds, postcopy=postcopy)
    verdict = _verdict(session, arrival, times, fds, peer_ended_ns)
    if channel.kind == "file" and session is not None:
        verdict = _file_verdict(session, verdict, fds)
    if verdict.outcome in ("failed", "cancelled"):
        verdict = _device_verdict(devices, verdict)
    if verdict.outcome is None and trace_ended_ns is not None:
        verdict = Verdict("unknown", "trace-ended", None)
    started = session.started_at_ns if session else arrival.first_act_ns if arrival else 0
    if session is not None and session.missed_beginning:
        started = min(started, times.get("vcpus-stopped", started))
    rounds = session.rounds(fds) if session else ()
    main = process or peer
    assert main is not None
    ended = verdict.ended_at_ns
    if ended is not None:
        # Records that came out of order (so it is incomplete) must not make a time negative.
        ended = max(ended, started)
    handover = times.get("state-saved") or times.get("vcpus-running")
    nothing = verdict.outcome in ("failed", "cancelled")
    judged = passthrough.judge(devices, around, times, handover, ended, came_to_nothing=nothing)
    role: Role = "stitched" if source and destination else "source" if source else "destination"
    return Migration(
        key=key,
        attempt=session.number if session else 0,
        pid=process.pid if process else main.pid,
        peer_pid=peer.pid if process and peer else None,
        uuid=main.identity.uuid if main.identity else None,
        name=main.identity.name if main.identity else None,
        role=role,
        strategy=judged.strategy,
        strategy_evidence=judged.evidence or _evidence(session, arrival),
        outcome=verdict.outcome,
        cause=verdict.cause,
        was_paused=_was_paused(session),
        postcopy=postcopy,
        incomplete=_incomplete(process, peer, started, ended, doubt_ns, peer_doubt_ns)
        or (session is not None and session.miscounts(fds)),
        missed_beginning=session.missed_beginning if session else False,
        guest_clock_ns=_guest_clock(session, arrival),
        started_at_ns=started,
        ended_at_ns=ended,
        phases=_phases(session, arrival, times, verdict),
        rounds=rounds,
        dirty=replace(_dirty(session, rounds), dma=_dma(devices, session, judged.strategy)),
        channel=channel,
        downtime=replace(downtime_of(times), devices=judged.downtimes),
        stopped_at_ns=times.get("vcpus-stopped"),
        forecast=of_migration(
            rounds,
            started,
            times.get("vcpus-stopped"),
            ended=verdict.outcome is not None,
            device_state_bytes=devices.stop_copy_bytes(),
        ),
        cause_detail=verdict.detail,
        devices=judged.devices,
        vfs=judged.vfs,
        awaits_device=judged.awaits_device,
    )


def _file_verdict(session: Session, verdict: Verdict, fds: set[int]) -> Verdict:
    """A file holds all of it with the last byte after the state was read, whatever the VM does then."""
    if verdict.outcome is None or not _state_read(session, fds) or session.error(fds) is not None:
        return verdict
    return Verdict("completed", None, max(session.channels[fd].last_ns for fd in fds))


def _state_read(session: Session, fds: set[int]) -> bool:
    """Whether the source read its state to the end: the second clock read.

    Of a guest that was paused before no clock is read (hw/i386/kvm/clock.c, kvmclock_pre_save). Nothing of it
    becomes dirty: it is swept again only when all was sent, and what is sent then is the state.
    """
    if session.saved is not None:
        return True
    rounds = session.rounds(fds)
    return bool(_was_paused(session)) and len(rounds) > 1 and bool(rounds[-1].sent_bytes)


def _device_verdict(devices: Passthrough, verdict: Verdict) -> Verdict:
    """What a device refused or failed at before the end is the cause of it."""
    until = verdict.ended_at_ns or 0
    found = devices.trouble(until)
    if found is None:
        return verdict
    device, trouble = found
    reset = ", then reset" if device.reset_after(trouble.at_ns) else ""
    cause: Cause = "device-refused" if trouble.refused else "device-failed"
    detail = f"{device.label}: {trouble.what}, {trouble.ret}{reset}"
    return Verdict("failed", cause, verdict.ended_at_ns, detail)


def _guest_clock(session: Session | None, arrival: Arrival | None) -> int | None:
    """The kvmclock that went from one side to the other, from the side that is seen."""
    if session is not None:
        return session.saved.clock or None if session.saved is not None else None
    return arrival.guest_clock_ns if arrival is not None else None


def _times(
    session: Session | None, arrival: Arrival | None, devices: Passthrough
) -> dict[str, int]:
    """The checkpoints that were passed. A time before that of an earlier one is not believed."""
    times: dict[str, int] = {}
    if session is not None and session.stop is not None:
        times["vcpus-stopped"] = session.stop.last_exit_ns
        times["clock-read"] = session.stop.enter_ns
        sweep = session.final_sweep()
        if sweep is not None:
            times["final-sync-done"] = sweep.end_ns
        if session.saved is not None:
            times["state-saved"] = session.saved.enter_ns
    resumed = session.resumed_at_ns if session else None
    if resumed is not None:
        times["vcpus-running"] = resumed
    elif arrival is not None:
        loaded_after = times.get("state-saved", times.get("final-sync-done", 0))
        if arrival.loaded_at_ns is not None and arrival.loaded_at_ns >= loaded_after:
            times["devices-loaded"] = arrival.loaded_at_ns
        if arrival.clock_set_at_ns is not None:
            if arrival.started_paused and "devices-loaded" in times:
                times["held"] = arrival.clock_asked_at_ns or arrival.clock_set_at_ns
            times["clock-set"] = arrival.clock_set_at_ns
        if arrival.running_at_ns is not None:
            times["vcpus-running"] = arrival.running_at_ns
    times |= devices.checkpoints(times, arrival)
    believed: dict[str, int] = {}
    latest = 0
    for name in CHECKPOINTS:
        if name in times and times[name] >= latest:
            latest = believed[name] = times[name]
    return believed


def _verdict(
    session: Session | None,
    arrival: Arrival | None,
    times: dict[str, int],
    fds: set[int],
    peer_ended_ns: int | None,
) -> Verdict:
    if session is None:
        return _destination_verdict(arrival)
    ran = arrival.running_at_ns if arrival else None
    if session.resumed_at_ns is not None and session.stop is not None:
        return _resumed_verdict(session, arrival, fds, peer_ended_ns)
    if session.logging_off_at_ns is not None:
        return _switched_off_verdict(session, arrival, fds, peer_ended_ns)
    if arrival is not None and arrival.postcopy_first_ns is not None:
        return _postcopy_verdict(session, arrival)
    if ran is not None:
        return Verdict("completed", None, ran)
    ended = session.process_ended_at_ns
    loaded = times.get("devices-loaded")
    if loaded is not None and _was_paused(session):
        return Verdict("completed", None, loaded)
    gone = arrival.ended_at_ns if arrival else None
    if gone is not None and (ended is None or gone <= ended):
        return Verdict("failed", "destination-ended", gone)
    if ended is not None:
        if loaded is not None or _state_read(session, fds):
            return Verdict("completed", None, ended)
        return Verdict("failed", "source-ended", ended)
    return Verdict(None, None, None)


def _destination_verdict(arrival: Arrival | None) -> Verdict:
    assert arrival is not None
    if arrival.running_at_ns is not None:
        if arrival.postcopy_first_ns is not None and arrival.postcopy_done_ns is None:
            if arrival.ended_at_ns is not None:
                return Verdict("failed", "destination-ended", arrival.ended_at_ns)
            return Verdict(None, None, None)
        return Verdict("completed", None, arrival.postcopy_done_ns or arrival.running_at_ns)
    if arrival.ended_at_ns is not None:
        return Verdict("failed", "destination-ended", arrival.ended_at_ns)
    return Verdict(None, None, None)


def _postcopy_verdict(session: Session, arrival: Arrival) -> Verdict:
    if arrival.postcopy_done_ns is not None and arrival.running_at_ns is not None:
        return Verdict("completed", None, max(arrival.postcopy_done_ns, arrival.running_at_ns))
    if arrival.ended_at_ns is not None:
        return Verdict("failed", "destination-ended", arrival.ended_at_ns)
    if session.process_ended_at_ns is not None:
        return Verdict("failed", "source-ended", session.process_ended_at_ns)
    return Verdict(None, None, None)


def _resumed_verdict(
    session: Session, arrival: Arrival | None, fds: set[int], peer_ended_ns: int | None
) -> Verdict:
    assert session.resumed_at_ns is not None
    sweeps_after = any(sweep.start_ns > session.resumed_at_ns for sweep in session.sweeps)
    if not session.ended and sweeps_after:
        return Verdict(None, None, None)
    cause = _channel_cause(session, arrival, fds, peer_ended_ns)
    return Verdict("failed", cause or "resumed-after-stop", session.resumed_at_ns)


def _switched_off_verdict(
    session: Session, arrival: Arrival | None, fds: set[int], peer_ended_ns: int | None
) -> Verdict:
    at = session.logging_off_at_ns
    cause = _channel_cause(session, arrival, fds, peer_ended_ns)
    if cause is not None:
        return Verdict("failed", cause, at)
    return Verdict("cancelled", "cancelled", at)


def _channel_cause(
    session: Session, arrival: Arrival | None, fds: set[int], peer_ended_ns: int | None
) -> Cause | None:
    """What an error of the migration channel says; None if there was none that means a failure.

    A cancel shuts the socket down (QEMU migrate_fd_cancel), which gives the source EPIPE first and ends
    the destination afterwards; a destination that died ended before the error.
    """
    error = session.error(fds)
    if error is None:
        return None
    at, number = error
    ended = arrival.ended_at_ns if arrival and arrival.ended_at_ns else peer_ended_ns
    if ended is not None and ended <= at:
        return "destination-ended"
    if ended is not None and number == -errno.EPIPE:
        return None
    return "channel-error"


def _was_paused(session: Session | None) -> bool | None:
    """Whether the guest was stopped before the migration began.

    No clock is read in the blackout of such a guest, because nothing has to be stopped.
    """
    if session is None:
        return None
    if session.stop is not None or session.last_run_ns is not None:
        return False
    return session.paused_before


def _incomplete(
    process: Process | None,
    peer: Process | None,
    started: int,
    ended: int | None,
    own_doubt_ns: int | None,
    peer_doubt_ns: int | None,
) -> bool:
    """Whether a record that could matter is missing: since it began, or among the collector's own."""
    doubts = [p.doubt_ns for p in (process, peer) if p is not None] + [peer_doubt_ns]
    if any(doubt is not None and doubt >= started for doubt in doubts):
        return True
    if peer is not None and peer.doubt_ns is not None:
        return True
    if process is not None and process.doubt_ns is not None:
        # Lost before it began, and still of weight: how it began, and what its devices did.
        window = UNPLUG_WINDOW_NS if process.devices.all else BURST_NS
        if process.doubt_ns >= started - window:
            return True
        if process.devices.uncertain(process.doubt_ns, started):
            return True
    return own_doubt_ns is not None and (ended is None or own_doubt_ns <= ended)


def _phases(
    session: Session | None, arrival: Arrival | None, times: dict[str, int], verdict: Verdict
) -> tuple[Phase, ...]:
    phases: list[Phase] = []
    if session is not None:
        phases += _source_phases(session, arrival, times, verdict)
    if arrival is not None:
        phases += _destination_phases(session, arrival, times)
    return tuple(phases)


def _chain(role: str, marks: list[tuple[str, int | None]], end: int | None) -> list[Phase]:
    """Phases that follow each other: each begins at its mark and ends at the next one that is known.

    A mark before an earlier one is not believed.
    """
    known: list[tuple[str, int]] = []
    for name, at in marks:
        if at is not None and (not known or at >= known[-1][1]):
            known.append((name, at))
    phases = []
    for index, (name, at) in enumerate(known):
        until = known[index + 1][1] if index + 1 < len(known) else end
        if until is None or until >= at:
            phases.append(Phase(name, role, at, until))
    return phases


def _source_phases(
    session: Session, arrival: Arrival | None, times: dict[str, int], verdict: Verdict
) -> list[Phase]:
    first = session.sweeps[0].end_ns if session.sweeps else None
    resumed = session.resumed_at_ns
    ran = arrival.running_at_ns if arrival and resumed is None else None
    end = session.process_ended_at_ns or session.logging_off_at_ns
    cleanup = resumed or ran or (session.logging_off_at_ns if not session.stop else None)
    marks: list[tuple[str, int | None]] = [
        ("setup", session.started_at_ns),
        ("precopy", first),
        ("stop", times.get("vcpus-stopped")),
        ("final-sync", times.get("clock-read")),
        ("device-save", times.get("final-sync-done")),
        ("handover", times.get("state-saved")),
    ]
    postcopy_end = None
    if arrival is not None and arrival.postcopy_first_ns is not None and ran is not None:
        marks.append(("postcopy", ran))
        postcopy_end = arrival.postcopy_done_ns
        marks.append(("cleanup", postcopy_end))
    else:
        marks.append(("cleanup", cleanup))
    if end is None and verdict.outcome in ("failed", "cancelled"):
        end = verdict.ended_at_ns
    return _chain("source", marks, end)


def _destination_phases(
    session: Session | None, arrival: Arrival, times: dict[str, int]
) -> list[Phase]:
    resumed = session.resumed_at_ns if session else None
    running = arrival.running_at_ns if resumed is None else None
    postcopy = arrival.postcopy_first_ns is not None and running is not None
    incoming = session.started_at_ns if session else arrival.first_act_ns
    marks: list[tuple[str, int | None]] = [
        ("incoming", incoming),
        ("device-load", times.get("state-saved") if session else arrival.loaded_at_ns),
        ("resume", times.get("devices-loaded") or arrival.clock_set_at_ns),
    ]
    if postcopy:
        marks += [("postcopy", running), ("running", arrival.postcopy_done_ns)]
    else:
        marks.append(("running", running))
    return _chain("destination", marks, arrival.ended_at_ns)


def downtime_of(times: dict[str, int]) -> Downtime:
    """The blackout of these checkpoints, by name: CLOCK_BOOTTIME nanoseconds, in CHECKPOINTS' order."""
    checkpoints = []
    before = times.get("vcpus-stopped")
    for name in CHECKPOINTS:
        at = times.get(name)
        ns = None
        if at is not None and before is not None:
            ns, before = at - before, at
        checkpoints.append(Checkpoint(name, at, ns))
    started, ended = times.get("vcpus-stopped"), times.get("vcpus-running")
    vcpu_ns = ended - started if started is not None and ended is not None else None
    longest = max((c for c in checkpoints if c.ns), key=lambda c: c.ns or 0, default=None)
    return Downtime(
        vcpu_ns=vcpu_ns,
        set_by=longest.name if longest and vcpu_ns is not None else None,
        checkpoints=tuple(checkpoints),
    )


def _dirty(session: Session | None, rounds: tuple[Round, ...]) -> Dirty:
    if session is None or not rounds:
        return Dirty(None, None, None, PAGE_SIZE, None)
    # With rings no sweep is needed to begin with, and a sync that finds nothing makes none.
    later = [round_.new_pages for round_ in (rounds if session.ring else rounds[1:])]
    known = [pages for pages in later if pages is not None]
    new_pages = sum(known) if len(known) == len(later) else None
    return Dirty(
        new_pages=new_pages,
        distinct_pages=session.distinct_pages(),
        rate_bytes_per_second=_rate(rounds),
        page_size=PAGE_SIZE,
        kvm_pages=new_pages,
        vfio_pages=session.dma_pages.get(True),
        iommu_pages=session.dma_pages.get(False),
    )


def _dma(devices: Passthrough, session: Session | None, strategy: Strategy) -> DmaSource | None:
    """Who told which pages devices wrote."""
    if session is None:
        return None
    if True in session.dma_pages:
        return "device"
    if False in session.dma_pages:
        return "iommu"
    if strategy == "mailbox":
        return "guest"
    return None if devices.sources else "none"


def _rate(rounds: tuple[Round, ...]) -> float | None:
    """New pages of the last round whose pages are known, per time since the sweep before it."""
    for before, round_ in zip(rounds[-2::-1], rounds[:0:-1], strict=False):
        ns = round_.at_ns - before.at_ns
        if round_.new_pages is not None and ns > 0:
            return round_.new_pages * PAGE_SIZE * 1e9 / ns
    return None


def _channel(
    process: Process | None, session: Session | None, fds: set[int], *, postcopy: bool
) -> ChannelUse:
    if process is None or session is None or not fds:
        return ChannelUse("unknown", None, None, None)
    error = session.error(fds)
    return ChannelUse(
        kind=process.kind_of(fds),
        bytes=session.sent_bytes(fds),
        # in postcopy the pages that are still missing follow the state
        state_bytes=None if postcopy else session.state_bytes(fds),
        error=errno.errorcode.get(-error[1], str(-error[1])) if error else None,
        error_at_ns=error[0] if error else None,
    )


def _evidence(session: Session | None, arrival: Arrival | None) -> tuple[Evidence, ...]:
    evidence = []
    if session is not None:
        began = "dirty logging on for the largest memslot"
        if session.missed_beginning:
            began = "dirty log read by a thread that sends"
        evidence.append(Evidence(began, session.started_at_ns))
    if arrival is not None and arrival.clock_set_at_ns is not None:
        evidence.append(Evidence("destination sets its clock", arrival.clock_set_at_ns))
    return tuple(evidence)
