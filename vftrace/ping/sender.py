# SPDX-License-Identifier: MIT
"""The sending process: sends at absolute deadlines, reads replies, and writes both to a pipe.

It is a process of its own, so that no terminal, disk or accounting makes it late. A periodic
timerfd on CLOCK_MONOTONIC keeps the schedule: the kernel counts the periods that passed, so that
lateness does not accumulate and missed slots are not sent later in a burst.
"""

import ctypes
import gc
import os
import select
import struct
import time
from collections.abc import Iterator

import msgspec

from vftrace.ping.probes import OWN_ERRORS, Pinger

RECORD = struct.Struct("@iiQQQ")
"""kind, errno, slot, two times on CLOCK_MONOTONIC in ns."""

SENT, REPLY, CLOCK, STOPPED, REFUSED, POLICY = range(6)
"""SENT slot, before, after (errno if sending failed) · REPLY slot, time · CLOCK time: all
replies before it are reported · STOPPED slot: no probe is sent in it or later · REFUSED errno: ICMP
reported it · POLICY 1 for SCHED_FIFO, 0 for the usual one."""

FIFO_PRIORITY = 1
_FLUSH_BYTES = RECORD.size * 20
_FLUSH_NS = 20_000_000
_IDLE_S = 0.1
_CLOCK_MONOTONIC, _TFD_NONBLOCK, _TFD_TIMER_ABSTIME = 1, 0o4000, 1


class Schedule(msgspec.Struct, frozen=True):
    """Slots at `start_ns` + n intervals on CLOCK_MONOTONIC; `slots` of them, or no end."""

    start_ns: int
    interval_ns: int
    slots: int | None

    def due_ns(self, slot: int) -> int:
        """Return the time at which a slot is due."""
        return self.start_ns + slot * self.interval_ns


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("ns", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("first", _Timespec)]


def _timer(schedule: Schedule) -> int:
    """A timerfd that counts the schedule's slots (os.timerfd_create came with Python 3.13)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK))
    times = _Itimerspec(
        _Timespec(*divmod(schedule.interval_ns, 1_000_000_000)),
        _Timespec(*divmod(schedule.start_ns, 1_000_000_000)),
    )
    if fd < 0 or libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME, ctypes.byref(times), None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


class Sender:
    """Runs the schedule; ends when `control_fd` is closed by the other side.

    A byte on `control_fd` ends the sending; replies are read until it is closed.
    """

    def __init__(self, pinger: Pinger, schedule: Schedule, out_fd: int, control_fd: int) -> None:
        self._pinger = pinger
        self._schedule = schedule
        self._out_fd = out_fd
        self._control_fd = control_fd
        self._buffer = bytearray()
        self._now_ns = self._flushed_ns = 0
        self._next_slot = 0
        self._timer_fd = -1
        os.set_blocking(out_fd, False)

    def run(self) -> None:
        """Send and read until the control fd requests the end; raises OSError."""
        self._add(POLICY, slot=int(_become_fifo()))
        gc.freeze()
        gc.disable()
        self._timer_fd = _timer(self._schedule)
        epoll = select.epoll()
        for fd in (self._timer_fd, self._pinger.fileno(), self._control_fd):
            epoll.register(fd, select.EPOLLIN)
        while True:
            ready = {fd for fd, _ in epoll.poll(_IDLE_S)}
            # Read replies first: they arrived before the next probe is sent.
            self._receive()
            if self._timer_fd in ready:
                self._send_due()
            if self._control_fd in ready:
                if not os.read(self._control_fd, 1):
                    break
                self._stop()
            self._flush_if_due()
        os.set_blocking(self._out_fd, True)
        self._flush()

    def _send_due(self) -> None:
        """Send the probe of the due slot; earlier slots that passed are missed."""
        slot = self._next_slot + int.from_bytes(os.read(self._timer_fd, 8), "little") - 1
        end = self._schedule.slots
        if end is not None and slot >= end:
            self._next_slot = end
            self._stop()
            return
        self._next_slot = slot + 1
        failed = 0
        before_ns = time.monotonic_ns()
        try:
            self._pinger.send(slot)
        except OSError as error:
            failed = error.errno or 0
        after_ns = time.monotonic_ns()
        if failed not in OWN_ERRORS:
            self._add(SENT, slot, before_ns, after_ns, failed)
        if self._next_slot == end:
            self._stop()

    def _receive(self) -> None:
        now_ns = time.monotonic_ns()
        # If a reply is read after the next slot's time, this process was late, not the reply.
        latest_ns = now_ns if self._timer_fd < 0 else self._schedule.due_ns(self._next_slot)
        try:
            replies = self._pinger.receive(latest_ns)
        except OSError as error:
            self._add(REFUSED, failed=error.errno or 0)
            return
        for slot, at_ns in replies:
            self._add(REPLY, slot, at_ns)
        # All replies were read at `now_ns`, so no earlier reply is outstanding.
        self._now_ns = now_ns

    def _stop(self) -> None:
        if self._timer_fd >= 0:
            os.close(self._timer_fd)
            self._timer_fd = -1
            self._add(STOPPED, self._next_slot)
            self._flush()

    def _add(self, kind: int, slot: int = 0, a_ns: int = 0, b_ns: int = 0, failed: int = 0) -> None:
        self._buffer += RECORD.pack(kind, failed, slot, a_ns, b_ns)

    def _flush_if_due(self) -> None:
        if len(self._buffer) >= _FLUSH_BYTES or self._now_ns - self._flushed_ns >= _FLUSH_NS:
            self._flush()

    def _flush(self) -> None:
        self._flushed_ns = self._now_ns
        self._add(CLOCK, a_ns=self._now_ns)
        try:
            written = os.write(self._out_fd, self._buffer)
        except BlockingIOError:
            return
        del self._buffer[:written]


def _become_fifo() -> bool:
    """Set SCHED_FIFO (needs CAP_SYS_NICE or RLIMIT_RTPRIO); returns False if it is not allowed."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    except OSError:
        return False
    return True


def records_in(buffer: bytearray) -> Iterator[tuple[int, int, int, int, int]]:
    """Take the complete records out of a buffer: kind, errno, slot, two times."""
    complete = len(buffer) // RECORD.size * RECORD.size
    records = bytes(buffer[:complete])
    del buffer[:complete]
    yield from RECORD.iter_unpack(records)
