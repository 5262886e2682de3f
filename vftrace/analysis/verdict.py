# SPDX-License-Identifier: MIT
"""Decides how a migration ended, and why: one table, which docs/reference/phases.md shows.

`facts_of` gathers what was seen of both sides; the first rule of the situation's table that fits decides. A
migration to which no rule applies goes on.
"""

import errno
from collections.abc import Callable, Iterator

import msgspec

from vftrace.analysis.devices.downtime import MigrationDevices
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.model.migration import Cause, Checkpoint, Kind, Outcome

MAY_RUN_ON_NS = 1_000_000_000
"""After a failure QEMU lets a stopped guest run on within this time (migration/migration.c,
migration_iteration_finish)."""


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of a migration; `outcome` None while it runs."""

    outcome: Outcome | None
    cause: Cause | None
    ended_at_ns: int | None
    detail: str | None = None


class Facts(msgspec.Struct, frozen=True):
    """The facts that the rules use. Times in ns; None: it did not happen, or was not seen."""

    situation: str
    now_ns: int = 0
    postcopy: bool = False
    destination_acted: bool = False
    """Whether the destination began to load; if not, it only waited."""
    was_paused: bool = False
    """Whether the guest was stopped before the migration and during all of it."""
    state_read: bool = False
    """Whether the source read and sent its state."""
    sent_ns: int | None = None
    """The time of the last send on the channel."""
    error_ns: int | None = None
    """The time of the first failed send that a cancel does not explain."""
    broken: bool = False
    """Whether the last send on the channel failed."""
    resumed_ns: int | None = None
    """When the source's guest ran again after the stop, and precopy did not continue."""
    over_ns: int | None = None
    """When logging was switched off or the migration thread ended, and the source's process continued."""
    source_ended_ns: int | None = None
    loaded_ns: int | None = None
    ran_ns: int | None = None
    """The time of the destination's first vCPU entry."""
    postcopy_done_ns: int | None = None
    destination_ended_ns: int | None = None
    checkpoints_again: bool = False
    """Whether one migration thread read the state more than once."""

    @property
    def stopped_ns(self) -> int | None:
        """When the source ended the migration and its process continued."""
        return self.resumed_ns if self.resumed_ns is not None else self.over_ns

    def destination_ended_by(self, at_ns: int | None) -> bool:
        """Whether the destination ended before a time, or at it."""
        ended = self.destination_ended_ns
        return ended is not None and (at_ns is None or ended <= at_ns)


class Rule(msgspec.Struct, frozen=True):
    """One row of the table: `at` returns the time of the end if the evidence exists, else None."""

    evidence: str
    outcome: Outcome
    cause: Cause | None
    at: Callable[[Facts], int | None]


def _if(condition: bool, at_ns: int | None) -> int | None:
    return at_ns if condition else None


POSTCOPY = "postcopy, both sides seen"
MOVE = "move, source seen"
SAVE = "save"
DESTINATION = "destination alone, and loads"

