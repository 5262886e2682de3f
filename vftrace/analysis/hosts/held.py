# SPDX-License-Identifier: MIT
"""Joins a source that handed its guest over with a destination that loaded it and was not resumed.

The destination's host knows such a VM only as one that waits: it sets the guest's clock when it is resumed.
"""

from msgspec.structs import replace

from vftrace.analysis.hosts.causality import Half, Pair, offset_of, orders_of
from vftrace.analysis.hosts.couples import Couple
from vftrace.analysis.hosts.halves import join_pair
from vftrace.analysis.phases import downtime_of
from vftrace.model.migration import (
    Cause,
    ChannelUse,
    Checkpoint,
    Migration,
    Outcome,
    Role,
    Strategy,
)
from vftrace.model.report import MigrationReport

NOT_TOLD = "not joined: a VM waits on another host, and the clocks do not show whether it loaded this state"


def join_held(couple: Couple) -> MigrationReport:
    """Return the migration with its destination, or with a warning why the destination is not known."""
    found = couple.source
    if not couple.loaded:
        return replace(found, warnings=(*found.warnings, NOT_TOLD))
    pair = Pair(Half(found.host, found.migration), Half(couple.host, _half(couple)))
    offset = offset_of(pair, (found.host, couple.host), orders_of(pair), ())
    if isinstance(offset, str):
        return replace(found, warnings=(*found.warnings, offset))
    return replace(join_pair(pair, offset), warnings=found.warnings)


def _half(couple: Couple) -> Migration:
    """Make the destination's half: it loaded the state, and may have ended after that."""
    source, waiting = couple.source.migration, couple.waiting
    loaded = waiting.registers_set_ns
    assert loaded is not None
    gone = couple.ended_before(source.ended_at_ns) is not None
    return replace(
        source,
        role=Role.DESTINATION,
        pid=waiting.pid,
        outcome=Outcome.FAILED if gone else None,
        cause=Cause.DESTINATION_ENDED if gone else None,
        strategy=Strategy.PLAIN,
        strategy_evidence=(),
        postcopy=False,
        incomplete=False,
        started_at_ns=loaded,
        ended_at_ns=waiting.ended_at_ns if gone else None,
        phases=(),
        rounds=(),
        channel=ChannelUse("unknown", None, None, None),
        downtime=downtime_of({Checkpoint.DEVICES_LOADED: loaded}),
        stopped_at_ns=None,
        devices=(),
        vfs=(),
    )
