# SPDX-License-Identifier: MIT
"""Compares vftrace's figures with QEMU's own, for every golden recording.

    .venv/bin/python tests/golden/comparison.py      prints the table as Markdown (docs/ has it)

QEMU's come from the truth file beside the recording: its answers to query-migrate and its QMP events,
kept by the program that played the scenario and knows nothing of any tracer.
"""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vftrace import events
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.model.migration import Migration

RECORDINGS = Path(__file__).parent / "recordings"
NAMES = tuple(sorted(path.name.removesuffix(".vft.gz") for path in RECORDINGS.glob("*.vft.gz")))
MS = 1_000_000


@dataclass(frozen=True)
class Run:
    """A recording that was replayed, and its truth. `tracker` has seen all of `events`."""

    name: str
    events: tuple[events.Event, ...]
    tracker: Tracker
    migrations: tuple[Migration, ...]
    truth: dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One migration attempt: QEMU's account of it, and ours. Times are CLOCK_BOOTTIME ns."""

    run: Run
    qemu: dict[str, Any]
    migration: Migration

    @property
    def counted(self) -> dict[str, Any]:
        """QEMU's last answer that had figures; it forgets them after a failure or a cancel."""
        found: dict[str, Any] = self.qemu["counted"]
        return found

    def qmp(self, name: str, pid: int | None = None, **data: object) -> list[int]:
        """When QEMU sent this event during the attempt; the source's unless `pid` says another."""
        return [
            event["at_ns"]
            for event in self.run.truth["events"]
            if event["name"] == name
            and event["pid"] == (pid or self.migration.pid)
            and self.qemu["issued_at_ns"] <= event["at_ns"] <= self.qemu["ended_at_ns"]
            and all(event["data"].get(key) == value for key, value in data.items())
        ]

    @property
    def passes(self) -> int:
        """The highest dirty-sync-count QEMU reported, by event or by answer."""
        seen: list[int] = [
            event["data"]["pass"]
            for event in self.run.truth["events"]
            if event["name"] == "MIGRATION_PASS"
            and event["pid"] == self.migration.pid
            and self.qemu["issued_at_ns"] <= event["at_ns"] <= self.qemu["ended_at_ns"]
        ]
        return max([*seen, self.counted["dirty_sync_count"] or 0])

    def checkpoint(self, name: str) -> int | None:
        """When a checkpoint was passed."""
        by_name: dict[str, int | None] = {
            c.name: c.at_ns for c in self.migration.downtime.checkpoints
        }
        return by_name[name]

    @property
    def last_sent_ns(self) -> int:
        """When the source's migration thread sent its last byte, from the raw records."""
        pid = self.migration.pid
        own = [
            event
            for event in self.run.events
            if event.tgid == pid and event.at_ns >= self.migration.started_at_ns
        ]
        # A display's log is read too, by threads that send little or by the main thread.
        sync = (events.GetDirtyLog, events.ResetDirtyRings)
        threads = {e.tid for e in own if isinstance(e, sync)} - {pid}
        sent = [e for e in own if isinstance(e, events.Channel) and e.sender_tid in threads]
        most = max(sent, key=lambda event: event.bytes)
        return max(event.last_ns for event in sent if event.fd == most.fd)


def truth_of(name: str) -> dict[str, Any]:
    """Read the truth that was written while the scenario was played."""
    path = RECORDINGS / f"{name}.truth.json"
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


@cache
def run_of(name: str) -> Run:
    """Replay a recording."""
    recording = Recording(RECORDINGS / f"{name}.vft.gz")
    seen = tuple(events_of(recording))
    assert recording.not_whole is None
    tracker = Tracker()
    for event in seen:
        tracker.feed(event)
    tracker.finish()
    return Run(name, seen, tracker, tracker.snapshot().migrations, truth_of(name))


def attempts_of(name: str) -> list[Attempt]:
    """Pair each of QEMU's attempts with ours of the same source process, in order. Raises KeyError without one."""
    run = run_of(name)
    number: Counter[int] = Counter()
    ours = {(migration.pid, migration.attempt): migration for migration in run.migrations}
    found = []
    for attempt in run.truth["attempts"]:
        pid = attempt["source_pid"]
        found.append(Attempt(run, attempt, ours[pid, number[pid]]))
        number[pid] += 1
    return found


@dataclass(frozen=True)
class Row:
    """A line of the table; times in ms. Dashes for figures that are not known or that QEMU does not report."""

    scenario: str
    outcome: str
    cause: str
    rounds: str
    new_pages: str
    downtime: str
    until_sent: str
    set_by: str
    total: str
    sent: str
    of_it_state: str
    qemu_status: str
    dirty_sync_count: str
    qemu_downtime: str
    qemu_total_time: str
    transferred: str


HEADINGS = {
    "scenario": "scenario",
    "outcome": "outcome",
    "cause": "cause",
    "rounds": "rounds",
    "new_pages": "new pages",
    "downtime": "downtime ms",
    "until_sent": "until sent ms",
    "set_by": "set by",
    "total": "total ms",
    "sent": "bytes",
    "of_it_state": "of it state",
    "qemu_status": "QEMU: status",
    "dirty_sync_count": "dirty-sync-count",
    "qemu_downtime": "downtime ms",
    "qemu_total_time": "total-time ms",
    "transferred": "transferred",
}


def row(attempt: Attempt) -> Row:
    """One attempt as a line."""
    ours, counted = attempt.migration, attempt.counted
    last = attempt.qemu["source"] or {}
    stopped = attempt.checkpoint("vcpus-stopped")
    sent = stopped is not None and ours.outcome == "completed" and not ours.postcopy
    total = None if ours.ended_at_ns is None else ours.ended_at_ns - ours.started_at_ns
    return Row(
        scenario=attempt.run.name,
        outcome=ours.outcome or "-",
        cause=ours.cause or "-",
        rounds=str(len(ours.rounds)),
        new_pages=_text(ours.dirty.new_pages),
        downtime=_ms(ours.downtime.vcpu_ns),
        until_sent=_ms(attempt.last_sent_ns - stopped if sent and stopped is not None else None),
        set_by=ours.downtime.set_by or "-",
        total=_ms(total),
        sent=_text(ours.channel.bytes),
        of_it_state=_text(ours.channel.state_bytes),
        qemu_status=last.get("status") or "-",
        dirty_sync_count=_text(attempt.passes),
        qemu_downtime=_text(last.get("downtime_ms")),
        qemu_total_time=_text(last.get("total_time_ms")),
        transferred=_text(counted["transferred_bytes"]),
    )


def rows() -> list[Row]:
    """Return the rows of all attempts of all recordings; a scenario without attempts has a row too."""
    found = []
    dashes = dict.fromkeys(HEADINGS, "-")
    for name in NAMES:
        attempts = attempts_of(name)
        found += [row(attempt) for attempt in attempts]
        if not attempts:
            outcome = "no migration" if not run_of(name).migrations else "MIGRATION SEEN"
            found.append(Row(**{**dashes, "scenario": name, "outcome": outcome}))
    return found


def markdown(table: list[Row]) -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(HEADINGS.values()) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(dataclasses.astuple(each)) + " |" for each in table]
    return "\n".join(lines)


def _ms(ns: int | None) -> str:
    return "-" if ns is None else f"{ns / MS:.1f}"


def _text(value: object) -> str:
    return "-" if value is None else str(value)


if __name__ == "__main__":
    print(markdown(rows()))
