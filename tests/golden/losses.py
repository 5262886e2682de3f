# SPDX-License-Identifier: MIT
"""Losses of a recording that the kernel's own counters do not explain."""

from vftrace.model.migration import Snapshot


def unexplained(found: Snapshot) -> int:
    """Return the lost records, without the sends whose return the kernel did not trace: 7.x skips runs where the
    emulated processors are busy, and counts them."""
    skipped = sum(count for probe, _, count in found.missed_runs if probe == "channel")
    return max(0, found.lost - skipped)
