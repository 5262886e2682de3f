# SPDX-License-Identifier: MIT
"""The only loop: takes batches from a source, sorts their events, and gives them to the tracker or another consumer.

One thread calls `step`; any thread may ask for `snapshot`.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.tracker import Tracker
from vftrace.collect.batch import Batch, Source
from vftrace.collect.evidence import Evidence
from vftrace.collect.order import Order
from vftrace.events import Event
from vftrace.faults import FAULTS, Where
from vftrace.host import memory
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo, ReaderUse
from vftrace.model.migration import Snapshot

SNAPSHOT_NS = 150_000_000
"""The least age at which a snapshot is built again, however often outputs request one."""


class Step(msgspec.Struct):
    """The result of one read of a source: the records that arrived, and the events that were due."""

    came: Batch
    due: list[Event]


def steps(batches: Iterable[Batch]) -> Iterator[Step]:
    """Take batches and yield events in the order of their times; the last step has all held-back events.

    This is the only loop between records and the consumers of events.
    """
    order = Order()
    for batch in batches:
        yield Step(batch, order.push(batch.events))
    yield Step(Batch(), order.flush())


def batches_of(source: Source, stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
    """Read a source until it ends or `stop` returns true, and close it."""
    while not stop() and not source.ended:
        yield source.read()
    yield source.close()


class Recorder(Protocol):
    """A second receiver of every batch beside the tracker (vftrace/archive/flight.py)."""

    def take(self, batch: Batch, tracker: Tracker, host: HostInfo) -> None:
        """Take a batch; the tracker may be some milliseconds behind."""

    def finish(self, tracker: Tracker, host: HostInfo) -> None:
        """End the input."""


class Pump:
    """Reads a source and feeds the tracker and the recorder.

    `profiles`: texts of mailbox profiles, in addition to those of the source. `recorder` gets every batch, too.
    """

    def __init__(
        self, source: Source, profiles: Sequence[str] = (), recorder: Recorder | None = None
    ) -> None:
        self._source = source
        self._recorder = recorder
        self._closing = False
        self._steps = steps(batches_of(source, lambda: self._closing))
        self._tracker = Tracker(mailboxes=Mailboxes(drivers_of(source.host.profiles, profiles)))
        self._lock = threading.Lock()
        self._counts: Counter[type[Event]] = Counter()
        self._evidence: Evidence | None = None
        self._built_ns = 0
        self._memory = memory.AfterFloods()
        self._closed = False
        self._snapshot = self._tracker.snapshot()
        self._is_brief = False

    @property
    def host(self) -> HostInfo:
        """The traced host; its probes are attached and detached with the modules that they need."""
        return self._source.host

    @property
    def not_recorded(self) -> int:
        """How many records could not be written to the recording."""
        return getattr(self._source, "not_recorded", 0)

    @property
    def reader(self) -> ReaderUse | None:
        """The reader process; None in a replay."""
        return getattr(self._source, "reader", None)

    @property
    def ended(self) -> bool:
        """Whether the source has no more records: a replay has ended, or `close` was called."""
        return self._closed

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME of the traced host; in a replay the time that the replay has reached."""
        return self._source.now_ns()

    def behind_ns(self) -> int:
        """Return how old the latest event is that the tracker has."""
        return max(0, self.now_ns() - self._tracker.now_ns)

    def step(self) -> int:
        """Read once (waiting some 20 ms if no record arrives) and feed; returns the number of records."""
        if self._closed:
            return 0
        step = next(self._steps)
        count = self._take(step)
        if self._source.ended:
            self._finish()
        self._memory.note(sum(map(len, step.came.records)))
        return count

    def snapshot(self, *, brief: bool = False) -> Snapshot:
        """Return the latest snapshot, at most some 150 ms old; `brief` as in `Tracker.snapshot`."""
        with self._lock:
            now = time.monotonic_ns()
            if now - self._built_ns >= SNAPSHOT_NS or (self._is_brief and not brief):
                try:
                    self._snapshot = self._tracker.snapshot(brief=brief)
                    self._is_brief = brief
                except Exception as error:
                    FAULTS.contained(Where.VM, error, "what was known before is still shown")
                self._built_ns = now
            return self._snapshot

    def keep_evidence(self, directory: Path) -> None:
        """Write the records of a migration on which vftrace fails into this directory from now on."""
        self._evidence = Evidence(directory, lambda: self.host)
        FAULTS.keep = self._evidence.keep

    def event_counts(self) -> Mapping[type[Event], int]:
        """Return how many events of each type were read."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Close the source, take its last records, and end the input of the recorder and the tracker."""
        if not self._closed:
            self._closing = True
            self._finish()

    def _take(self, step: Step) -> int:
        with self._lock:
            if self._evidence is not None:
                self._evidence.take(step.came)
            self._counts.update(map(type, step.came.events))
            for event in step.due:
                self._tracker.feed(event)
        # Without the lock: only this thread changes the tracker.
        if self._recorder is not None:
            try:
                self._recorder.take(step.came, self._tracker, self.host)
            except Exception as error:
                FAULTS.contained(Where.RECORDER, error, "recordings of migrations may miss records")
        return len(step.came.events)

    def _finish(self) -> None:
        try:
            for step in self._steps:
                self._take(step)
        finally:
            with self._lock:
                self._tracker.finish()
                self._built_ns = 0
                self._closed = True
            self._finish_recorder()

    def _finish_recorder(self) -> None:
        if self._recorder is not None:
            try:
                self._recorder.finish(self._tracker, self.host)
            except Exception as error:
                FAULTS.contained(Where.RECORDER, error, "recordings of migrations have no end")
