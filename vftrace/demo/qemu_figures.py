# SPDX-License-Identifier: MIT
"""Compares vftrace's figures with QEMU's own, for each migration of a played scenario."""

import msgspec

from vftrace.demo.scenarios import Attempt, Truth
from vftrace.model.migration import Checkpoint, Migration, Snapshot

# QEMU's `downtime` runs from before vm_stop until the source has sent its last byte, in whole
# milliseconds (migration/migration.c: downtime_start, migration_calculate_complete). It does not
# include the destination's part.
_IN_QEMU_DOWNTIME = (
    Checkpoint.CLOCK_READ,
    Checkpoint.DEVICES_STOPPED,
    Checkpoint.FINAL_SYNC_DONE,
    Checkpoint.STATE_SAVED,
)


class Row(msgspec.Struct, frozen=True):
    """One figure: vftrace's value and QEMU's, and why they may differ."""

    figure: str
    ours: str
    qemu: str
    note: str


class Comparison(msgspec.Struct, frozen=True):
    """One migration attempt. `migration` is None if vftrace saw none for it."""

    attempt: Attempt
    migration: Migration | None
    rows: tuple[Row, ...]


def compare(truth: Truth, snapshot: Snapshot) -> tuple[Comparison, ...]:
    """Pair each of QEMU's attempts with its migration: the same source process, in order."""
    unused = list(snapshot.migrations)
    found = []
    for attempt in truth.attempts:
        mine = next((m for m in unused if m.pid == attempt.source_pid), None)
        if mine is not None:
            unused.remove(mine)
        found.append(Comparison(attempt, mine, _rows(attempt, mine) if mine else ()))
    return tuple(found)


def source_downtime_ns(migration: Migration) -> int | None:
    """Return the part of the blackout that QEMU's `downtime` covers: from the vCPUs' stop until the state was read."""
    by_name = {c.name: c for c in migration.downtime.checkpoints}
    if by_name[Checkpoint.STATE_SAVED].at_ns is None or migration.stopped_at_ns is None:
        return None
    return sum(by_name[name].ns or 0 for name in _IN_QEMU_DOWNTIME)


def _rows(attempt: Attempt, m: Migration) -> tuple[Row, ...]:
    qemu = attempt.source
    counted = attempt.counted or qemu
    ended = m.ended_at_ns - m.started_at_ns if m.ended_at_ns is not None else None
    own = source_downtime_ns(m)
    return (
        Row(
            "outcome", m.outcome or "unknown", (qemu.status if qemu else None) or "-", m.cause or ""
        ),
        Row(
            "rounds",
            str(len(m.rounds)),
            _text(counted.dirty_sync_count if counted else None),
            "dirty-sync-count",
        ),
        Row("new pages", _text(m.dirty.new_pages), "-", "QEMU keeps no such count"),
        Row(
            "downtime",
            _ms(m.downtime.vcpu_ns),
            "-",
            f"vCPU to vCPU, set by {m.downtime.set_by}" if m.downtime.set_by else "",
        ),
        Row(
            "  on the source",
            _ms(own),
            _whole_ms(qemu.downtime_ms if qemu else None),
            "QEMU's downtime: from before the stop until the last byte is sent",
        ),
        Row(
            "total time",
            _ms(ended),
            _whole_ms(qemu.total_time_ms if qemu else None),
            "from logging on until the destination runs; QEMU: from setup until sent",
        ),
        Row(
            "sent, bytes",
            _text(m.channel.bytes),
            _text(counted.transferred_bytes if counted else None),
            # seen: 7.2 leaves them out of `transferred`, 10.0 counts them
            f"{m.channel.state_bytes} of them vCPU and device state; QEMU 7.2 does not count those"
            if m.channel.state_bytes
            else "transferred",
        ),
    )


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _ms(ns: int | None) -> str:
    return "-" if ns is None else f"{ns / 1e6:.1f} ms"


def _whole_ms(ms: int | None) -> str:
    return "-" if ms is None else f"{ms} ms"
