# SPDX-License-Identifier: MIT
"""Long and hostile lives cost what their events cost: `python -m tests.soak` has them at full length."""

import pytest

from tests import soak
from vftrace.model import figures

MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "count", "least_events"),
    [
        ("non-converging", 700, 6_000),
        ("sessions", 300, 2_000),
        ("slots-and-threads", 400, 30_000),
        ("vms", 400, 4_000),
    ],
)
def test_twice_as_much_takes_no_more_memory(name: str, count: int, least_events: int) -> None:
    make, _ = soak.CASES[name]
    once, twice = soak.run(make(count)), soak.run(make(2 * count))
    assert once.events >= least_events
    assert twice.peak < 64 * MIB
    # 1024 migrations that have settled are kept, some KB each; no case has as many in its first run.
    assert twice.peak < 1.3 * once.peak + 1024 * 8192


@pytest.mark.parametrize(
    ("name", "count"), [("non-converging", 5000), ("sessions", 1000), ("vms", 3000)]
)
def test_twice_as_much_takes_twice_as_long(name: str, count: int) -> None:
    make, _ = soak.CASES[name]
    once, twice = [], []
    # It is CPU time, which other processes still lengthen now and then.
    for _ in range(3):
        once.append(soak.run(make(count), traced=False).seconds)
        twice.append(soak.run(make(2 * count), traced=False).seconds)
        if min(twice) < 2.4 * min(once) + 0.05:
            return
    pytest.fail(f"{count}: {once} s of CPU, {2 * count}: {twice} s")


def test_a_thread_and_a_slot_cost_the_same_among_thousands() -> None:
    """30,000 slots times 1,500 threads took a minute where each thread looked at each slot."""
    make, _ = soak.CASES["slots-and-threads"]
    assert soak.run(make(1500), traced=False).seconds < 8


def test_a_long_migration_keeps_exact_totals() -> None:
    rounds = 2500
    result = soak.run(soak.non_converging(rounds), traced=False)
    (found,) = result.snapshot.migrations
    assert figures.dirty_sync_count(found) == rounds
    assert len(found.rounds) < 1200
    assert sum(r.syncs for r in found.rounds) == rounds
    assert found.channel.bytes == rounds * 600_000
    assert sum(r.sent_bytes or 0 for r in found.rounds) == found.channel.bytes
    # 128 pages of each sync, all cleared before the next.
    assert sum(r.new_pages or 0 for r in found.rounds) == rounds * 128
    assert not found.incomplete


def test_every_session_of_a_process_is_kept_or_counted() -> None:
    result = soak.run(soak.sessions(200), traced=False)
    assert len(result.snapshot.migrations) == 200
