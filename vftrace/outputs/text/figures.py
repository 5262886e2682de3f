"""Figures of a migration that still runs, made from a snapshot and the time now."""

from dataclasses import dataclass

from vftrace.model.migration import Checkpoint, Migration, PhaseSpan, Role, Round
from vftrace.units import format_bytes

_SETTLED_NS = 300_000_000
"""Bytes are reported every now and then: the bandwidth of a younger round would jump about."""

AWAITED = {
    Checkpoint.VCPUS_STOPPED: "source stops its device models",
    Checkpoint.DEVICES_STOPPED: "source stops its device models",
    Checkpoint.CLOCK_READ: "source waits for its last sync",
    Checkpoint.FINAL_SYNC_DONE: "last pages sent, state read",
    Checkpoint.STATE_SAVED: "state sent, destination loads it",
    Checkpoint.DEVICES_LOADED: "destination waits to run (cont?)",
    Checkpoint.HELD: "destination waits to run",
    Checkpoint.CLOCK_SET: "destination starts its vCPUs",
}
"""What is going on after the last checkpoint that was passed."""


@dataclass(frozen=True, slots=True)
class Blackout:
    """A blackout that lasts: for how long, and since which checkpoint.

    `at_least`: this host's part is over, the rest cannot be seen here.
    """

    ns: int
    since: Checkpoint
    since_ns: int
    at_least: bool


def current_phase(migration: Migration) -> PhaseSpan | None:
    """The phase that began last and lasts; the destination's where both began at once."""
    lasting = [p for p in migration.phases if p.end_at_ns is None]
    return max(lasting, key=lambda p: (p.start_at_ns, p.role == Role.DESTINATION), default=None)


def blackout(migration: Migration, now_ns: int) -> Blackout | None:
    """The blackout up to `now_ns`; None if the guest runs or the migration has ended."""
    passed = [c for c in migration.downtime.checkpoints if c.at_ns is not None]
    if migration.outcome is not None or migration.stopped_at_ns is None or not passed:
        return None
    last = passed[-1]
    if last.name == Checkpoint.VCPUS_RUNNING or last.at_ns is None:
        return None
    gone = migration.role == Role.SOURCE and last.name == Checkpoint.STATE_SAVED
    until = last.at_ns if gone else max(now_ns, last.at_ns)
    return Blackout(
        ns=until - migration.stopped_at_ns,
        since=last.name,
        since_ns=until - last.at_ns,
        at_least=gone,
    )


def bandwidth_now(migration: Migration, at_ns: int) -> float | None:
    """Bytes per second in this round, or in the round before while this one is young."""
    rounds = migration.rounds
    if not rounds:
        return None
    last = rounds[-1]
    ns = at_ns - last.at_ns
    if last.sent_bytes is not None and (ns >= _SETTLED_NS or len(rounds) == 1) and ns > 0:
        return last.sent_bytes * 1e9 / ns
    return bandwidth(rounds[-2], last) if len(rounds) > 1 else None


def compact(count: float | None) -> str:
    """Bytes in at most six characters: `3.92M` is MiB; `-` for what is not known."""
    if count is None:
        return "-"
    number, unit = format_bytes(count).split(" ")
    return number if unit == "B" else number + unit[0]


def dirty_rate(before: Round | None, round_: Round, page_size: int) -> float | None:
    """New pages per time since the sweep before, in bytes per second."""
    if before is None or round_.new_pages is None or round_.at_ns <= before.at_ns:
        return None
    return round_.new_pages * page_size * 1e9 / (round_.at_ns - before.at_ns)


def mean_dirty_rate(migration: Migration) -> float | None:
    """New pages per time between the first sweep and the last, in bytes per second."""
    pages = migration.dirty.new_pages
    if pages is None or len(migration.rounds) < 2:
        return None
    ns = migration.rounds[-1].at_ns - migration.rounds[0].at_ns
    return pages * migration.dirty.page_size * 1e9 / ns if ns > 0 else None


def bandwidth(round_: Round, after: Round | None) -> float | None:
    """Bytes sent per time until the next sweep, in bytes per second; None for the last round."""
    if after is None or round_.sent_bytes is None or after.at_ns <= round_.at_ns:
        return None
    return round_.sent_bytes * 1e9 / (after.at_ns - round_.at_ns)
