# SPDX-License-Identifier: MIT
"""Follows which VM has each VF, and computes for how long a VF's driver did not have it up."""

from collections.abc import Mapping
from itertools import pairwise

import msgspec

from vftrace.model.migration import Snapshot
from vftrace.model.vf import VfHistory


class VfDowntime(msgspec.Struct, frozen=True):
    """One VF now. `up` None: no VM of this host has it, and its driver does not have it up.

    `ns`: how long its driver did not have it up the last time, or does not have it up so far; None: not known, or
    never.
    """

    history: VfHistory
    up: bool | None
    ns: int | None


class _Assignment(msgspec.Struct):
    """The process that has a VF open (None: none), and since when, as far as that was looked at."""

    pid: int | None
    since_ns: int


class VfDowntimes:
    """The downtime of every VF, from one snapshot to the next.

    `late_ns`: a change of a VF's VM may be noticed this much late, that is the time between two snapshots.
    """

    def __init__(self, late_ns: int) -> None:
        self._late_ns = late_ns
        self._assignments: dict[tuple[str, int], _Assignment] = {}

    def update(
        self, snapshot: Snapshot, arrived_ns: Mapping[int, int], now_ns: int
    ) -> tuple[VfDowntime, ...]:
        """Take the next snapshot. `arrived_ns`: by process, when its VM came to run here by migration."""
        owners = {device.address: vm.pid for vm in snapshot.vms for device in vm.devices}
        assignments: dict[tuple[str, int], _Assignment] = {}
        found: list[VfDowntime] = []
        for history in snapshot.vfs:
            key = history.pf, history.vf
            pid = owners.get(history.address) if history.address is not None else None
            known = self._assignments.get(key)
            if known is None or known.pid != pid:
                known = _Assignment(pid, now_ns if known is not None else 0)
            assignments[key] = known
            arrived = arrived_ns.get(pid) if pid is not None else None
            down = last_downtime(
                history, known.since_ns - self._late_ns, arrived, assigned=pid is not None
            )
            ns = None if down is None else (down[1] or now_ns) - down[0]
            up = True if history.state == "up" else False if pid is not None else None
            found.append(VfDowntime(history, up, ns))
        self._assignments = assignments
        return tuple(found)


def last_downtime(
    history: VfHistory, since_ns: int, arrived_ns: int | None, *, assigned: bool
) -> tuple[int, int | None] | None:
    """The latest interval (end None: still) in which a VF's driver did not have it up.

    None if there was none, or if nobody waits for the VF. `since_ns`: when its present VM got it; what was before
    belongs to another VM. `arrived_ns`: when that VM came here by migration, and expects the VF to work. Nobody waits
    for a VF that no VM has (`assigned` False).
    """
    ups = [span for span in history.states if span.name == "up"]
    left = [span.end_at_ns for span in ups if (span.end_at_ns or 0) > since_ns]
    begins = [at for at in (arrived_ns, *left) if at is not None]
    if history.state == "up":
        back = ups[-1].start_at_ns
        return max(((at, back) for at in begins if at <= back), default=None)
    if assigned:
        return (max(begins), None) if begins else None
    # An earlier downtime that ended; the VF was then released for good.
    return next(
        ((a.end_at_ns, b.start_at_ns) for a, b in reversed(list(pairwise(ups))) if a.end_at_ns),
        None,
    )
