# SPDX-License-Identifier: MIT
"""Reads BPF ring buffers (Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c).

A ring buffer is mapped as a page with the consumer's position, a page with the producer's, and the data, twice in a
row. Positions only grow. A record is a header of eight bytes, which begins with its length and two flags, and its data.
"""

import math
import mmap
import os
import platform
import select
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence

PAGE = os.sysconf("SC_PAGESIZE")

WINDOW_BYTES = 512 << 10
"""How much of the data is mapped at a time, because a mapping counts as resident memory, and a ring buffer may have
128 MiB, which would count twice."""
LOOK_EVERY = 64
"""How many records are read between two readings of the clock."""

MAX_HELD = 16_384
"""The most records that are taken and not handed over; others stay in their ring buffers."""

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER = struct.Struct("=I")
_HEADER_BYTES = 8


REORDERS_LOADS = platform.machine() != "x86_64"

_lock = threading.Lock()
_lock.acquire()


def fence() -> None:
    """Keep earlier loads before later accesses, on processors that would reorder them.

    A release of a lock and then its acquisition do that: neither passes the other, no earlier access passes the
    release, and no later one the acquisition (Arm ARM, B2.3). x86 keeps this order by itself.
    """
    if REORDERS_LOADS:
        _lock.release()
        _lock.acquire()


class RingBuffer:
    """The consumer's end of one ring buffer."""

    def __init__(self, fd: int, size: int) -> None:
        """`size`: the size of its data in bytes, a power of two. Raises OSError."""
        self.fd = fd
        self._size = size
        self._consumer_page = mmap.mmap(fd, PAGE)
        self._producer_page = mmap.mmap(fd, PAGE, prot=mmap.PROT_READ, offset=PAGE)
        # One access of eight bytes each, which is atomic for other processors.
        self._consumer = memoryview(self._consumer_page).cast("Q")
        self._producer = memoryview(self._producer_page).cast("Q")
        self._position = self._consumer[0]
        self._window_bytes = min(WINDOW_BYTES, size)
        self._window_at = 0
        # From the start: a mapping holds a duplicate of the fd, and later none may be left for it.
        self._window = self._map_window()

    def read(self, on_record: Callable[[bytes], object], stop_at: float) -> bool:
        """Hand over the available records, until time.monotonic() is `stop_at`; False if there are more.

        An error of `on_record` is raised; the record that it got counts as read.
        """
        while True:
            try:
                found = self._read_some(on_record)
            finally:
                fence()
                self._consumer[0] = self._position
            if not found:
                return True
            if time.monotonic() >= stop_at:
                return bool(self._producer[0] == self._position)

    def waits(self) -> bool:
        """Whether there is an unread record, even if a CPU still writes it."""
        return bool(self._producer[0] != self._position)

    def _read_some(self, on_record: Callable[[bytes], object]) -> bool:
        """Hand over some records that lie within one window; False if none is ready."""
        produced = self._producer[0]
        fence()
        position = self._position
        if position >= produced:
            return False
        window, at = self._mapped(position & self._size - 1, _HEADER_BYTES)
        for _ in range(LOOK_EVERY):
            (header,) = _HEADER.unpack_from(window, at)
            if header & _BUSY:
                return position != self._position
            length = header & ~_DISCARDED
            whole = _HEADER_BYTES + length + 7 & ~7
            if at + whole > self._window_bytes:
                window, at = self._mapped(position & self._size - 1, whole)
            if REORDERS_LOADS:
                fence()
            position += whole
            self._position = position
            if not header & _DISCARDED:
                on_record(window[at + _HEADER_BYTES : at + _HEADER_BYTES + length])
            at += whole
            if position >= produced or at + _HEADER_BYTES > self._window_bytes:
                break
        return True

    def _mapped(self, offset: int, size: int) -> tuple[mmap.mmap, int]:
        """Map a window with `size` bytes from this offset of the data; returns it and the place where they begin."""
        at = offset - self._window_at
        if at < 0 or at + size > self._window_bytes:
            self._window.close()
            self._window_at = offset & -PAGE
            at = offset - self._window_at
            if at + size > self._window_bytes:
                raise ValueError(f"a record of {size} bytes in the ring buffer")
            self._window = self._map_window()
        return self._window, at

    def _map_window(self) -> mmap.mmap:
        offset = 2 * PAGE + self._window_at
        return mmap.mmap(self.fd, self._window_bytes, prot=mmap.PROT_READ, offset=offset)

    def close(self) -> None:
        """Unmap the ring buffer. The fd stays open."""
        self._consumer.release()
        self._producer.release()
        for mapped in (self._consumer_page, self._producer_page, self._window):
            mapped.close()


