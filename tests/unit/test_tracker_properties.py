# SPDX-License-Identifier: MIT
"""Whatever events come, in whatever order: never an exception, never a time that runs backwards, sums that
agree, and no more memory than there is to remember."""

import json
import random
import struct
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from vftrace import events
from vftrace.analysis import process as process_module
from vftrace.analysis.process import Process
from vftrace.analysis.tracker import MAX_ENDED_PROCESSES, Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.events import COLLECTOR, Event, wire
from vftrace.events.layout import BITMAP_WORDS, Kind
from vftrace.model import figures
from vftrace.model.host import HostInfo
from vftrace.model.migration import Snapshot
from vftrace.model.report import live_report
from vftrace.outputs.report.json import report_json

RECORDINGS = Path(__file__).parents[1] / "golden" / "recordings"
REPORT = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "vftrace" / "report.schema.json").read_text())
)
HOST = HostInfo("host", "boot", "kernel", "0", 0, ())
RUNS = (
    "completed-fast",
    "postcopy",
    "dirty-ring",
    "dest-killed-blackout",
    "libvirt",
    "paused-before",
)
SLOW = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@cache
def _golden(name: str) -> tuple[Event, ...]:
    return tuple(events_of(Recording(RECORDINGS / f"{name}.vft.gz")))


def _is_sane(tracker: Tracker) -> None:
    """What must hold of every snapshot."""
    snapshot = tracker.snapshot()
    written = json.dumps(report_json(live_report(HOST, snapshot)), allow_nan=False)
    REPORT.validate(json.loads(written))
    for migration in snapshot.migrations:
        checkpoints = migration.downtime.checkpoints
        assert all(c.ns is None or c.ns >= 0 for c in checkpoints)
        passed = [c.at_ns for c in checkpoints if c.at_ns is not None]
        assert passed == sorted(passed)
        if migration.downtime.vcpu_ns is not None:
            assert migration.downtime.vcpu_ns >= 0
            assert sum(c.ns or 0 for c in checkpoints) == migration.downtime.vcpu_ns
        by_role = defaultdict(list)
        for phase in migration.phases:
            assert phase.end_at_ns is None or phase.end_at_ns >= phase.start_at_ns
            by_role[phase.role].append(phase)
        for phases in by_role.values():
            for before, after in pairwise(phases):
                assert before.end_at_ns is not None
                assert before.end_at_ns <= after.start_at_ns
        if migration.ended_at_ns is not None:
            assert migration.ended_at_ns >= migration.started_at_ns
        for round_ in migration.rounds:
            assert round_.duration_ns >= 0
            counts = (round_.new_pages, round_.redirtied_pages, round_.logged_pages)
            assert all(n is None or n >= 0 for n in (*counts, round_.sent_bytes))
            if round_.new_pages is not None and round_.redirtied_pages is not None:
                assert round_.redirtied_pages <= round_.new_pages
        for rate in (figures.dirty_rate(migration), figures.mean_dirty_rate(migration)):
            assert rate is None or rate >= 0
        for amount in (migration.channel.bytes, migration.channel.state_bytes):
            assert amount is None or amount >= 0
        assert (migration.outcome is None) <= (migration.cause is None)


def _play(some: list[Event]) -> Snapshot:
    tracker = Tracker()
    for i, event in enumerate(some):
        tracker.feed(event)
        if i % 97 == 0:
            _is_sane(tracker)
    _is_sane(tracker)
    tracker.finish()
    _is_sane(tracker)
    return tracker.snapshot()


