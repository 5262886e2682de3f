# SPDX-License-Identifier: MIT
"""The reader of BPF ring buffers, on memory that is laid out as kernel/bpf/ringbuf.c lays it out."""

import mmap
import os
import random
import select
import struct
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from vftrace.probes.bpf import ring
from vftrace.probes.bpf.ring import PAGE, RingBuffer, RingReader, time_of

SIZE = 16 * PAGE
BUSY, DISCARD = 1 << 31, 1 << 30
NEVER = float("inf")


class Kernel:
    """The producer's end. The file stands for the map; its data is written twice, as the kernel maps it twice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.memory = mmap.mmap(self.fd, 2 * PAGE + 2 * SIZE)
        self.position = 0

    def consumed(self) -> int:
        return int(struct.unpack_from("=Q", self.memory, 0)[0])

    def send(self, record: bytes, flags: int = 0) -> bool:
        """As bpf_ringbuf_output; False if there is no room."""
        whole = 8 + len(record) + 7 & ~7
        if self.position + whole - self.consumed() > SIZE - 1:
            return False
        self.write(self.position, struct.pack("=II", len(record) | flags, 0) + record)
        self.position += whole
        struct.pack_into("=Q", self.memory, PAGE, self.position)
        return True

    def write(self, position: int, data: bytes) -> None:
        at = position % SIZE
        first, rest = data[: SIZE - at], data[SIZE - at :]
        for copy in (2 * PAGE, 2 * PAGE + SIZE):
            self.memory[copy + at : copy + at + len(first)] = first
            self.memory[copy : copy + len(rest)] = rest


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.memory.close()
    os.close(made.fd)


@pytest.fixture(params=[4 * PAGE, SIZE])
def reader(
    kernel: Kernel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RingBuffer]:
    """With a window that is smaller than the ring, and one as large."""
    monkeypatch.setattr(ring, "WINDOW_BYTES", request.param)
    made = RingBuffer(kernel.fd, SIZE)
    yield made
    made.close()


@pytest.mark.parametrize("reorders", [False, True])
def test_every_record_once_and_in_order(
    kernel: Kernel, reader: RingBuffer, reorders: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty rounds of the ring with records of all lengths, which end at its end, before it and beyond it."""
    monkeypatch.setattr(ring, "REORDERS_LOADS", reorders)
    chance = random.Random(1)
    sent: list[bytes] = []
    read: list[bytes] = []
    while kernel.position < 30 * SIZE:
        record = chance.randbytes(chance.choice((0, 1, 7, 8, 40, 100, 4096, 4152)))
        if chance.random() < 0.2 or not kernel.send(record):
            assert reader.read(read.append, NEVER)
            assert read == sent
            assert kernel.consumed() == kernel.position
        else:
            sent.append(record)


def test_a_record_that_is_still_written_holds_back_those_behind_it(
    kernel: Kernel, reader: RingBuffer
) -> None:
    read: list[bytes] = []
    kernel.send(b"first")
    at = kernel.position
    kernel.send(b"second", BUSY)
    kernel.send(b"third")
    assert reader.read(read.append, NEVER)
    assert (read, kernel.consumed()) == ([b"first"], at)
    kernel.write(at, struct.pack("=I", 6))
    assert reader.read(read.append, NEVER)
    assert read == [b"first", b"second", b"third"]


def test_a_record_that_was_discarded_is_left_out(kernel: Kernel, reader: RingBuffer) -> None:
    read: list[bytes] = []
    kernel.send(b"wrong", DISCARD)
    kernel.send(b"right")
    assert reader.read(read.append, NEVER)
    assert read == [b"right"]


