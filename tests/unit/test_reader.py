# SPDX-License-Identifier: MIT
"""The reader's loop, with a source that this test fills."""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from msgspec import structs

from tests.unit.test_messages import HOST
from vftrace import events
from vftrace.collect.backlog import OBJECT_BYTES, Backlog
from vftrace.collect.batch import Batch
from vftrace.collect.clock import boottime_ns
from vftrace.collect.live import LiveSource
from vftrace.collect.messages import Kind, Link, Message
from vftrace.collect.reader import Reader
from vftrace.events import wire
from vftrace.events.layout import PIECE_WORDS
from vftrace.events.layout import Kind as RecordKind

LOUD, QUIET = 11, 22


@dataclass
class Source:
    """Gives a batch for each read, then nothing; knows how often it was read and what was dropped."""

    batches: list[list[bytes]]
    host: Any = HOST
    reads: int = 0
    dropped: Counter[int] = field(default_factory=Counter)
    closed: bool = False
    waits: list[int] = field(default_factory=list)

    def read(self, timeout_ms: int) -> Batch:
        self.reads += 1
        self.waits.append(timeout_ms)
        if self.batches:
            return Batch(self.batches.pop(0))
        time.sleep(0.001)
        return Batch()

    def count_dropped(self, dropped: Counter[int]) -> None:
        self.dropped.update(dropped)

    def close(self) -> Batch:
        self.closed = True
        return Batch([wire.encode(events.End(9, 0, events.COLLECTOR, 1, streams={}))])


def piece(tgid: int, seq: int) -> bytes:
    body = struct.pack("<QQIHH", 5, 0, 1, PIECE_WORDS, 0) + bytes(range(256)) * (PIECE_WORDS // 32)
    size = wire.HEADER.size + len(body)
    return wire.HEADER.pack(1, seq, size, RecordKind.PIECE, 0, tgid, 1) + body


def control(tgid: int, seq: int) -> bytes:
    return wire.encode(events.Exit(1, seq, tgid, 1, 0))


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Link, Link]]:
    monkeypatch.setattr("vftrace.collect.messages._BUFFER", 1 << 17)
    ends = [Link(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    yield ends[0], ends[1]
    for end in ends:
        end.close()


def run(source: Source, link: Link, limit: int) -> threading.Thread:
    reader = Reader(cast(LiveSource, source), link)
    reader._backlog = Backlog(limit)
    thread = threading.Thread(target=reader.run)
    thread.start()
    return thread


def flat(batches: Iterable[list[bytes]]) -> list[bytes]:
    return [record for batch in batches for record in batch]


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def rest_of(link: Link) -> list[bytes]:
    """Say CLOSE, and take everything up to END."""
    link.send(Kind.CLOSE)
    records: list[bytes] = []
    deadline = time.monotonic() + 10
    while True:
        assert time.monotonic() < deadline
        message: Message | None = link.receive()
        if message is None:
            time.sleep(0.001)
        elif message.kind is Kind.END:
            return records
        elif message.kind is Kind.RECORDS:
            records += wire.split(message.data)


def test_a_main_process_that_does_not_read_costs_the_loudest_vms_bitmaps(
    links: tuple[Link, Link],
) -> None:
    ours, its = links
    rounds = 40
    quiet = [[piece(QUIET, n), control(QUIET, rounds + n)] for n in range(rounds)]
    loud = [[piece(LOUD, 101 * n + i) for i in range(100)] for n in range(rounds)]
    ends = [[control(LOUD, 101 * n + 100)] for n in range(rounds)]
    source = Source([flat(parts) for parts in zip(quiet, loud, ends, strict=True)])
    thread = run(source, its, 100 * (len(piece(LOUD, 0)) + OBJECT_BYTES))
    until(lambda: not source.batches)
    time.sleep(0.05)
    records = rest_of(ours)
    thread.join(10)
    assert source.closed
    assert wire.kind_of(records[-1]) == RecordKind.END
    assert [r for r in records if wire.tgid_of(r) == QUIET] == flat(quiet)
    of_loud = [r for r in records if wire.tgid_of(r) == LOUD]
    assert [r for r in of_loud if wire.kind_of(r) != RecordKind.PIECE] == flat(ends)
    kept = sum(wire.kind_of(r) == RecordKind.PIECE for r in of_loud)
    assert source.dropped == {LOUD: rounds * 100 - kept}
    assert kept < rounds * 100


def test_where_nothing_may_be_dropped_the_source_is_read_no_further(
    links: tuple[Link, Link],
) -> None:
    ours, its = links
    batches = [[control(LOUD, n * 2000 + i) for i in range(2000)] for n in range(60)]
    everything = flat(batches)
    source = Source(list(batches))
    thread = run(source, its, 2000 * (len(everything[0]) + OBJECT_BYTES))
    until(lambda: source.reads > 3)
    time.sleep(0.2)
    stopped_at = source.reads
    time.sleep(0.2)
    assert source.reads == stopped_at < 60
    records: list[bytes] = []
    while len(records) < len(everything):
        message = ours.receive()
        records += wire.split(message.data) if message is not None else []
    records += rest_of(ours)
    thread.join(10)
    assert records[:-1] == everything
    assert not source.dropped


def test_a_source_is_waited_for_only_where_nothing_else_waits(links: tuple[Link, Link]) -> None:
    ours, its = links
    source = Source([[control(QUIET, 0)]])
    thread = run(source, its, 1 << 20)
    until(lambda: source.reads > 3)
    assert set(source.waits) == {20}
    rest_of(ours)
    thread.join(10)


def test_the_main_process_has_gone(links: tuple[Link, Link]) -> None:
    ours, its = links
    source = Source([])
    reader = Reader(cast(LiveSource, source), its)
    ours.close()
    with pytest.raises((EOFError, OSError)):
        reader.run()


def test_a_message_that_is_no_record_has_its_time_too(links: tuple[Link, Link]) -> None:
    """The host changes when probes come and go; a main process that does not read is late from then on."""
    ours, its = links
    source = Source([], host=HOST)
    thread = run(source, its, 1 << 20)
    before = boottime_ns()
    source.host = structs.replace(HOST, kernel="changed")
    until(lambda: ours.next_at_ns() is not None)
    at_ns = ours.next_at_ns()
    rest_of(ours)
    thread.join(10)
    assert at_ns is not None
    assert before <= at_ns <= boottime_ns()
