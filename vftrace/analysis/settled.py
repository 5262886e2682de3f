"""When a migration that has ended is taken as it is."""

from vftrace.analysis.devices.strategy import UNPLUG_WINDOW_NS
from vftrace.model.migration import Migration

SETTLE_NS = 1_000_000_000
"""A migration is counted and logged this long after its end: a role or an outcome can still change when the other
side's last events come in."""


def settled(migration: Migration, now_ns: int, *, trace_ended: bool = False) -> bool:
    """Whether it has ended, long enough ago that nothing more of it is expected.

    `trace_ended`: nothing more will come at all, as at a replay's end.
    """
    if migration.outcome is None:
        return False
    ended = migration.ended_at_ns
    after = UNPLUG_WINDOW_NS if migration.awaits_device else SETTLE_NS
    return trace_ended or ended is None or now_ns - ended >= after