def test_the_time_is_kept_and_room_is_made(
    kernel: Kernel, reader: RingBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more records than there is time for, the first are read, and the kernel has their room at once."""
    while kernel.send(bytes(8)):
        pass
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    read: list[bytes] = []
    assert not reader.read(read.append, 2)
    assert len(read) == 3 * ring.LOOK_EVERY
    assert kernel.consumed() == 16 * len(read)


def test_what_the_taker_raises_goes_through(kernel: Kernel, reader: RingBuffer) -> None:
    read: list[bytes] = []

    def take(record: bytes) -> None:
        read.append(record)
        if record == b"bad":
            raise KeyboardInterrupt

    for record in (b"good", b"bad", b"next"):
        kernel.send(record)
    with pytest.raises(KeyboardInterrupt):
        reader.read(take, NEVER)
    reader.read(take, NEVER)
    assert read == [b"good", b"bad", b"next"]


def test_records_that_come_while_others_are_read_are_read_too(
    kernel: Kernel, reader: RingBuffer
) -> None:
    """What is left for the next time is younger than the reading."""
    read: list[bytes] = []

    def take(record: bytes) -> None:
        read.append(record)
        if len(read) < 200:
            kernel.send(b"more")

    kernel.send(b"first")
    assert reader.read(take, NEVER)
    assert len(read) == 200


def test_a_record_that_is_too_long_is_an_error(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "WINDOW_BYTES", 2 * PAGE)
    reader = RingBuffer(kernel.fd, SIZE)
    kernel.send(bytes(3 * PAGE))
    with pytest.raises(ValueError, match="a record of"):
        reader.read(print, NEVER)
    reader.close()


# -- two ring buffers --------------------------------------------------------------------------


def record(at_ns: int) -> bytes:
    return struct.pack("<Q", at_ns) + bytes(24)


class Two:
    """A reader of two ring buffers, and the times of the records that it handed over."""

    def __init__(self) -> None:
        self.control, self.bulk = Kernel(), Kernel()
        self.times: list[int] = []
        rings = [RingBuffer(kernel.fd, SIZE) for kernel in (self.control, self.bulk)]
        self.reader = RingReader(rings, lambda record: self.times.append(time_of(record)))

    def close(self) -> None:
        self.reader.close()
        for kernel in (self.control, self.bulk):
            kernel.memory.close()
            os.close(kernel.fd)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    # A memfd cannot be waited for.
    waits = select.epoll
    monkeypatch.setattr(select, "epoll", lambda: mock.Mock(spec=waits))
    made = Two()
    yield made
    made.close()


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_records_of_two_ring_buffers_come_in_the_order_of_their_times(two: Two) -> None:
    begun = now_ns() - 1000
    for at in (3, 1, 7):
        two.control.send(record(begun + at))
    for at in (2, 5):
        two.bulk.send(record(begun + at))
    assert two.reader.read()
    assert [at - begun for at in two.times] == [1, 2, 3, 5, 7]
    assert two.reader.known_ns >= begun + 1000


def test_records_that_nobody_wants_are_left_out_once(two: Two) -> None:
    for at in (1, 2, 3):
        two.control.send(record(at))
    two.reader.leave_out(lambda record: time_of(record) == 2)
    two.control.send(record(2))
    assert two.reader.read()
    assert two.times == [1, 2, 3]


def test_a_record_that_is_younger_than_the_look_waits_for_the_next(two: Two) -> None:
    """An older one may still be written to the other ring buffer."""
    future = now_ns() + 10**9
    two.control.send(record(future))
    two.control.send(record(1))
    assert two.reader.read()
    assert two.times == [1]
    two.bulk.send(record(2))
    two.reader._complete_ns = future
    assert two.reader.read()
    assert two.times == [1, 2, future]


def test_what_one_ring_buffer_still_holds_limits_what_is_known(two: Two) -> None:
    """A late reader of bitmaps does not let calls overtake their bitmaps."""
    for at in range(1, 201):
        two.bulk.send(record(10 * at))
    two.control.send(record(55))
    two.control.send(record(1995))
    assert not two.reader.read(most_s=0)
    last = two.times[-1]
    assert two.times == sorted([*range(10, last + 1, 10), 55])
    assert two.reader.known_ns == last < 1995
    while not two.reader.read(most_s=0):
        pass
    assert two.times == sorted([*range(10, 2001, 10), 55, 1995])


def test_a_record_that_is_still_written_limits_what_is_known(two: Two) -> None:
    two.bulk.send(record(10))
    two.bulk.send(record(20), BUSY)
    two.control.send(record(30))
    assert two.reader.read()
    assert (two.times, two.reader.known_ns) == ([10], 10)


def test_a_slow_consumer_holds_the_reader_no_longer_than_asked(two: Two) -> None:
    """Records that were taken and not handed over come next, in order, and `known_ns` stays before them."""

    def slow(record: bytes) -> None:
        time.sleep(0.0005)
        two.times.append(time_of(record))

    two.reader._on_record = slow
    for at in range(1, 1001):
        two.control.send(record(at))
    begun = time.monotonic()
    assert not two.reader.read(most_s=0.05)
    assert time.monotonic() - begun < 0.05 + ring.LOOK_EVERY * 0.002 + 0.1
    assert two.reader.known_ns == len(two.times) < 1000
    while not two.reader.read(most_s=0.05):
        pass
    assert two.times == list(range(1, 1001))
