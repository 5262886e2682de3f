"""Plays the rounds to come as QEMU makes them.

QEMU (migration/migration.c, migration_iteration_run, and migration/ram.c, ram_save_pending, 7.2;
ram_state_pending_exact from 8.0 on) sends pages until what is left fits `threshold` = bandwidth x downtime limit; then
a sweep adds what became dirty meanwhile; if that fits too, it stops the guest, else the next round begins.
"""

import math
from dataclasses import dataclass

from vftrace.analysis.forecast.channel import TURN_NS, WINDOW_NS, Channel
from vftrace.analysis.forecast.working_set import WorkingSet

LONGEST_NS = 30 * 86_400 * 1_000_000_000
"""A migration of a month does not converge."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What stays the same while the rounds are played."""

    known: WorkingSet
    channel: Channel
    page_bytes: float
    threshold: float
    """Bytes that may be left when the guest is stopped."""
    max_rounds: int


@dataclass(frozen=True, slots=True)
class Start:
    """Where the play begins: in the middle of a round or at the beginning of one."""

    left: float
    """Bytes to send."""
    fresh: float
    """The part of them that the destination does not have yet."""
    used: float = 0.0
    """The part of the window's quota that is already spent."""
    since_ns: float = 0.0
    """How long this round has lasted."""


@dataclass(frozen=True, slots=True)
class Run:
    """A precopy as it was played to its end."""

    converges: bool
    rounds: int
    ns: float
    """Until the guest is stopped; until the play was ended where it does not converge."""
    last_bytes: float
    last_fresh: float
    """The part of them that the destination does not have yet."""
    last_round_ns: float


def play(start: Start, setting: Setting) -> Run:
    """Sends and sweeps until what is left fits the threshold, or the rounds or the time are used up."""
    channel, threshold = setting.channel, setting.threshold
    quota = channel.quota
    window_ns = WINDOW_NS if channel.held_back else TURN_NS
    largest = setting.known.largest * setting.page_bytes
    left, fresh, used, since_ns = start.left, start.fresh, start.used, start.since_ns
    ns, rounds = 0.0, 0
    while left >= threshold:
        if rounds >= setting.max_rounds or ns + since_ns > LONGEST_NS:
            return Run(False, rounds, ns, left, fresh, since_ns)
        now = min(left, max(0.0, quota - used))
        left -= now
        fresh = max(0.0, fresh - now)
        used += now
        since_ns += now * 1e9 / channel.link
        if left >= threshold or (left > 0 and used < quota):
            # Whole windows that cannot be the last are taken at once.
            whole = max(0, math.ceil((left - threshold) / quota) - 1)
            before = left
            left = max(threshold, left - whole * quota)
            fresh = max(0.0, fresh - (before - left))
            since_ns += max(0.0, window_ns - used * 1e9 / channel.link) + whole * window_ns
            used = 0.0
            continue
        rounds += 1
        new = setting.known.pages(since_ns) * setting.page_bytes
        # What was not sent stays, unless it became dirty again and is counted there.
        again = max(0.0, left - fresh)
        left = new + again * (1 - min(1.0, new / largest)) + fresh
        ns, last_ns, since_ns = ns + since_ns, since_ns, 0.0
        if left < threshold:
            return Run(True, rounds, ns, left, fresh, last_ns)
    return Run(True, rounds, ns, left, fresh, 0.0)
