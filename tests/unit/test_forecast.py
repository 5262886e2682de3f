# SPDX-License-Identifier: MIT
"""The forecast against arithmetic done by hand, and against QEMU's figures of recorded migrations."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from vftrace.analysis.forecast.answer import Assumptions
from vftrace.analysis.forecast.channel import PAGE_ON_WIRE
from vftrace.analysis.forecast.costs import FITTED, Fitted
from vftrace.analysis.forecast.history import History
from vftrace.analysis.forecast.precopy import forecast, of_migration
from vftrace.analysis.forecast.replay import Recorded, of_replay, replay
from vftrace.analysis.forecast.working_set import Interval, Shape, WorkingSet
from vftrace.cli import main
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.errors import UsageError
from vftrace.model.migration import Migration, Round
from vftrace.outputs.report.what_if import parse_what_if
from vftrace.outputs.text.forecast import NOT_ENOUGH, NOTHING, forecast_line

RECORDINGS = Path(__file__).parents[1] / "golden" / "recordings"
SECOND = 1_000_000_000
LINEAR = Fitted(Shape(1.0, 1.0), fixed_downtime_ns=0)


def rounds_of(*known: tuple[float, int | None, float]) -> list[Round]:
    """From (seconds since the beginning, new pages, bytes sent until the next)."""
    return [
        Round(round(at * SECOND), 1000, pages, 0, pages, round(sent), ())
        for at, pages, sent in known
    ]


def plain(rate: float, seconds: float, writes_per_second: float, known: int = 2) -> list[Round]:
    """A guest that writes ever new pages: each round takes as long as sending what the last one left."""
    rounds: list[tuple[float, int | None, float]] = [(0.0, None, rate * seconds)]
    at, took = 0.0, seconds
    for _ in range(known - 1):
        at += took
        pages = round(writes_per_second * took)
        took = pages * PAGE_ON_WIRE / rate
        rounds.append((at, pages, rate * took))
    return rounds_of(*rounds)


def migration_of(name: str) -> Migration:
    snapshot = track(Recording(RECORDINGS / f"{name}.vft.gz")).snapshot()
    return next(m for m in snapshot.migrations if m.role != "destination")


def truth_of(name: str) -> dict[str, int]:
    attempt = json.loads((RECORDINGS / f"{name}.truth.json").read_text())["attempts"][0]
    return {**attempt["parameters"], **attempt["counted"]}


def test_before_the_second_sweep_nothing_is_known() -> None:
    assert forecast([], 0) is None
    first = forecast(rounds_of((0.001, None, 1e7)), 0)
    assert first is not None
    assert (first.converges, first.total_ns, first.downtime_ns, first.strategies) == (None,) * 3 + (
        (),
    )
    assert forecast_line(first) == forecast_line(None) == NOTHING


def test_pages_that_were_not_counted_give_no_forecast() -> None:
    told = forecast(rounds_of((0, None, 1e8), (1, None, 1e8), (2, None, 0)), 0)
    assert told is not None
    assert told.converges is None
    assert forecast_line(told) == NOT_ENOUGH


def test_rounds_that_halve_are_summed() -> None:
    # 100 MB/s, the first round 4 s, half of what is sent becomes dirty again: 4 + 2 + 1 + 0.5 s, then 25 MB are left,
    # which fit 300 ms.
    rate = 100e6
    rounds = plain(rate, 4.0, 0.5 * rate / PAGE_ON_WIRE)
    told = forecast(rounds, 0, fitted=LINEAR)
    assert told is not None
    assert told.converges
    # QEMU looks how much is left in turns of 50 ms: each round may end up to a limit's worth early.
    assert told.total_ns == pytest.approx(7.5 * SECOND, rel=0.1)
    assert told.downtime_ns is not None
    assert 0 < told.downtime_ns < 300_000_000
    assert told.limit_assumed


def test_a_guest_faster_than_the_channel_does_not_converge() -> None:
    rate = 100e6
    told = forecast(plain(rate, 4.0, 1.2 * rate / PAGE_ON_WIRE), 0, fitted=LINEAR)
    assert told is not None
    assert told.converges is False
    assert told.total_ns is None
    assert {s.strategy for s in told.strategies if s.total_ns is not None} == {"postcopy"}
    assert "does not converge" in forecast_line(told)


def test_a_small_set_written_all_the_time_depends_on_the_limit() -> None:
    # 5000 pages (20.5 MB), all of them written in every round, at 50 MB/s. At 300 ms 15 MB may be left: a round sends
    # 5.5 MB in 0.11 s.
    rounds = rounds_of((0, None, 200e6), (4, 5000, 5.5e6), (4.11, 5000, 5.5e6), (4.22, 5000, 0))
    rounds = [replace(r, redirtied_pages=r.new_pages) for r in rounds]
    for limit_ms, converges in ((300, False), (500, True)):
        told = forecast(rounds, 0, Assumptions(downtime_limit_ns=limit_ms * 1_000_000))
        assert told is not None
        assert told.converges is converges
        assert not told.limit_assumed


def test_the_last_pages_go_at_the_speed_of_the_channel() -> None:
    # Held back to 10 MB/s by max-bandwidth, 1 GB/s while it sends.
    first = Round(0, 0, None, None, None, 40_000_000, (), 40_000_000, 40_000_000)
    second = Round(4 * SECOND, 0, 100, 0, 100, 0, ())
    told = forecast([first, second], 0, fitted=LINEAR)
    assert told is not None
    assert told.link_bytes_per_second == pytest.approx(1e9)
    assert told.bandwidth_bytes_per_second == pytest.approx(10e6, rel=0.02)
    # The sweep came with 2 to 3 MB unsent (less than 300 ms x 10 MB/s, seen once a window of 1 MB). With the 0.4 MB
    # that are new it fits, on average, and is sent in 2.4 to 3.4 ms.
    assert told.rounds_left == 0
    assert told.downtime_ns is not None
    assert 2_400_000 <= told.downtime_ns <= 3_420_000


@pytest.mark.parametrize("name", ["completed-slow", "libvirt-cmdline", "no-uuid"])
@pytest.mark.parametrize("sweeps", [2, 3])
def test_total_time_as_qemu_measured_it(name: str, sweeps: int) -> None:
    migration, truth = migration_of(name), truth_of(name)
    assumed = Assumptions(downtime_limit_ns=truth["downtime-limit"] * 1_000_000)
    told = forecast(migration.rounds[:sweeps], migration.started_at_ns, assumed)
    assert told is not None
    assert told.converges
    assert told.total_ns is not None
    # One machine's speed and windows of 100 ms: docs/explanation/forecast.md has the error of many runs.
    assert told.total_ns / 1e6 == pytest.approx(truth["total_time_ms"], rel=0.15)


@pytest.mark.parametrize(
    "name",
    [
        "completed-slow",
        "file-resumed",
        "libvirt-cmdline",
        "multifd",
        "no-uuid",
        "there-and-back",
        "xbzrle",
    ],
)
@pytest.mark.parametrize("given", [True, False], ids=["limit-given", "limit-implied"])
def test_a_replay_takes_as_long_as_qemu_measured(name: str, given: bool) -> None:
    # QEMU's limit was 20 ms (xbzrle: 5), far from the default, which the recording does not have.
    migration, truth = migration_of(name), truth_of(name)
    limit_ns = truth["downtime-limit"] * 1_000_000
    told = of_replay(
        Recorded.of(migration), Assumptions(downtime_limit_ns=limit_ns if given else None)
    )
    assert told is not None
    assert told.total_ns is not None
    assert told.total_ns / 1e6 == pytest.approx(truth["total_time_ms"], rel=0.05)
    assert (told.limit_from == "given") is given


def test_a_replay_implies_the_limit_from_the_rounds() -> None:
    # Eight rounds, each half as long as the one before: with 300 ms it had been four.
    told = of_replay(Recorded.of(migration_of("completed-slow")), Assumptions())
    assert told is not None
    assert told.limit_from == "rounds"
    assert told.rounds_left == 6
    assert 10_000_000 <= told.downtime_limit_ns <= 40_000_000
    line = forecast_line(told)
    assert "a downtime limit about" in line
    wider = of_replay(
        Recorded.of(migration_of("completed-slow")), Assumptions(bandwidth_bytes_per_second=80e6)
    )
    assert wider is not None
    assert wider.downtime_limit_ns == told.downtime_limit_ns
    assert wider.total_ns is not None
    assert told.total_ns is not None
    assert wider.total_ns < told.total_ns / 4


def test_an_ended_migration_keeps_the_forecast_of_its_second_round() -> None:
    migration = migration_of("completed-slow")
    assert migration.forecast is not None
    assert migration.forecast.after_sweeps == 3
    again = of_migration(migration.rounds, migration.started_at_ns, None)
    assert again is not None
    assert again.after_sweeps == len(migration.rounds)


def test_replay_with_half_the_bandwidth_takes_twice_as_long() -> None:
    rounds = rounds_of((0, None, 400e6), (4, 10, 41080), (4.5, 10, 0))
    totals = []
    for rate in (100e6, 50e6):
        told = replay(rounds, 0, Assumptions(bandwidth_bytes_per_second=rate), LINEAR)
        assert told is not None
        assert told.total_ns is not None
        totals.append(told.total_ns)
    assert totals[1] / totals[0] == pytest.approx(2, rel=0.1)


def test_vfio_needs_the_size_of_the_state() -> None:
    rounds = plain(100e6, 4.0, 1000)
    for size, expected in ((None, None), (50_000_000, SECOND // 2)):
        told = forecast(rounds, 0, Assumptions(device_state_bytes=size), LINEAR)
        assert told is not None
        by_name = {s.strategy: s for s in told.strategies}
        down, own = by_name["vfio"].downtime_ns, by_name["plain"].downtime_ns
        assert own is not None
        assert (None if down is None else down - own) == expected


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**11),
            st.none() | st.integers(0, 2**40),
            st.none() | st.integers(0, 2**50),
        ),
        max_size=6,
    ),
    st.integers(1, 10**12),
)
def test_anything_gives_an_answer(
    steps: list[tuple[int, int | None, int | None]], limit: int
) -> None:
    at = 0
    rounds = []
    for step, pages, sent in steps:
        at += step
        rounds.append(Round(at, 0, pages, None, pages, sent, ()))
    told = forecast(rounds, 0, Assumptions(downtime_limit_ns=limit))
    if told is not None and told.total_ns is not None:
        assert told.downtime_ns is not None
        assert told.downtime_ns >= FITTED.fixed_downtime_ns
        assert told.total_ns >= at + told.downtime_ns - 1


COUNTER = st.none() | st.integers(-(2**63), 2**64)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.builds(
            Round,
            st.integers(0, 2**64),
            st.just(0),
            COUNTER,
            COUNTER,
            COUNTER,
            COUNTER,
            st.just(()),
            COUNTER,
            COUNTER,
        ),
        max_size=8,
    ),
    st.integers(0, 2**64),
    st.none() | st.integers(0, 2**64),
    st.booleans(),
    st.none() | st.integers(0, 2**64),
)
def test_a_damaged_recording_gives_no_negative_forecast(
    rounds: list[Round], started: int, stopped: int | None, ended: bool, downtime: int | None
) -> None:
    recorded = Recorded(tuple(rounds), started, stopped, downtime, has_devices=ended)
    told = [
        of_migration(rounds, started, stopped),
        of_replay(recorded, Assumptions()),
        of_replay(recorded, Assumptions(bandwidth_bytes_per_second=1e9)),
    ]
    for each in told:
        if each is None:
            continue
        figures = [each.rounds_left, each.total_ns, each.downtime_ns, each.remaining_bytes]
        for cost in each.strategies:
            figures += [cost.total_ns, cost.downtime_ns, cost.device_ns]
        assert all(figure is None or figure >= 0 for figure in figures)


@pytest.mark.parametrize("count", [1_100, 100_000])
def test_a_migration_that_does_not_end_costs_the_same_each_time(count: int) -> None:
    # 20,000 pages (82 MB) that are all written in each round of a second, of which 50 MB are sent.
    unending = rounds_of((0, None, 200e6), *((4 + n, 20_000, 50e6) for n in range(count)))
    rounds = [replace(r, redirtied_pages=r.new_pages) for r in unending]
    limit = Assumptions(downtime_limit_ns=300_000_000)
    looked: list[int] = []

    class Counted(list[Round]):
        def __getitem__(self, index: Any) -> Any:
            looked.append(index)
            return super().__getitem__(index)

    told = forecast(Counted(rounds), 0, limit)
    assert told is not None
    assert told.converges is False
    assert len(looked) < 1_000
    assert replay(rounds, 0, limit) is not None


def test_intervals_between_sweeps() -> None:
    rounds = rounds_of((1, None, 0), (2, 30, 0), (2.001, 5, 0), (4, None, 0), (5, 7, 0))
    history = History.of(rounds, 0)
    assert history is not None
    assert history.intervals() == (Interval(SECOND, 30), Interval(SECOND, 7))


@given(
    st.lists(st.tuples(st.integers(10**7, 10**10), st.integers(0, 10**6)), min_size=1, max_size=6)
)
def test_a_longer_time_never_dirties_fewer_pages_below_the_first_point(
    points: list[tuple[int, int]],
) -> None:
    known = WorkingSet.of([Interval(ns, pages) for ns, pages in points], FITTED.shape)
    assert known is not None
    shortest = known.points[0]
    steps = [known.pages(shortest.ns * n / 10) for n in range(11)]
    assert all(a <= b for a, b in pairwise(steps))
    assert steps[-1] == pytest.approx(shortest.pages)


def test_the_curve_goes_through_its_points() -> None:
    measured = [Interval(SECOND, 1000), Interval(4 * SECOND, 2000)]
    known = WorkingSet.of(measured, Shape())
    assert known is not None
    assert [known.pages(i.ns) for i in measured] == pytest.approx([1000, 2000])
    # slope 1/2 between and above
    assert known.pages(2 * SECOND) == pytest.approx(2**0.5 * 1000)
    assert known.pages(16 * SECOND) == pytest.approx(4000)
    assert WorkingSet.of([], Shape()) is None


def test_what_if_is_read() -> None:
    assert parse_what_if("bandwidth=25Gbit,downtime-limit=300ms") == Assumptions(
        bandwidth_bytes_per_second=25e9 / 8, downtime_limit_ns=300_000_000
    )


@pytest.mark.parametrize(
    "text",
    ["", "bandwidth", "speed=1", "bandwidth=fast", "bandwidth=25", "link=40", "downtime-limit=0"],
)
def test_what_if_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        parse_what_if(text)


def test_report_with_other_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECORDINGS / "completed-slow.vft.gz")
    assert main(["report", path, "--what-if", "bandwidth=100Gbit", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["migrations"][0]["forecast"]
    assert told["bandwidth_bytes_per_second"] == 12.5e9
    assert told["converges"] is True
    # 12 MiB and a handful of pages at 12.5 GB/s
    assert told["total_ns"] < 50_000_000


def test_a_devices_own_estimate_is_what_vfio_costs() -> None:
    rounds = plain(100e6, 4.0, 1000)
    told = of_migration(rounds, 0, None, device_state_bytes=10_000_000)
    assert told is not None
    by_name = {s.strategy: s for s in told.strategies}
    # 10 MB at 100 MB/s
    down, own = by_name["vfio"].downtime_ns, by_name["plain"].downtime_ns
    assert down is not None
    assert own is not None
    assert down - own == pytest.approx(SECOND / 10, rel=0.05)
