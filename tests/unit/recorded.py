# SPDX-License-Identifier: MIT
"""Real recordings, given to a flight recorder as a live source would."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.archive.flight import FlightRecorder
from vftrace.archive.retention import Limits
from vftrace.collect.batch import Batch
from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo
from vftrace.model.migration import Migration

LIMITS = Limits(retain_ns=10**18, max_bytes=1 << 40)


class Slices:
    """Records, up to a tick at a time: a live source gives a batch every 20 ms."""

    def __init__(self, host: HostInfo, records: Iterable[bytes]) -> None:
        self.host = host
        self.ended = False
        self._records = iter(records)

    def now_ns(self) -> int:
        return 0

    def read(self) -> Batch:
        found: list[bytes] = []
        for record in self._records:
            found.append(record)
            if wire.kind_of(record) == Kind.TICK:
                return Batch.of(found)
        self.ended = True
        return Batch.of(found)

    def close(self) -> Batch:
        self.ended = True
        return Batch()


def fly(
    host: HostInfo,
    records: Iterable[bytes],
    directory: Path,
    said: list[str] | None = None,
    after: Callable[[FlightRecorder], None] = lambda _: None,
) -> FlightRecorder:
    """Let a flight recorder see these records; `after` is called after each batch."""
    recorder = FlightRecorder(directory, LIMITS, ([] if said is None else said).append)
    pump = Pump(Slices(host, records), recorder=recorder)
    while not pump.ended:
        pump.step()
        after(recorder)
    return recorder


def kept(directory: Path) -> Iterator[tuple[Path, Migration]]:
    """Every recording of a directory with its one migration."""
    for path in sorted(directory.glob("*.vft.gz")):
        found = migrations_of(path)
        assert len(found) == 1, path
        yield path, found[0]


def migrations_of(path: Path) -> tuple[Migration, ...]:
    """The migrations of a recording, which has to be whole."""
    recording = Recording(path)
    mailboxes = Mailboxes(drivers_of(recording.host.profiles))
    found = track(recording, mailboxes).snapshot().migrations
    assert recording.not_whole is None, (path, recording.not_whole)
    return found