RULES: dict[str, tuple[Rule, ...]] = {
    POSTCOPY: (
        Rule(
            "the destination runs, and unregistered its memory from userfaultfd: all pages have arrived",
            Outcome.COMPLETED,
            None,
            lambda f: (
                None
                if f.postcopy_done_ns is None or f.ran_ns is None
                else max(f.postcopy_done_ns, f.ran_ns)
            ),
        ),
        Rule(
            "the destination's process ended before all pages arrived",
            Outcome.FAILED,
            Cause.DESTINATION_ENDED,
            lambda f: f.destination_ended_ns,
        ),
        Rule(
            "the source's process ended before all pages arrived",
            Outcome.FAILED,
            Cause.SOURCE_ENDED,
            lambda f: f.source_ended_ns,
        ),
    ),
    MOVE: (
        Rule(
            "one migration thread read the state several times, and the guest ran in between (COLO): "
            "vftrace does not follow it",
            Outcome.UNKNOWN,
            Cause.CHECKPOINTING,
            lambda f: _if(f.checkpoints_again, f.over_ns or f.source_ended_ns),
        ),
        Rule(
            "the guest was paused before the migration, and the destination loaded its state",
            Outcome.COMPLETED,
            None,
            lambda f: _if(f.was_paused and f.resumed_ns is None, f.loaded_ns),
        ),
        Rule(
            "the destination's vCPUs ran, and the source's vCPUs had not run after the stop",
            Outcome.COMPLETED,
            None,
            lambda f: _if(f.resumed_ns is None or (f.ran_ns or 0) <= f.resumed_ns, f.ran_ns),
        ),
        Rule(
            "the destination loaded the whole state, its process ended, then the source's guest ran again",
            Outcome.FAILED,
            Cause.DESTINATION_ENDED,
            lambda f: _if(
                f.loaded_ns is not None and f.destination_ended_by(f.resumed_ns), f.resumed_ns
            ),
        ),
        Rule(
            "a send failed after the destination's process had ended, and the source's process continues",
            Outcome.FAILED,
            Cause.DESTINATION_ENDED,
            lambda f: _if(
                f.error_ns is not None and f.destination_ended_by(f.error_ns), f.stopped_ns
            ),
        ),
        Rule(
            "a send failed and the source's process continues. A send on fd -1 (EBADF) counts: QEMU closes the "
            "channel when its return path breaks, but not after a cancel. EPIPE with a destination "
            "that ended later does not count, because a cancel first shuts the socket down",
            Outcome.FAILED,
            Cause.CHANNEL_ERROR,
            lambda f: _if(f.error_ns is not None, f.stopped_ns),
        ),
        Rule(
            "the source's guest ran again after the stop",
            Outcome.FAILED,
            Cause.RESUMED_AFTER_STOP,
            lambda f: f.resumed_ns,
        ),
        Rule(
            "the source sent its whole state and finished the migration; its guest stays stopped",
            Outcome.COMPLETED,
            None,
            lambda f: _if(
                f.state_read and f.now_ns - (f.over_ns or f.now_ns) >= MAY_RUN_ON_NS,
                f.sent_ns or f.over_ns,
            ),
        ),
        Rule(
            "the VMM switched logging off or the migration thread ended, and the source had not read its state",
            Outcome.CANCELLED,
            Cause.CANCELLED,
            lambda f: _if(not f.state_read, f.over_ns),
        ),
        Rule(
            "the destination's process ended, and the source's process had not ended",
            Outcome.FAILED,
            Cause.DESTINATION_ENDED,
            lambda f: _if(
                f.destination_acted
                and f.over_ns is None
                and f.destination_ended_by(f.source_ended_ns),
                f.destination_ended_ns,
            ),
        ),
        Rule(
            "the last send failed, then the source's process ended (postcopy whose destination died)",
            Outcome.FAILED,
            Cause.CHANNEL_ERROR,
            lambda f: _if(f.loaded_ns is None and f.broken, f.source_ended_ns),
        ),
        Rule(
            "the source sent its whole state or the destination loaded it, then the source's process ended",
            Outcome.COMPLETED,
            None,
            lambda f: _if(f.loaded_ns is not None or f.state_read, f.source_ended_ns),
        ),
        Rule(
            "the source's process ended before it had sent its state",
            Outcome.FAILED,
            Cause.SOURCE_ENDED,
            lambda f: f.source_ended_ns,
        ),
    ),
    SAVE: (
        Rule(
            "a write failed",
            Outcome.FAILED,
            Cause.CHANNEL_ERROR,
            lambda f: f.error_ns,
        ),
        Rule(
            "the VMM read and wrote the state and finished the save, whatever it does then",
            Outcome.COMPLETED,
            None,
            lambda f: _if(
                f.state_read and (f.stopped_ns is not None or f.source_ended_ns is not None),
                f.sent_ns,
            ),
        ),
        Rule(
            "the process ended before the VMM read the state",
            Outcome.FAILED,
            Cause.SOURCE_ENDED,
            lambda f: _if(f.over_ns is None, f.source_ended_ns),
        ),
        Rule(
            "the save ended before the VMM read the state",
            Outcome.CANCELLED,
            Cause.CANCELLED,
            lambda f: f.stopped_ns,
        ),
    ),
    DESTINATION: (
        Rule(
            "its process ended in postcopy, before all pages arrived",
            Outcome.FAILED,
            Cause.DESTINATION_ENDED,
            lambda f: _if(f.postcopy and f.postcopy_done_ns is None, f.destination_ended_ns),
        ),
        Rule(
            "its vCPUs run, and in postcopy all pages have arrived",
            Outcome.COMPLETED,
            None,
            lambda f: _if(
                not f.postcopy or f.postcopy_done_ns is not None, f.postcopy_done_ns or f.ran_ns
            ),
        ),
        Rule(
            "its process ended before its vCPUs ran",
            Outcome.FAILED,
            Cause.DESTINATION_ENDED,
            lambda f: f.destination_ended_ns,
        ),
    ),
}


