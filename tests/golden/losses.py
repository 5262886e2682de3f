# SPDX-License-Identifier: MIT
"""Losses of a recording that the kernel's own counters do not explain."""

from vftrace.model.migration import Snapshot


def skipped(found: Snapshot, probe: str) -> int:
    """Return how many runs of a probe the kernel skipped: 7.x does where the emulated processors are busy."""
    return sum(count for name, _, count in found.missed_runs if name == probe)


def unexplained(found: Snapshot) -> int:
    """Return the lost records, without the sends at whose return the kernel skipped a run."""
    return max(0, found.lost - skipped(found, "channel"))