@SLOW
@given(st.sampled_from(RUNS), st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_golden_events_shuffled_dropped_and_doubled(
    name: str, seed: int, dropped: float, doubled: float
) -> None:
    chance = random.Random(seed)
    some = [event for event in _golden(name) if chance.random() >= dropped * 0.5]
    some += [event for event in some if chance.random() < doubled * 0.5]
    chance.shuffle(some)
    _play(some)


@SLOW
@given(st.sampled_from(RUNS), st.integers(0, 2**32), st.integers(1, 40))
def test_golden_events_a_little_out_of_order(name: str, seed: int, reach: int) -> None:
    """Swapped among neighbours only, so that most of it still makes sense."""
    chance = random.Random(seed)
    places = [(i + chance.randrange(reach), event) for i, event in enumerate(_golden(name))]
    _play([event for _, event in sorted(places, key=lambda place: place[0])])


@SLOW
@given(st.sampled_from(RUNS), st.integers(0, 2**32), st.integers(1, 10**9))
def test_golden_events_with_times_that_jump(name: str, seed: int, most: int) -> None:
    """In their order, but every time in them is off by up to `most` ns: clocks that do not agree."""
    chance = random.Random(seed)

    def moved(event: Event) -> Event:
        times = {
            name: max(0, getattr(event, name) + chance.randrange(-most, most))
            for name in event.__struct_fields__
            if name.endswith("_ns") and getattr(event, name)
        }
        return structs.replace(event, **times)

    _play([moved(event) for event in _golden(name)])


def test_the_same_events_give_the_same_result() -> None:
    for name in RUNS:
        assert _play(list(_golden(name))) == _play(list(_golden(name)))


# -- events made up -----------------------------------------------------------------------------

# Few processes, threads, slots and fds, so that events meet; extreme numbers among small ones. Made from a
# seed: hypothesis' own strategies would take minutes for as many.
EXTREME = ((1 << 64) - 1, (1 << 63) - 1, (1 << 32) - 1, 65535)
IDENTITY = {"slot", "fd", "op", "flags", "data_fd"}
KERNEL = [event for kind, event in wire.CLASSES.items() if kind < Kind.TICK]
OWN = [
    event
    for event in vars(events).values()
    if isinstance(event, type) and issubclass(event, Event) and event not in (*KERNEL, Event)
]


def _value(chance: random.Random, name: str, hint: Any) -> Any:
    if name in ("tgid", "tid", "pid", "sender_tid"):
        return chance.randint(1, 3)
    if name in IDENTITY:
        return chance.randint(0, 5)
    if name.endswith("_ns"):
        return chance.choice([*(n * 10**8 for n in range(50)), EXTREME[0]])
    if name == "bits":
        return chance.choice([0, 1, chance.getrandbits(70), (1 << 32768) - 1])
    if name == "words":
        return BITMAP_WORDS
    if name == "entries":  # a word, and a run of ones
        word, ones = 1 << 16, 255 << 32 | 1
        return struct.pack("<3Q", word, chance.getrandbits(64), ones)[: chance.choice((0, 16, 24))]
    if name in ("ret", "error"):  # the only ones that the wire lets be negative
        return chance.choice([0, 0, 0, -14, -32, 5, -(1 << 31)])
    if hint is bool:
        return chance.random() < 0.5
    if hint == int | None:
        hint = chance.choice([int, None])
    if hint == str | None:
        hint = chance.choice([str, None])
    if hint is None:
        return None
    if hint is str:
        return chance.choice(["", "tcp", "file", "a", "b"])
    if get_origin(hint) is tuple:
        return tuple(chance.choice([0, 7, *EXTREME]) for _ in range(chance.randrange(17)))
    if get_origin(hint) is dict:
        return {chance.randint(1, 3): chance.randint(0, 12) for _ in range(3)}
    assert hint is int, (name, hint)
    return chance.choice([*range(13), *EXTREME])


HINTS = {kind: get_type_hints(kind) for kind in (*KERNEL, *OWN)}


def _story(chance: random.Random, count: int) -> list[Event]:
    """Events of any kind; most have the number that their stream expects, so that they are not refused."""
    after: dict[int, int] = defaultdict(int)
    story = []
    for _ in range(count):
        kind = chance.choice([*KERNEL, *OWN])
        fields = {name: _value(chance, name, HINTS[kind][name]) for name in kind.__struct_fields__}
        if chance.random() < 0.9:
            fields["tgid"] = COLLECTOR if kind in OWN else fields["tgid"]
            fields["seq"] = after[fields["tgid"]]
            after[fields["tgid"]] += 1
        story.append(kind(**fields))
    return story


@settings(parent=SLOW, max_examples=300)
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_any_events(seed: int, count: int) -> None:
    _play(_story(random.Random(seed), count))


@settings(parent=SLOW, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from(RUNS))
def test_any_events_among_golden_ones(seed: int, name: str) -> None:
    """Nonsense with the pids, threads and times of a real migration, strewn into it."""
    chance = random.Random(seed)
    story = list(_golden(name))
    kernel = [event for event in story if event.tgid != COLLECTOR]
    for event in _story(chance, 40):
        near = chance.choice(kernel)
        if event.tgid != COLLECTOR:
            event = structs.replace(
                event, tgid=near.tgid, tid=near.tid, at_ns=near.at_ns, seq=event.seq + 10**6
            )
        story.insert(chance.randrange(len(story)), event)
    _play(story)


# -- memory ---------------------------------------------------------------------------------------


def test_pieces_that_belong_to_nothing_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process, even one whose threads come and go, sends pieces for ever and never the call's own record;
    another thread's are still counted."""
    monkeypatch.setattr(process_module, "_MAX_PENDING_PIECES", 100)
    process = Process(1, 0)
    for n in range(5000):
        process.feed(events.Piece(n, n, 1, n, n, 0, 0, 1))
        assert sum(map(len, process.pieces.values())) == process.pieces_held <= 100
    held = [events.Piece(6000, 0, 1, 2, 5999, 32768 * n, 0, 1) for n in range(3)]
    for piece in held:
        process.feed(piece)
    assert process._take_pieces(2, 5999) == held
    for n in range(500):
        process.feed(events.Piece(7000, n, 1, 3, 7000, 0, 0, 1))
        assert process.pieces_held <= 100


def test_a_log_that_is_read_for_ever_without_a_migration_is_bounded() -> None:
    """QEMU's dirty limit logs and sweeps as long as the VM lives."""
    tracker = Tracker()
    tracker.feed(events.Region(1, 0, 1, 2, 0, 1, 0, 1 << 30, 0, 0))
    for n in range(3000):
        at = 10**9 * (n + 1)
        tracker.feed(events.GetDirtyLog(at, n + 1, 1, 2, at - 1, 1, 32768, 32768, 0, 0, 0, 0))
    (session,) = tracker._processes[1].outgoing
    assert len(session.dirty_syncs) < 100
    assert tracker.snapshot().migrations == ()


def test_ended_processes_are_forgotten() -> None:
    tracker = Tracker()
    for pid in range(1, 3 * MAX_ENDED_PROCESSES):
        tracker.feed(events.VmCreated(pid, 0, pid, pid, 3))
        tracker.feed(events.Region(pid, 1, pid, pid, 0, 1, 0, 1 << 30, 0, 0))
        tracker.feed(events.Exit(pid, 2, pid, pid, 0))
    assert len(tracker._ended) == MAX_ENDED_PROCESSES
    assert tracker._processes == {}


def test_sessions_that_are_no_migrations_are_forgotten() -> None:
    """calc-dirty-rate once a minute for a year."""
    tracker = Tracker()
    seq = 0
    for n in range(1000):
        for flags in (1, 0):
            at = 60 * 10**9 * (n + 1) + flags
            tracker.feed(events.Region(at, seq, 1, 2 + n, 0, flags, 0, 1 << 30, 0, 0))
            seq += 1
    process = tracker._processes[1]
    assert len(process.outgoing) <= 65
    assert len(process.switched_on) <= 1
