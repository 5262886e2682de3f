# SPDX-License-Identifier: MIT
"""Decides when an ended migration is final."""

from vftrace.analysis.devices.strategy import UNPLUG_WINDOW_NS
from vftrace.model.migration import Migration

SETTLE_NS = 1_000_000_000
"""A migration is counted and logged this long after its end: a role or an outcome can still change with the other
side's last events."""


def settled(migration: Migration, now_ns: int, *, trace_ended: bool = False) -> bool:
    """Whether a migration ended so long ago that no more events of it are expected.

    `trace_ended`: there are no more events at all, as at a replay's end.
    """
    if migration.outcome is None:
        return False
    ended = migration.ended_at_ns
    after = UNPLUG_WINDOW_NS if migration.awaits_device else SETTLE_NS
    return trace_ended or ended is None or now_ns - ended >= after
