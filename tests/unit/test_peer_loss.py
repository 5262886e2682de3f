# SPDX-License-Identifier: MIT
"""Records lost of one process make the migrations of others doubtful only where it may be their other side."""

import pytest

from vftrace import events
from vftrace.analysis.tracker import Tracker
from vftrace.events import COLLECTOR

SOURCE, OTHER, DESTINATION = 100, 200, 300
S = 1_000_000_000


def one_source_beside(other: int, uuids: dict[int, str]) -> Tracker:
    """A source that runs, migrates and ends; and another process with a hole in its records.

    OTHER runs long before the migration begins; DESTINATION never runs.
    """
    tracker = Tracker()
    for seq, (pid, uuid) in enumerate(uuids.items()):
        tracker.feed(
            events.Process(1, seq, COLLECTOR, 0, pid, 1, uuid, None, "unknown", False, False, False, False)
        )  # fmt: skip
    tid = SOURCE + 1
    tracker.feed(events.VmCreated(S, 0, SOURCE, SOURCE, 3))
    tracker.feed(events.Run(S, 1, SOURCE, SOURCE + 9, 0))
    tracker.feed(events.VmCreated(S, 0, other, other, 3))
    if other == OTHER:
        tracker.feed(events.Run(S, 1, other, other + 9, 0))
    tracker.feed(events.Region(5 * S, 2, SOURCE, tid, 0, 1, 0, 1 << 30, 0, 0))
    tracker.feed(events.GetDirtyLog(6 * S, 3, SOURCE, tid, 6 * S - 1, 0, 0, 0, 0, 0, 0, 0))
    tracker.feed(events.Channel(6 * S, 4, SOURCE, tid, 4096, 1, 6 * S - 1, 6 * S, 0, 9, 0, tid, 0))
    tracker.feed(events.VcpuState(6 * S, 50, other, other, 0))
    tracker.feed(events.GetDirtyLog(7 * S, 5, SOURCE, tid, 7 * S - 1, 0, 0, 0, 0, 0, 0, 0))
    tracker.feed(events.Exit(8 * S, 6, SOURCE, SOURCE, 0))
    return tracker


@pytest.mark.parametrize(
    ("other", "uuids", "doubtful"),
    [
        (OTHER, {}, False),
        (DESTINATION, {}, True),
        (OTHER, {SOURCE: "a", OTHER: "a"}, True),
        (DESTINATION, {SOURCE: "a", DESTINATION: "b"}, False),
    ],
    ids=["has run before", "has not run", "same VM", "another VM"],
)
def test_a_loss_of_another_process(other: int, uuids: dict[int, str], doubtful: bool) -> None:
    (migration,) = one_source_beside(other, uuids).snapshot().migrations
    assert migration.incomplete is doubtful
