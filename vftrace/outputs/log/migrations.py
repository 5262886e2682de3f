# SPDX-License-Identifier: MIT
"""Makes a log entry of snapshots for each migration that began and each that ended. No I/O."""

import logging
from collections.abc import Callable, Iterator

from vftrace.analysis.settled import settled
from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.migration import Migration, Role, Snapshot
from vftrace.outputs.log import entries
from vftrace.outputs.log.entries import Entry, FileOf
from vftrace.outputs.log.limit import Limit, Window


class MigrationLog:
    """Makes the entries of the time between two calls of `update`.

    A migration's end is logged once it has settled (a second after it), so that its outcome is final.
    """

    def __init__(self, file_of: FileOf = lambda _: None) -> None:
        self._file_of = file_of
        self._logged: dict[figures.Identity, bool] = {}
        """The migrations whose beginning was logged, and whether their end was logged."""
        self._limit = Limit()

    def update(
        self, snapshot: Snapshot, now_ns: int, *, trace_ended: bool = False
    ) -> Iterator[Entry]:
        """Yield entries for changes since the last call; `trace_ended` as in `settled`."""
        before = self._logged
        # A destination whose source is later found on this host does not begin again.
        destinations = {pid for side, pid, _ in before if side == Role.DESTINATION}
        self._logged = {}
        for m in sorted(snapshot.migrations, key=lambda m: m.started_at_ns):
            identity = figures.identity(m)
            ended = before.get(identity)
            if ended is None:
                known = m.role == Role.STITCHED and m.peer_pid in destinations
                if not known and self._admits(m, now_ns, "began"):
                    yield from self._began(m, snapshot)
            ends = not ended and settled(m, now_ns, trace_ended=trace_ended)
            self._logged[identity] = bool(ended) or ends
            if ends and self._admits(m, now_ns, f"{m.outcome}"):
                yield from self._ended(m, snapshot)
        for window in self._limit.over(now_ns, finish=trace_ended):
            yield _more(window)

    def _admits(self, m: Migration, now_ns: int, what: str) -> bool:
        return self._limit.admits(
            m.pid, figures.title(m.name, m.uuid, m.pid)[: entries.LONGEST_TEXT], now_ns, what
        )

    def _began(self, m: Migration, snapshot: Snapshot) -> Iterator[Entry]:
        return _made(m, lambda: entries.began(m, snapshot.clock))

    def _ended(self, m: Migration, snapshot: Snapshot) -> Iterator[Entry]:
        return _made(m, lambda: entries.ended(m, snapshot.clock, self._file_of(m)))


def _made(m: Migration, make: Callable[[], Entry]) -> Iterator[Entry]:
    try:
        yield make()
    except Exception as error:
        # An error in one line does not affect the others.
        pids = [pid for pid in (m.pid, m.peer_pid) if pid is not None]
        FAULTS.contained(Where.LOG, error, f"a migration of pid {m.pid} is not logged", pids)


def _more(window: Window) -> Entry:
    counts = dict(window.more)
    began = counts.pop("began", 0)
    return Entry(
        logging.WARNING,
        entries.NOT_LOGGED,
        {"vm": window.who, "began": began, "ended": sum(counts.values()), **counts},
    )
