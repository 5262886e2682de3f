# SPDX-License-Identifier: MIT
"""What the reader holds while the main process is late."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from vftrace import events
from vftrace.collect.backlog import OBJECT_BYTES, Backlog
from vftrace.events import wire
from vftrace.events.layout import Kind

LOUD, QUIET = 11, 22


def piece(tgid: int, seq: int = 0) -> bytes:
    """A part of a bitmap of 512 words, all of which have a bit."""
    body = struct.pack("<QQII", 5, 0, 1, 512)
    for block in range(32):
        body += struct.pack("<Q", block | 0xFFFF << 16) + bytes(range(1, 129))
    head = (1, seq, wire.HEADER.size + len(body), Kind.BITMAP, 0, tgid, 1)
    return wire.HEADER.pack(*head) + body


def control(tgid: int, seq: int = 0) -> bytes:
    return wire.encode(events.Exit(1, seq, tgid, 1, 0))


def drained(backlog: Backlog, most: int = 1 << 30) -> list[bytes]:
    found = []
    while backlog:
        found += backlog.take(most)[1]
    return found


def test_records_come_out_as_they_went_in_with_the_time_they_were_taken() -> None:
    backlog = Backlog()
    first, second = [control(LOUD, n) for n in range(10)], [piece(QUIET)]
    backlog.add(100, first)
    backlog.add(200, second)
    took = []
    while backlog:
        took.append(backlog.take(len(first[0]) * 3))
    assert [record for _, records in took for record in records] == first + second
    assert [at_ns for at_ns, _ in took] == [100, 100, 100, 100, 200]
    assert all(len(records) <= 3 for _, records in took)


def test_the_loudest_loses_its_pieces_and_nobody_else_anything() -> None:
    limit = 100 * (len(piece(LOUD)) + OBJECT_BYTES)
    backlog = Backlog(limit)
    quiet = [piece(QUIET, n) for n in range(10)] + [control(QUIET, 10)]
    backlog.add(1, quiet)
    loud_control = []
    for n in range(0, 300, 3):
        backlog.add(n, [piece(LOUD, n), piece(LOUD, n + 1), control(LOUD, n + 2)])
        loud_control.append(control(LOUD, n + 2))
        assert not backlog.full
    kept = drained(backlog)
    assert [r for r in kept if wire.tgid_of(r) == QUIET] == quiet
    assert [r for r in kept if wire.kind_of(r) == Kind.EXIT and wire.tgid_of(r) == LOUD] == (
        loud_control
    )
    pieces = sum(wire.tgid_of(r) == LOUD and wire.kind_of(r) == Kind.BITMAP for r in kept)
    assert backlog.take_dropped() == {LOUD: 200 - pieces}
    assert not backlog.take_dropped()
    assert 0 < pieces < 200


def test_a_backlog_of_control_records_is_full_and_loses_nothing() -> None:
    record = control(LOUD)
    backlog = Backlog(10 * (len(record) + OBJECT_BYTES))
    backlog.add(1, [record] * 10)
    assert not backlog.full
    backlog.add(1, [record])
    assert backlog.full
    backlog.take(len(record))
    assert not backlog.full
    assert drained(backlog) == [record] * 10
    assert not backlog.take_dropped()


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), max_size=120),
    st.integers(500, 40_000),
)
def test_every_record_is_kept_or_counted_and_control_is_always_kept(
    steps: list[tuple[int, bool, bool]], limit: int
) -> None:
    backlog = Backlog(limit)
    sent, got = [], []
    for number, (tgid, bulk, read) in enumerate(steps):
        record = piece(tgid, number) if bulk else control(tgid, number)
        sent.append(record)
        backlog.add(number, [record])
        if read and backlog:
            got += backlog.take(1)[1]
    got += drained(backlog)
    assert got == sorted(got, key=lambda record: wire.HEADER.unpack_from(record)[1])
    lost = [record for record in sent if record not in got]
    assert all(wire.kind_of(record) == Kind.BITMAP for record in lost)
    dropped = backlog.take_dropped()
    by_process = dict.fromkeys(dropped, 0)
    for record in lost:
        by_process[wire.tgid_of(record)] += 1
    assert by_process == dict(dropped)
    assert not backlog
    assert not backlog.full
    assert backlog._size == 0
