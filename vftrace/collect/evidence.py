# SPDX-License-Identifier: MIT
"""Keeps the latest records of each process, and writes those of a migration on which vftrace failed to a file."""

from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from vftrace.collect.batch import Batch
from vftrace.collect.recording import RecordingWriter
from vftrace.events import COLLECTOR, NO_PROCESS, wire
from vftrace.faults import Where
from vftrace.model.host import HostInfo

HEAD_BYTES = 64 << 10
"""How many bytes of each process's first records are kept: its identity and its memory."""

TAIL_BYTES = 1 << 20
"""How many bytes of each process's latest records are kept."""

TOTAL_BYTES = 16 << 20
MAX_FILES = 16
"""How many errors have their records kept in one directory; of further errors only the traceback is reported."""


class _Records:
    """The first and the latest records of one process."""

    def __init__(self) -> None:
        self.head: list[bytes] = []
        self.tail: deque[bytes] = deque()
        self._head_bytes = 0
        self.tail_bytes = 0

    def add(self, record: bytes) -> int:
        """Keep a record; returns by how many bytes the kept records grew."""
        if not self.tail and self._head_bytes + len(record) <= HEAD_BYTES:
            self.head.append(record)
            self._head_bytes += len(record)
            return len(record)
        self.tail.append(record)
        self.tail_bytes += len(record)
        more = len(record)
        while self.tail_bytes > TAIL_BYTES:
            more -= self.shorten()
        return more

    def shorten(self) -> int:
        """Drop the oldest of the latest records; returns its size."""
        size = len(self.tail.popleft())
        self.tail_bytes -= size
        return size

    @property
    def held(self) -> int:
        """The size of all its records in bytes."""
        return self._head_bytes + self.tail_bytes


class Evidence:
    """Keeps the records that reproduce an internal error: `take` batches, then `keep` writes them.

    `host` returns the host for the recording's first line.
    """

    def __init__(self, directory: Path, host: Callable[[], HostInfo]) -> None:
        self._directory = directory
        self._host = host
        self._of: dict[int, _Records] = {}
        self._held = 0

    def take(self, batch: Batch) -> None:
        """Remember the records of a batch."""
        for record, event in zip(batch.records, batch.events, strict=True):
            mine = self._of.pop(event.tgid, None) or _Records()
            # The processes without a record for the longest time come first.
            self._of[event.tgid] = mine
            self._held += mine.add(record)
        while self._held > TOTAL_BYTES:
            self._forget_some()

    def keep(self, where: Where, pids: Collection[int], trace: str) -> Path | None:
        """Write the records of these processes (none: of all), and the traceback beside them.

        Returns the recording's path, None if the directory has enough of them. Raises VftraceError or OSError if it
        cannot be written.
        """
        present = len(list(self._directory.glob("internal-error-*.vft")))
        if present >= MAX_FILES:
            return None
        host = self._host()
        wanted = {COLLECTOR, NO_PROCESS, *pids} if pids else set(self._of)
        kept = [(pid, records) for pid, records in self._of.items() if pid in wanted]
        latest = max(
            (wire.time_of(r.tail[-1] if r.tail else r.head[-1]) for _, r in kept), default=0
        )
        path = self._directory / f"internal-error-{where}-{host.boot_id[:8]}-{latest}.vft"
        ordered = sorted(
            (r for _, mine in kept for r in (*mine.head, *mine.tail)), key=wire.time_of
        )
        writer = RecordingWriter(path, host)
        try:
            writer.write(ordered)
        finally:
            writer.close()
        path.with_suffix(".txt").write_text(trace, encoding="utf-8", errors="replace")
        return path

    def _forget_some(self) -> None:
        """Drop the process that sends least if there are many, else the oldest records of the process that sends
        most."""
        loudest = max(self._of.values(), key=lambda records: records.tail_bytes)
        if loudest.tail_bytes > HEAD_BYTES:
            while loudest.tail_bytes > HEAD_BYTES // 2:
                self._held -= loudest.shorten()
        else:
            self._held -= self._of.pop(next(iter(self._of))).held
