# SPDX-License-Identifier: MIT
"""Round trips before, during and after a migration. Truth is every single one, as a simulated service answers."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.unit.test_join import halves, only_one
from tests.unit.two_hosts import host_of, join, shifted, write
from vftrace import events
from vftrace.analysis.hosts.clocks import UNSYNCHRONISED_NS
from vftrace.analysis.hosts.round_trips import Moment, Span, divide, intervals_of, trips_of
from vftrace.analysis.hosts.service import SEVERAL_FIT
from vftrace.cli import main
from vftrace.events import wire
from vftrace.model.report import PingRecording, RoundTrips
from vftrace.ping import histogram
from vftrace.ping.histogram import ERROR, LARGEST_NS, LAST_BUCKET, Histogram, bucket_of, middle_of
from vftrace.ping.intervals import INTERVAL_NS, Interval
from vftrace.ping.journal import Journal
from vftrace.ping.ledger import Ledger

US, MS, SECOND = 10**3, 10**6, 10**9
TIMEOUT = SECOND
SCHEMA = json.loads((Path(__file__).parents[2] / "vftrace" / "report.schema.json").read_text())
DURATIONS = st.integers(0, 20 * SECOND)


# -- the histogram --------------------------------------------------------------------------------


def true_quantile(durations: Sequence[int], share: float) -> int:
    """The least of them that `share` of all do not exceed."""
    return sorted(durations)[max(math.ceil(share * len(durations)) - 1, 0)]


def near(told: int | None, true: int) -> bool:
    return told is not None and abs(told - true) <= true * ERROR


def histogram_of(durations: Sequence[int]) -> Histogram:
    made = Histogram()
    for ns in durations:
        made.add(ns)
    return made


@given(st.lists(DURATIONS, min_size=1), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_a_quantile_is_right_within_the_error(durations: list[int], share: float) -> None:
    found = histogram_of(durations)
    assert ERROR < 0.016
    assert near(found.quantile_ns(share), true_quantile(durations, share))
    assert (found.least_ns, found.most_ns) == (min(durations), max(durations))
    assert (found.count, found.sum_ns) == (len(durations), sum(durations))
    again = Histogram.of(found.text, found.least_ns, found.most_ns, found.sum_ns)
    assert (again.counts, again.count) == (found.counts, found.count)


@given(st.integers(0, LARGEST_NS))
def test_every_duration_has_one_bucket_and_its_middle_is_near(ns: int) -> None:
    assert 0 <= bucket_of(ns) <= LAST_BUCKET
    assert bucket_of(ns) <= bucket_of(min(ns + 1, LARGEST_NS)) <= bucket_of(ns) + 1
    assert near(middle_of(bucket_of(ns)), ns)
    assert bucket_of(middle_of(bucket_of(ns))) == bucket_of(ns)


def test_a_histogram_is_short_whatever_is_counted() -> None:
    """From 1 us to 10 s, each 0.01 % longer than the one before: 160,000 durations, 748 buckets."""
    found, ns = Histogram(), 1_000.0
    while ns < 10 * SECOND:
        found.add(int(ns))
        ns *= 1.0001
    assert len(found.counts) <= math.log2(10**7) * 32 + 2
    assert LAST_BUCKET < 2_000


@given(st.lists(st.lists(DURATIONS, max_size=20), max_size=6))
def test_parts_add_up_to_the_whole(parts: list[list[int]]) -> None:
    whole = histogram.sum_of(histogram_of(part) for part in parts)
    at_once = histogram_of([ns for part in parts for ns in part])
    assert whole.counts == at_once.counts
    assert (whole.count, whole.sum_ns) == (at_once.count, at_once.sum_ns)
    assert (whole.least_ns, whole.most_ns) == (at_once.least_ns, at_once.most_ns)


def test_a_quantile_of_nothing_is_not_known() -> None:
    assert Histogram().quantile_ns(0.5) is None


# -- a ping of a simulated service ----------------------------------------------------------------


def pinged(
    from_ns: int,
    until_ns: int,
    every_ns: int,
    took: Callable[[int], int | None],
    target: str = "192.0.2.9",
) -> list[events.Event]:
    """The recorded events of a ping whose probe that was sent at t is answered after `took(t)` ns, if ever."""
    ledger, journal = Ledger(every_ns, TIMEOUT), Journal(77)
    written: list[events.Event] = [
        events.PingSettings(
            from_ns, 0, events.COLLECTOR, 77, target, target, "icmp", 0, every_ns, TIMEOUT, "fifo"
        )
    ]

    def write_down(at_ns: int) -> None:
        written.extend(journal.round_trips(at_ns, each) for each in ledger.take_intervals())

    slots = (until_ns - from_ns) // every_ns
    for slot in range(slots):
        sent = from_ns + slot * every_ns
        ledger.sent(slot, 0, sent, sent)
        trip = took(sent)
        if trip is not None and trip <= TIMEOUT:
            ledger.replied(slot, sent + trip)
        ledger.advance(sent)
        write_down(sent)
    ledger.stopped(slots)
    ledger.advance(until_ns + 2 * TIMEOUT)
    ledger.close()
    write_down(until_ns + 2 * TIMEOUT)
    return [wire.decode(wire.encode(event)) for event in written]


def test_every_probe_is_in_one_interval() -> None:
    """5 s of probes every 7 ms, each tenth lost: all are counted, by 200 ms of their sending."""

    def took(sent: int) -> int | None:
        return None if sent // (7 * MS) % 10 == 0 else 100 * US + sent % (3 * MS)

    found = pinged(7 * SECOND, 12 * SECOND, 7 * MS, took)
    intervals = intervals_of(PingRecording("boot", (), tuple(found)))
    sent = range(7 * SECOND, 7 * SECOND + 5 * SECOND // (7 * MS) * 7 * MS, 7 * MS)
    answered = [trip for at in sent if (trip := took(at)) is not None]
    assert sum(trips_of(each).count for each in intervals) == len(answered)
    assert sum(trips_of(each).sum_ns for each in intervals) == sum(answered)
    assert sum(each.lost for each in intervals) == len(sent) - len(answered)
    assert len(intervals) == 25
    for each in intervals:
        mine = [at for at in sent if at // INTERVAL_NS == each.from_ns // INTERVAL_NS]
        assert (each.from_ns, each.until_ns) == (mine[0], mine[-1])
        assert trips_of(each).count + each.lost == len(mine)


def test_an_interval_is_written_when_its_last_probe_is_settled() -> None:
    """Those that wait are in none; what is never answered is lost after the timeout."""
    ledger = Ledger(100 * MS, TIMEOUT)
    for slot in range(5):
        ledger.sent(slot, 0, slot * 100 * MS, slot * 100 * MS)
    ledger.replied(1, 100 * MS + MS)
    ledger.advance(500 * MS)
    assert ledger.take_intervals() == []
    ledger.advance(3 * SECOND)
    first, then = ledger.take_intervals()
    assert (first.lost, first.trips.count, then.lost) == (1, 1, 2)
    ledger.close()
    [last] = ledger.take_intervals()
    assert (last.from_ns, last.until_ns, last.lost) == (400 * MS, 400 * MS, 1)


def test_what_no_ping_writes_is_left_out() -> None:
    """A file may hold anything: none of these is counted, and none is an error."""
    good = events.PingRoundTrips(
        0, 0, events.COLLECTOR, 1, 0, 5, 0, 100, 100, 100, f"{bucket_of(100)}:1"
    )
    bad: list[dict[str, Any]] = [
        {"trips": "1"},
        {"trips": "1:2:3"},
        {"trips": "a:b"},
        {"trips": f"{bucket_of(100)}:1 {bucket_of(100)}:1"},
        {"trips": f"{LAST_BUCKET + 1}:1"},
        {"trips": "-1:1"},
        {"trips": f"{bucket_of(100)}:0"},
        {"trips": f"{bucket_of(100)}:-5"},
        {"trips": f"{bucket_of(100)}:1{'0' * 400}"},
        {"trips": "9" * 5_000 + ":1"},
        {"trips": "1:1 " * 100_000},
        {"trips": ""},
        {"least_ns": -1},
        {"least_ns": 200},
        {"most_ns": 10**30},
        {"lost": -1},
        {"until_ns": -1},
    ]
    made = [structs.replace(good, **change) for change in bad]
    assert intervals_of(PingRecording("boot", (), tuple(made))) == []
    assert len(intervals_of(PingRecording("boot", (), (*made, good)))) == 1


# -- the split by time ----------------------------------------------------------------------------


def interval(from_ns: int, until_ns: int, ns: int) -> events.PingRoundTrips:
    return written(Interval(from_ns, until_ns, 0, histogram_of([ns])))


def written(found: Interval) -> events.PingRoundTrips:
    event = Journal(77).round_trips(0, found)
    assert isinstance(event, events.PingRoundTrips)
    return event


def at(ns: int) -> Moment:
    return Moment(ns, ns)


MIGRATION = Span(at(100 * SECOND), at(110 * SECOND))


def worst(part: RoundTrips | None) -> int | None:
    return None if part is None else part.longest_ns


@pytest.mark.parametrize(
    ("from_ns", "until_ns", "part"),
    [
        (100 * SECOND - 200 * MS, 100 * SECOND - 1, "before"),
        (100 * SECOND - 1, 100 * SECOND, None),
        (100 * SECOND - 100 * MS, 100 * SECOND + 100 * MS, None),
        (100 * SECOND, 100 * SECOND + 200 * MS, "during"),
        (110 * SECOND - 200 * MS, 110 * SECOND - 1, "during"),
        (110 * SECOND - 100 * MS, 110 * SECOND + 100 * MS, None),
        (110 * SECOND, 110 * SECOND + 200 * MS, "after"),
        (40 * SECOND, 40 * SECOND + 200 * MS, "before"),
        (40 * SECOND - 1, 40 * SECOND + 200 * MS, None),
        (170 * SECOND - 200 * MS, 170 * SECOND - 1, "after"),
        (170 * SECOND - 200 * MS, 170 * SECOND, None),
    ],
)
def test_an_interval_across_a_boundary_counts_for_no_side(
    from_ns: int, until_ns: int, part: str | None
) -> None:
    found = divide([interval(from_ns, until_ns, 5)], MIGRATION)
    assert [name for name, each in found.parts() if each is not None] == ([part] if part else [])


@given(
    st.lists(st.integers(30 * SECOND, 180 * SECOND), max_size=30),
    st.integers(0, 3 * SECOND),
    st.integers(0, 3 * SECOND),
    st.floats(0, 1),
)
def test_an_unsure_clock_puts_nothing_on_the_wrong_side(
    starts: list[int], early: int, late: int, where: float
) -> None:
    """Wherever in its bounds the migration truly was: what is counted for a part was sent in it."""
    start = Moment(100 * SECOND - early, 100 * SECOND + late)
    end = Moment(110 * SECOND - early, 110 * SECOND + late)
    moved = int(-early + where * (early + late))
    begun, ended = 100 * SECOND + moved, 110 * SECOND + moved
    intervals = [interval(each, each + 199 * MS, each) for each in starts]
    found = divide(intervals, Span(start, end))
    for part, first, last in (
        (found.before, begun - 60 * SECOND, begun),
        (found.during, begun, ended),
        (found.after, ended, ended + 60 * SECOND),
    ):
        if part is not None:
            assert part.least_ns is not None
            assert part.longest_ns is not None
            # Each round trip here is as long as its interval's begin is late.
            assert first <= part.least_ns
            assert part.longest_ns + 199 * MS < last


def test_a_migration_back_is_neither_before_nor_after() -> None:
    there = Span(at(100 * SECOND), at(110 * SECOND))
    back = Span(at(130 * SECOND), at(140 * SECOND))
    intervals = [interval(s * SECOND, s * SECOND + MS, s) for s in (99, 105, 120, 135, 150)]
    first, second = divide(intervals, there, [back]), divide(intervals, back, [there])
    assert [worst(part) for _, part in first.parts()] == [99, 105, 120]
    assert [worst(part) for _, part in second.parts()] == [120, 135, 150]


def test_a_migration_that_runs_has_no_after() -> None:
    found = divide(
        [interval(s * SECOND, s * SECOND, s) for s in (99, 105, 120)],
        Span(at(100 * SECOND), at(110 * SECOND), running=True),
    )
    assert [worst(part) for _, part in found.parts()] == [99, 105, None]


def test_a_part_in_which_nothing_was_answered() -> None:
    lost = written(Interval(105 * SECOND, 105 * SECOND + MS, 3))
    assert divide([lost], MIGRATION).during == RoundTrips(0, 3, None, None, None, None, None)


# -- beside the recordings of hosts ---------------------------------------------------------------

CUT = "libvirt"
EVERY = 10 * MS


class Service:
    """Slower while a migration lasts, and a little slower after it; silent while no vCPU runs."""

    def __init__(self, clock_ns: int) -> None:
        m = halves(CUT).migration
        assert m.ended_at_ns is not None
        assert m.stopped_at_ns is not None
        assert m.downtime.vcpu_ns is not None
        self.start, self.end = m.started_at_ns + clock_ns, m.ended_at_ns + clock_ns
        self.stop = m.stopped_at_ns + clock_ns
        self.ran = self.stop + m.downtime.vcpu_ns

    def took(self, sent: int) -> int | None:
        """The three ranges do not touch, so that a round trip shows when it was."""
        noise = sent // EVERY * 7919 % 1000
        if sent < self.start:
            return 200 * US + noise * 100
        if sent >= self.end:
            return 1 * MS + noise * US
        return None if self.stop <= sent < self.ran else 5 * MS + noise * 5 * US

    def sent(self, first: int, last: int) -> list[int]:
        """When probes are sent from `first` to `last`."""
        begin = self.start - 3 * SECOND
        return [t for t in range(begin, begin + self.slots() * EVERY, EVERY) if first <= t < last]

    def slots(self) -> int:
        return (self.end - self.start + 6 * SECOND) // EVERY

    def events(self, target: str = "192.0.2.9") -> list[events.Event]:
        """Recorded from 3 s before to 3 s after."""
        begin = self.start - 3 * SECOND
        return pinged(begin, begin + self.slots() * EVERY, EVERY, self.took, target)


def held_against(service: Service, part: RoundTrips, first: int, last: int, unsure: int) -> None:
    """All probes of the part are in it, but those in the intervals at its ends."""
    sent = service.sent(first, last)
    trips = sorted(trip for t in sent if (trip := service.took(t)) is not None)
    edge = 2 * (unsure + INTERVAL_NS) // EVERY + 2
    assert len(sent) - edge <= part.answered + part.lost <= len(sent)
    assert part.least_ns is not None
    assert part.longest_ns is not None
    assert trips[0] <= part.least_ns <= part.longest_ns <= trips[-1]
    inner = [t for t in sent if first + unsure + INTERVAL_NS <= t < last - unsure - INTERVAL_NS]
    lost = sum(service.took(t) is None for t in inner)
    assert part.lost >= lost
    if edge < len(sent) // 10:
        for share, told in ((0.5, part.half_ns), (0.9, part.p90_ns)):
            # What is left out at the ends moves a quantile by so many places at most.
            place = int(share * len(trips))
            low = trips[max(place - edge, 0)]
            high = trips[min(place + edge, len(trips) - 1)]
            assert told is not None
            assert low * (1 - ERROR) <= told <= high * (1 + ERROR)


@pytest.mark.parametrize("where", ["source", "destination", "elsewhere"])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(errors=st.tuples(*[st.integers(1_000, 300 * MS)] * 3), wrong=st.sampled_from([-1, 0, 1]))
def test_each_part_has_the_round_trips_of_its_time(
    where: str, errors: tuple[int, int, int], wrong: int
) -> None:
    """`wrong`: the destination's and the pinger's wall clocks are early or late by all that their bounds admit."""
    cut = halves(CUT)
    shift, third = 100 * SECOND, 7_000 * SECOND
    boot_id, clock = {
        "source": ("boot-a", 0),
        "destination": ("boot-b", shift),
        "elsewhere": ("boot-c", third),
    }[where]
    offset = cut.whole.snapshot.clock[0][1]
    service = Service(clock)
    samples = ((service.stop, offset - clock + wrong * errors[2], errors[2]),)
    ping = PingRecording(boot_id, samples, tuple(service.events()))
    found = only_one(join(cut.boots(shift, errors[:2], wrong * errors[1]), [ping]))
    trips = found.round_trips
    assert trips is not None
    assert trips.before is not None
    assert trips.after is not None
    unsure = {"source": 0, "destination": sum(errors[:2]), "elsewhere": errors[0] + errors[2]}
    # What clocks may gain or lose while a migration of seconds lasts is a few ms.
    held = 2 * unsure[where] + 50 * MS
    begin, last = service.start - 3 * SECOND, service.end + 3 * SECOND
    held_against(service, trips.before, begin, service.start, held)
    held_against(service, trips.after, service.end, last, held)
    if trips.during is None:
        assert service.end - service.start < 2 * (held + INTERVAL_NS)
    else:
        held_against(service, trips.during, service.start, service.end, held)


def test_a_clock_that_nothing_bounds_gives_nothing() -> None:
    service = Service(0)
    ping = PingRecording("boot-c", ((0, 0, UNSYNCHRONISED_NS),), tuple(service.events()))
    found = only_one(join(halves(CUT).boots(0, (1000, 1000)), [ping]))
    assert found.round_trips is None


@pytest.mark.parametrize("target", ["192.0.2.9", "the-name"])
def test_of_two_vms_that_move_at_once_the_named_one(target: str) -> None:
    """A ping names no VM. The second VM is the first one again under another name."""
    (host,) = [h for h in halves(CUT).boots(0, (1000, 1000)) if h.name == "alpha"]
    (m,) = host.snapshot.migrations
    two = (
        structs.replace(m, name="other", uuid="1"),
        structs.replace(m, name="the-name", uuid="2"),
    )
    host = structs.replace(host, snapshot=structs.replace(host.snapshot, migrations=two))
    ping = PingRecording("boot-a", (), tuple(Service(0).events(target)))
    other, named = join([host], [ping])
    assert other.round_trips is None
    assert (named.round_trips is not None) == (target == "the-name")
    assert (SEVERAL_FIT in named.warnings) == (target != "the-name")
    assert named.warnings.count(SEVERAL_FIT) <= 1


def test_of_two_pings_the_one_with_more_probes() -> None:
    service = Service(0)
    whole = tuple(service.events())
    short = PingRecording("boot-a", (), whole[: len(whole) // 2])
    boots = halves(CUT).boots(0, (1000, 1000))
    best = only_one(join(boots, [PingRecording("boot-a", (), whole)])).round_trips
    for pings in (
        [short, PingRecording("boot-a", (), whole)],
        [PingRecording("boot-a", (), whole), short],
    ):
        assert only_one(join(boots, pings)).round_trips == best


def report(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["report", *map(str, words)]) == 0
    return capsys.readouterr().out


def files(tmp_path: Path) -> list[Path]:
    cut, shift = halves(CUT), 100 * SECOND
    return [
        write(
            tmp_path / name,
            host_of(name, boot_id, cut.host, by),
            [shifted(record, by, 1_000) for record in records],
        )
        for name, boot_id, by, records in (
            ("a.vft", "boot-a", 0, cut.source),
            ("b.vft", "boot-b", shift, cut.destination),
        )
    ]


def test_the_outputs_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = Service(0)
    ping = write(
        tmp_path / "ping.vft",
        structs.replace(host_of("a.vft", "boot-a", halves(CUT).host), probes=()),
        [wire.encode(event) for event in service.events()],
    )
    given = [*files(tmp_path), ping]
    said: dict[str, Any] = json.loads(report(capsys, *given, "--format", "json"))
    jsonschema.validate(said, SCHEMA)
    (migration,) = said["migrations"]
    parts = migration["round_trips"]
    assert parts["before"]["lost"] == parts["after"]["lost"] == 0
    assert 200 * US <= parts["before"]["half_ns"] <= 300 * US
    assert MS <= parts["after"]["half_ns"] <= 2 * MS
    text = report(capsys, *given).splitlines()
    head = text.index("Brownout of the service: round trips of the ping")
    assert text[head + 1].split()[:3] == ["probes", "sent", "answered"]
    for line, name in zip(text[head + 2 :], ("before", "during", "after"), strict=False):
        assert line.split()[0] == name
        if parts[name] is not None:
            assert line.split()[1] == str(parts[name]["answered"])
            assert line.split()[-1] == str(parts[name]["lost"])
    assert "round trips of the ping" in report(capsys, *given, "--format", "html")


def test_a_ping_recorded_before_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recordings of vftrace 0.2.0 have gaps and totals only."""
    service = Service(0)
    head = (events.COLLECTOR, 77)
    begin, last = service.start - 3 * SECOND, service.end + 3 * SECOND
    old = [
        events.PingSettings(begin, 0, *head, "g", "192.0.2.9", "icmp", 0, EVERY, TIMEOUT, "fifo"),
        events.PingSummary(last, 1, *head, begin, last, 2000, 2000, *[0] * 14),
        events.End(last, 2, *head, {}),
    ]
    ping = write(
        tmp_path / "ping.vft",
        structs.replace(host_of("a.vft", "boot-a", halves(CUT).host), probes=()),
        [wire.encode(event) for event in old],
    )
    said: dict[str, Any] = json.loads(report(capsys, *files(tmp_path), ping, "--format", "json"))
    jsonschema.validate(said, SCHEMA)
    (migration,) = said["migrations"]
    assert migration["round_trips"] is None
    assert migration["downtime"]["service_ns"] == 0