def decide(facts: Facts) -> Verdict:
    """Return the result of the first rule of the situation that applies."""
    for rule in RULES[facts.situation]:
        at_ns = rule.at(facts)
        if at_ns is not None:
            return Verdict(rule.outcome, rule.cause, at_ns)
    return Verdict(None, None, None)


def table_lines() -> Iterator[str]:
    """The rules as a Markdown table, as docs/reference/phases.md shows it."""
    yield "| situation | evidence, the first that fits | outcome | cause |"
    yield "|---|---|---|---|"
    for situation, rules in RULES.items():
        for rule in rules:
            cause = f"`{rule.cause}`" if rule.cause is not None else ""
            yield f"| {situation} | {rule.evidence} | {rule.outcome} | {cause} |"


def facts_of(
    kind: Kind,
    outgoing: OutgoingMigration | None,
    incoming: IncomingMigration | None,
    times: dict[Checkpoint, int],
    fds: set[int],
    peer_ended_ns: int | None,
    now_ns: int,
) -> Facts:
    """Return the facts of both sides."""
    postcopy = incoming is not None and incoming.postcopy_first_ns is not None
    ended = incoming.ended_at_ns if incoming else None
    ran = incoming.running_at_ns if incoming else None
    done = incoming.postcopy_done_ns if incoming and postcopy else None
    if outgoing is None:
        return Facts(
            situation=DESTINATION,
            now_ns=now_ns,
            postcopy=postcopy,
            ran_ns=ran,
            postcopy_done_ns=done if incoming and (ran or incoming.ran_before) else None,
            destination_ended_ns=ended,
        )
    error = _failure(outgoing, fds, ended if ended is not None else peer_ended_ns)
    resumed = _resumed_ns(outgoing)
    return Facts(
        situation=SAVE if kind == Kind.SAVE else POSTCOPY if postcopy and not resumed else MOVE,
        now_ns=now_ns,
        postcopy=postcopy,
        destination_acted=incoming is not None,
        was_paused=bool(was_paused(outgoing)),
        state_read=_state_read(outgoing, fds),
        sent_ns=outgoing.last_sent_ns(fds),
        error_ns=error,
        broken=_broken(outgoing, fds),
        resumed_ns=resumed,
        over_ns=outgoing.over_at_ns,
        source_ended_ns=outgoing.process_ended_at_ns,
        loaded_ns=times.get(Checkpoint.DEVICES_LOADED) or _loaded_ns(outgoing, incoming),
        ran_ns=ran,
        postcopy_done_ns=done,
        destination_ended_ns=ended if ended is not None else peer_ended_ns,
        checkpoints_again=outgoing.saves > 1,
    )


