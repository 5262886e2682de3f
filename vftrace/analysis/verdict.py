"""Decides how a migration ended, and why."""

import errno
from dataclasses import dataclass

from vftrace.analysis.devices.downtime import MigrationDevices
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.model.migration import Cause, Checkpoint, Outcome


@dataclass(frozen=True)
class Verdict:
    """How it ended: `outcome` None while it runs."""

    outcome: Outcome | None
    cause: Cause | None
    ended_at_ns: int | None
    detail: str | None = None


def verdict_of(
    outgoing: OutgoingMigration | None,
    incoming: IncomingMigration | None,
    times: dict[Checkpoint, int],
    fds: set[int],
    peer_ended_ns: int | None,
) -> Verdict:
    """How the migration that these sides show ended."""
    if outgoing is None:
        return _destination_verdict(incoming)
    ran = incoming.running_at_ns if incoming else None
    if outgoing.resumed_at_ns is not None and outgoing.stop is not None:
        return _resumed_verdict(outgoing, incoming, fds, peer_ended_ns)
    if outgoing.logging_off_at_ns is not None:
        return _switched_off_verdict(outgoing, incoming, fds, peer_ended_ns)
    if incoming is not None and incoming.postcopy_first_ns is not None:
        return _postcopy_verdict(outgoing, incoming)
    if ran is not None:
        return Verdict(Outcome.COMPLETED, None, ran)
    ended = outgoing.process_ended_at_ns
    loaded = times.get(Checkpoint.DEVICES_LOADED)
    if loaded is not None and was_paused(outgoing):
        return Verdict(Outcome.COMPLETED, None, loaded)
    gone = incoming.ended_at_ns if incoming else None
    if gone is not None and (ended is None or gone <= ended):
        return Verdict(Outcome.FAILED, Cause.DESTINATION_ENDED, gone)
    if ended is not None:
        if loaded is not None or _state_read(outgoing, fds):
            return Verdict(Outcome.COMPLETED, None, ended)
        return Verdict(Outcome.FAILED, Cause.SOURCE_ENDED, ended)
    return Verdict(None, None, None)


def _destination_verdict(incoming: IncomingMigration | None) -> Verdict:
    assert incoming is not None
    if incoming.running_at_ns is not None:
        if incoming.postcopy_first_ns is not None and incoming.postcopy_done_ns is None:
            if incoming.ended_at_ns is not None:
                return Verdict(Outcome.FAILED, Cause.DESTINATION_ENDED, incoming.ended_at_ns)
            return Verdict(None, None, None)
        return Verdict(Outcome.COMPLETED, None, incoming.postcopy_done_ns or incoming.running_at_ns)
    if incoming.ended_at_ns is not None:
        return Verdict(Outcome.FAILED, Cause.DESTINATION_ENDED, incoming.ended_at_ns)
    return Verdict(None, None, None)


def _postcopy_verdict(outgoing: OutgoingMigration, incoming: IncomingMigration) -> Verdict:
    if incoming.postcopy_done_ns is not None and incoming.running_at_ns is not None:
        return Verdict(
            Outcome.COMPLETED, None, max(incoming.postcopy_done_ns, incoming.running_at_ns)
        )
    if incoming.ended_at_ns is not None:
        return Verdict(Outcome.FAILED, Cause.DESTINATION_ENDED, incoming.ended_at_ns)
    if outgoing.process_ended_at_ns is not None:
        return Verdict(Outcome.FAILED, Cause.SOURCE_ENDED, outgoing.process_ended_at_ns)
    return Verdict(None, None, None)


def _resumed_verdict(
    outgoing: OutgoingMigration,
    incoming: IncomingMigration | None,
    fds: set[int],
    peer_ended_ns: int | None,
) -> Verdict:
    assert outgoing.resumed_at_ns is not None
    syncs_after = any(sweep.start_ns > outgoing.resumed_at_ns for sweep in outgoing.dirty_syncs)
    if not outgoing.ended and syncs_after:
        return Verdict(None, None, None)
    cause = _channel_cause(outgoing, incoming, fds, peer_ended_ns)
    return Verdict(Outcome.FAILED, cause or Cause.RESUMED_AFTER_STOP, outgoing.resumed_at_ns)


def _switched_off_verdict(
    outgoing: OutgoingMigration,
    incoming: IncomingMigration | None,
    fds: set[int],
    peer_ended_ns: int | None,
) -> Verdict:
    at = outgoing.logging_off_at_ns
    cause = _channel_cause(outgoing, incoming, fds, peer_ended_ns)
    if cause is not None:
        return Verdict(Outcome.FAILED, cause, at)
    return Verdict(Outcome.CANCELLED, Cause.CANCELLED, at)


def _channel_cause(
    outgoing: OutgoingMigration,
    incoming: IncomingMigration | None,
    fds: set[int],
    peer_ended_ns: int | None,
) -> Cause | None:
    """What an error of the migration channel says; None if there was none that means a failure.

    A cancel shuts the socket down (QEMU migrate_fd_cancel), which gives the source EPIPE first and ends
    the destination afterwards; a destination that died ended before the error.
    """
    error = outgoing.error(fds)
    if error is None:
        return None
    at, number = error
    ended = incoming.ended_at_ns if incoming and incoming.ended_at_ns else peer_ended_ns
    if ended is not None and ended <= at:
        return Cause.DESTINATION_ENDED
    if ended is not None and number == -errno.EPIPE:
        return None
    return Cause.CHANNEL_ERROR


def was_paused(outgoing: OutgoingMigration | None) -> bool | None:
    """Whether the guest was stopped before the migration began.

    No clock is read in the blackout of such a guest, because nothing has to be stopped.
    """
    if outgoing is None:
        return None
    if outgoing.stop is not None or outgoing.last_run_ns is not None:
        return False
    return outgoing.paused_before


def file_verdict(outgoing: OutgoingMigration, verdict: Verdict, fds: set[int]) -> Verdict:
    """A file holds all of it with the last byte after the state was read, whatever the VM does then."""
    if verdict.outcome is None or not _state_read(outgoing, fds) or outgoing.error(fds) is not None:
        return verdict
    return Verdict(Outcome.COMPLETED, None, max(outgoing.channels[fd].last_ns for fd in fds))


def _state_read(outgoing: OutgoingMigration, fds: set[int]) -> bool:
    """Whether the source read its state to the end: the second clock read.

    Of a guest that was paused before no clock is read (hw/i386/kvm/clock.c, kvmclock_pre_save). Nothing of it
    becomes dirty: it is swept again only when all was sent, and what is sent then is the state.
    """
    if outgoing.saved is not None:
        return True
    rounds = outgoing.rounds(fds)
    return bool(was_paused(outgoing)) and len(rounds) > 1 and bool(rounds[-1].sent_bytes)


def device_verdict(devices: MigrationDevices, verdict: Verdict) -> Verdict:
    """What a device refused or failed at before the end is the cause of it."""
    until = verdict.ended_at_ns or 0
    found = devices.trouble(until)
    if found is None:
        return verdict
    device, trouble = found
    reset = ", then reset" if device.reset_after(trouble.at_ns) else ""
    cause: Cause = Cause.DEVICE_REFUSED if trouble.refused else Cause.DEVICE_FAILED
    detail = f"{device.label}: {trouble.what}, {trouble.ret}{reset}"
    return Verdict(Outcome.FAILED, cause, verdict.ended_at_ns, detail)
