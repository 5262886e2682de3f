"""The pump behind the live outputs: records from a source, through decoding, sorting and the
tracker, to the latest snapshot.

One thread calls `step`; any thread may ask for `snapshot`.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.tracker import Tracker
from vftrace.collect.order import Order
from vftrace.collect.recording import Recording
from vftrace.errors import UsageError
from vftrace.events import Event, wire
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo
from vftrace.model.migration import Snapshot

SNAPSHOT_NS = 150_000_000
"""A snapshot is not built again before it is this old, however often outputs ask."""

_WAIT_SECONDS = 0.02
_BATCH = 4096


class Source(Protocol):
    """Where records come from: `sources.live.LiveSource` or a `ReplaySource`."""

    host: HostInfo

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""

    def now_ns(self) -> int:
        """The time on the clock of the events."""

    def read(self) -> list[bytes]:
        """Wait a moment, then return what came."""

    def close(self) -> list[bytes]:
        """End; returns the last records."""


class Recorder(Protocol):
    """What takes the raw records: `sources.recording.RecordingWriter`."""

    def write(self, records: list[bytes]) -> None:
        """Append records."""


class ReplaySource:
    """A recording whose records are released at the times of their events, `speed` times as fast.

    `speed` 0 or infinity: all at once. `damage` is as `Recording.damage`.
    """

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        """Raises VftraceError where `path` is no recording."""
        self._recording = Recording(path)
        self.host = self._recording.host
        self._records: Iterator[bytes] = iter(self._recording)
        self._at_once = speed == 0 or math.isinf(speed)
        self._speed = speed
        self._pending: bytes | None = None
        self._first_ns: int | None = None
        self._started_ns = 0
        self._newest_ns = self.host.started_at_ns
        self.ended = False

    @property
    def damage(self) -> str | None:
        """Where and why the recording ended early, or None."""
        return self._recording.damage

    def now_ns(self) -> int:
        """The time the replay has come to; it stands still at the end."""
        if self._at_once or self.ended or self._first_ns is None:
            return self._newest_ns
        if self._pending is None:
            return self._newest_ns
        passed = time.monotonic_ns() - self._started_ns
        # Never past the next record, so that time does not jump back where the recording ends.
        next_ns: int = wire.HEADER.unpack_from(self._pending)[0]
        return max(self._newest_ns, min(next_ns, self._first_ns + round(passed * self._speed)))

    def read(self) -> list[bytes]:
        """The records that are due, at most a few thousand; waits a moment if there are none."""
        due = list(self._due())
        if not due and not self.ended:
            time.sleep(_WAIT_SECONDS)
            due = list(self._due())
        return due

    def close(self) -> list[bytes]:
        """Nothing more is released."""
        self.ended = True
        return []

    def _due(self) -> Iterator[bytes]:
        for _ in range(_BATCH):
            if self._pending is None:
                self._pending = next(self._records, None)
            if self._pending is None:
                self.ended = True
                return
            at_ns: int = wire.HEADER.unpack_from(self._pending)[0]
            if self._first_ns is None:
                self._first_ns, self._started_ns = at_ns, time.monotonic_ns()
            if not self._at_once and at_ns > self.now_ns():
                return
            self._newest_ns = max(self._newest_ns, at_ns)
            record, self._pending = self._pending, None
            yield record


class Pump:
    """Reads a source and keeps what is known; a `recorder` gets every raw record first.

    `profiles`: texts of mailbox profiles, beside those that the source brings.
    """

    def __init__(
        self, source: Source, recorder: Recorder | None = None, profiles: Sequence[str] = ()
    ) -> None:
        self._source = source
        self._recorder = recorder
        self._order = Order()
        self._tracker = Tracker(mailboxes=Mailboxes(drivers_of(source.host.profiles, profiles)))
        self._lock = threading.Lock()
        self._counts: Counter[type[Event]] = Counter()
        self._built_ns = 0
        self._closed = False
        self._snapshot = self._tracker.snapshot()

    @property
    def host(self) -> HostInfo:
        """The traced host; probes come and go with what they watch."""
        return self._source.host

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: a replay's end, or `close`."""
        return self._closed

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME of the traced host; in a replay the time the replay has come to."""
        return self._source.now_ns()

    def step(self) -> int:
        """Read once (waits some 20 ms when nothing comes) and feed; returns how many records."""
        records = self._source.read()
        self._take(records)
        if self._source.ended and not self._closed:
            self._finish()
        return len(records)

    def snapshot(self) -> Snapshot:
        """The latest snapshot, at most some 150 ms old."""
        with self._lock:
            now = time.monotonic_ns()
            if now - self._built_ns >= SNAPSHOT_NS:
                self._snapshot = self._tracker.snapshot()
                self._built_ns = now
            return self._snapshot

    def event_counts(self) -> Mapping[type[Event], int]:
        """How many events of each type were read."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Close the source, take its last records, and end what has not ended."""
        if not self._closed:
            self._take(self._source.close())
            self._finish()

    def _take(self, records: list[bytes]) -> None:
        if self._recorder is not None and records:
            self._recorder.write(records)
        with self._lock:
            events = list(map(wire.decode, records))
            self._counts.update(map(type, events))
            for due in self._order.push(events):
                self._tracker.feed(due)

    def _finish(self) -> None:
        with self._lock:
            for event in self._order.flush():
                self._tracker.feed(event)
            self._tracker.finish()
            self._built_ns = 0
            self._closed = True


def parse_speed(text: str) -> float:
    """A replay's speed: 1 as it was, 10 ten times as fast, 0 or `inf` all at once.

    Raises UsageError for anything else.
    """
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not speed >= 0:
        raise UsageError(f"not a speed: {text!r} (such as 1, 0.5, 10; 0 for all at once)")
    return speed