def _loaded_ns(outgoing: OutgoingMigration, incoming: IncomingMigration | None) -> int | None:
    """Return when the destination had loaded the state that the source saved, whatever the source did then."""
    if incoming is None or incoming.loaded_at_ns is None or outgoing.saved is None:
        return None
    return incoming.loaded_at_ns if incoming.loaded_at_ns >= outgoing.saved.enter_ns else None


def _resumed_ns(outgoing: OutgoingMigration) -> int | None:
    """Return when the source's guest ran again after the stop; None if precopy continued, after a stop by a user."""
    resumed = outgoing.resumed_at_ns
    if resumed is None or outgoing.stop is None:
        return None
    syncs_after = bool(outgoing.dirty_syncs) and outgoing.dirty_syncs[-1].start_ns > resumed
    return None if syncs_after and not outgoing.ended else resumed


def _failure(
    outgoing: OutgoingMigration, fds: set[int], destination_ended_ns: int | None
) -> int | None:
    """Return when a send failed, if that means a failure.

    A cancel shuts the socket down (QEMU migrate_fd_cancel), which gives the source EPIPE first and ends
    the destination afterwards; a destination that died ended before the error.
    """
    error = outgoing.error(fds)
    if error is None:
        return None
    at_ns, number = error
    ended_later = destination_ended_ns is not None and destination_ended_ns > at_ns
    return None if ended_later and number == -errno.EPIPE else at_ns


def _broken(outgoing: OutgoingMigration, fds: set[int]) -> bool:
    """Whether the last send of the migration thread failed. Postcopy continues after a failure, on another channel
    (QEMU migrate-recover)."""
    tried = fds | (outgoing.by_thread.keys() - outgoing.by_main)
    sent = [outgoing.channels[fd] for fd in tried if fd in outgoing.channels]
    last = max(sent, key=lambda channel: channel.last_ns, default=None)
    if last is None or (outgoing.closed_fd_ns or 0) > last.last_ns:
        return outgoing.closed_fd_ns is not None
    return bool(last.error) and last.error_ns == last.last_ns


def was_paused(outgoing: OutgoingMigration | None) -> bool | None:
    """Whether the guest was stopped before the migration began.

    No clock is read in the blackout of such a guest, because nothing has to be stopped.
    """
    if outgoing is None:
        return None
    if outgoing.stop is not None or outgoing.last_run_ns is not None:
        return False
    return outgoing.paused_before


def _state_read(outgoing: OutgoingMigration, fds: set[int]) -> bool:
    """Whether the source read its state to the end: the second clock read.

    QEMU does not read the clock again if a monitor stopped the guest (hw/i386/kvm/clock.c, kvmclock_pre_save),
    and some VMMs never do. No page becomes dirty then: the dirty logs are read once more only after all pages were
    sent, and the bytes sent after that are the state.
    """
    if outgoing.saved is not None:
        return True
    rounds = outgoing.rounds(fds)
    if len(rounds) < 2 or not rounds[-1].sent_bytes:
        return False
    if was_paused(outgoing):
        return True
    if outgoing.stop is None or outgoing.final_sync() is None:
        return False
    by_monitor = outgoing.stop.tid != outgoing.tid
    return not outgoing.reads_clock_twice or (by_monitor and rounds[-1].new_pages == 0)


def device_verdict(devices: MigrationDevices, verdict: Verdict) -> Verdict:
    """Return the verdict that a device caused: it refused a state or failed before the end."""
    until = verdict.ended_at_ns or 0
    found = devices.trouble(until)
    if found is None:
        return verdict
    device, trouble = found
    reset = ", then reset" if device.reset_after(trouble.at_ns) else ""
    cause: Cause = Cause.DEVICE_REFUSED if trouble.refused else Cause.DEVICE_FAILED
    detail = f"{device.label}: {trouble.what}, {trouble.ret}{reset}"
    return Verdict(Outcome.FAILED, cause, verdict.ended_at_ns, detail)
