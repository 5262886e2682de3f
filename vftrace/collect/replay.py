# SPDX-License-Identifier: MIT
"""Replays a recording through the same code as live data, in real time, faster, or as fast as possible."""

import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.tracker import Tracker
from vftrace.collect.batch import Batch
from vftrace.collect.pump import steps
from vftrace.collect.recording import Recording
from vftrace.errors import UsageError
from vftrace.events import Event

LONGEST_GAP_NS = 2_000_000_000
"""The longest time without records in a replay: a recording has a tick every 100 ms."""
_BATCH = 1024
_READ = 4096
_WAIT_SECONDS = 0.02


def events_of(records: Iterable[bytes]) -> Iterator[Event]:
    """Decode and sort a recording's records; its own checks have dropped those that cannot be decoded."""
    for step in steps(_batches(records)):
        yield from step.due


def track(records: Iterable[bytes], mailboxes: Mailboxes | None = None) -> Tracker:
    """Return a tracker that has seen all events and the end of the input."""
    tracker = Tracker(mailboxes)
    for step in steps(_batches(records)):
        for event in step.due:
            tracker.feed(event)
    tracker.finish()
    return tracker


def _batches(records: Iterable[bytes]) -> Iterator[Batch]:
    if isinstance(records, Recording):
        yield from map(Batch.of, records.batches())
        return
    rest = iter(records)
    while batch := list(islice(rest, _BATCH)):
        yield Batch.of(batch)


class ReplaySource:
    """A recording whose records are released at the times of their events, `speed` times as fast.

    `speed` 0 or infinity: as fast as possible. `not_whole` is as in `Recording`.
    """

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        """Raises VftraceError if `path` is not a recording."""
        self._recording = Recording(path)
        self.host = self._recording.host
        self._batches = map(Batch.of, self._recording.batches())
        self._at_once = speed == 0 or math.isinf(speed)
        self._speed = speed
        self._pending = Batch()
        self._taken = 0
        """How many records of the pending batch were released."""
        self._first_ns: int | None = None
        self._started_ns = 0
        self._newest_ns = self.host.started_at_ns
        self._latest_ns = 0
        """The time of the record that was released last."""
        self._read_all = False
        self.ended = False

    @property
    def not_whole(self) -> str | None:
        """Why the recording is not whole (`Recording.not_whole`), or None."""
        return self._recording.not_whole

    def now_ns(self) -> int:
        """The time that the replay has reached; it stops at the end."""
        if self._at_once or self.ended or self._first_ns is None:
            return self._newest_ns
        if self._taken == len(self._pending.events):
            return self._newest_ns
        # Never past the next record, so that time does not jump back where the recording ends.
        next_ns = self._pending.events[self._taken].at_ns
        if next_ns - self._latest_ns > LONGEST_GAP_NS:
            # A flight recorder keeps old records of a VM that has run for days.
            self._first_ns, self._started_ns = next_ns, time.monotonic_ns()
            self._latest_ns = next_ns
        passed = time.monotonic_ns() - self._started_ns
        return max(self._newest_ns, min(next_ns, self._first_ns + round(passed * self._speed)))

    def read(self) -> Batch:
        """Return the due records, at most a few thousand; waits a moment if no record is due."""
        due = self._due()
        if not due.events and not self.ended:
            time.sleep(_WAIT_SECONDS)
            due = self._due()
        return due

    def close(self) -> Batch:
        """End the replay: no more records are released."""
        self.ended = True
        return Batch()

    def _next_batch(self) -> Batch:
        """Return some thousands of records, fewer at the end."""
        records: list[bytes] = []
        found: list[Event] = []
        for batch in self._batches:
            records += batch.records
            found += batch.events
            if len(found) >= _READ:
                return Batch(records, found)
        self._read_all = True
        return Batch(records, found)

    def _due(self) -> Batch:
        if self._taken == len(self._pending.events):
            self._taken = 0
            self._pending = self._next_batch()
        pending, first = self._pending, self._taken
        if self._first_ns is None and pending.events:
            self._first_ns, self._started_ns = pending.events[0].at_ns, time.monotonic_ns()
            self._latest_ns = self._first_ns
        while self._taken < len(pending.events):
            at_ns = pending.events[self._taken].at_ns
            if not self._at_once and at_ns > self.now_ns():
                break
            self._latest_ns = at_ns
            self._newest_ns = max(self._newest_ns, at_ns)
            self._taken += 1
        last = self._taken
        self.ended = self._read_all and last == len(pending.events)
        return Batch(pending.records[first:last], pending.events[first:last])


def parse_speed(text: str) -> float:
    """Read a replay's speed: 1 is real time, 10 is ten times as fast, 0 or `inf` is as fast as possible.

    Raises UsageError for anything else.
    """
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not speed >= 0:
        raise UsageError(f"not a speed: {text!r} (such as 1, 0.5, 10; 0 for all at once)")
    return speed