class RingReader:
    """Waits for several ring buffers and hands over their records in the order of their times.

    A record that is younger than the time up to which all ring buffers have been read is held back until the next
    `poll`: an older record of another ring buffer may still arrive.
    """

    def __init__(self, rings: Sequence[RingBuffer], on_record: Callable[[bytes], object]) -> None:
        self._rings = tuple(rings)
        self._on_record = on_record
        self._more = False
        self._emptied = True
        self._held: list[bytes] = []
        self._complete_ns = 0
        """The time up to which all records were taken."""
        self.known_ns = 0
        """The time up to which all records were handed over (CLOCK_BOOTTIME)."""
        self._epoll = select.epoll()
        for ring in self._rings:
            # Edge-triggered: only a record that wakes the reader ends the wait, not those that are already there.
            self._epoll.register(ring.fd, select.EPOLLIN | select.EPOLLET)

    def wait(self, timeout_ms: int) -> None:
        """Wait for a record that wakes the reader, at most `timeout_ms`, and not at all if records are left."""
        if timeout_ms and not self._more:
            self._epoll.poll(timeout_ms / 1000)

    def leave_out(self, unwanted: Callable[[bytes], bool]) -> None:
        """Take what is there, to be handed over later without the records that `unwanted` is true of."""
        self._take(math.inf)
        self._held = [record for record in self._held if not unwanted(record)]

    def read(self, most_s: float = math.inf) -> bool:
        """Hand over the available records; ends after `most_s` in any case, and returns False if there are more."""
        begun = time.monotonic()
        if len(self._held) < MAX_HELD:
            self._take(begun + most_s / 2)
        handed_over = self._hand_over(begun + most_s)
        self._more = not (self._emptied and handed_over)
        return not self._more

    def _take(self, stop_at: float) -> None:
        """Take records out of the ring buffers, and set the time up to which these are all."""
        complete_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._emptied = True
        for ring in self._rings:
            came: list[bytes] = []
            self._emptied &= ring.read(came.append, stop_at)
            if ring.waits():
                complete_ns = min(complete_ns, time_of(came[-1]) if came else 0)
            self._held += came
        self._held.sort(key=time_of)
        self._complete_ns = max(complete_ns, self._complete_ns)

    def _hand_over(self, stop_at: float) -> bool:
        """Hand over the records that no older record can follow; False if `stop_at` is reached before the end.

        An error of `on_record` is raised; the record that it got counts as read.
        """
        held = self._held
        due = bisect_right(held, self._complete_ns, key=time_of)
        done = 0
        try:
            while done < due:
                for record in held[done : min(done + LOOK_EVERY, due)]:
                    done += 1
                    self._on_record(record)
                if time.monotonic() >= stop_at:
                    break
        finally:
            last = held[done - 1] if done else None
            del held[:done]
        if done == due:
            self.known_ns = self._complete_ns
        elif last is not None:
            self.known_ns = max(self.known_ns, time_of(last))
        return done == due

    def close(self) -> None:
        """Unmap the ring buffers."""
        self._epoll.close()
        for ring in self._rings:
            ring.close()


def time_of(record: bytes) -> int:
    """Return the time with which every record begins (struct vft_header in bpf/wire.h)."""
    return int.from_bytes(record[:8], "little")
