# SPDX-License-Identifier: MIT
"""Every golden recording against the accounts of QEMU, the guest and the scenario's driver, never against
our own output."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import pytest

from tests.golden.comparison import (
    MS,
    NAMES,
    Attempt,
    Run,
    attempts_of,
    markdown,
    row,
    rows,
    run_of,
    truth_of,
)
from vftrace import events
from vftrace.analysis.dirty import PIECE_PAGES
from vftrace.analysis.process import Process
from vftrace.demo.scenarios import SCENARIOS
from vftrace.model.migration import Migration
from vftrace.uapi import PAGE_SIZE

# What each scenario does, in DESIGN.md's words: (role, outcome, cause, channel). Where QEMU's word is another,
# the reason stands beside it.
COMPLETED = ("stitched", "completed", None, "tcp")
EXPECTED: dict[str, list[tuple[str, str, str | None, str]]] = {
    "completed-slow": [COMPLETED],
    "completed-fast": [COMPLETED],
    "dirty-ring": [COMPLETED],
    "multifd": [COMPLETED],
    "xbzrle": [COMPLETED],
    "pause-before-switchover": [("stitched", "completed", None, "unix")],
    "postcopy": [COMPLETED],
    "cancel-precopy": [("source", "cancelled", "cancelled", "tcp")],
    "cancel-not-converging": [("source", "cancelled", "cancelled", "tcp")],
    # QEMU: cancelled. The source had stopped and ran again.
    "cancel-pre-switchover": [("source", "failed", "resumed-after-stop", "tcp")],
    "dest-killed-precopy": [("source", "failed", "destination-ended", "tcp")],
    # QEMU: active, its last status before it was killed.
    "source-killed-precopy": [("source", "failed", "source-ended", "tcp")],
    "dest-killed-blackout": [("source", "failed", "destination-ended", "tcp")],
    "libvirt": [COMPLETED],
    "paused-before": [COMPLETED],
    "file": [("source", "completed", None, "file")],
    # QEMU: completed, twice: it was written, and it went on.
    "file-resumed": [("source", "completed", None, "file")],
    "reboot": [COMPLETED],
    "retry": [("source", "failed", "destination-ended", "tcp"), COMPLETED],
    "postcopy-recover": [COMPLETED],
    "four-at-once": [COMPLETED] * 4,
    "there-and-back": [COMPLETED] * 2,
    "graphics": [COMPLETED],
    "libvirt-cmdline": [COMPLETED],
    "no-uuid": [COMPLETED],
    "stop-cont": [],
    "savevm": [],
    "dump-guest-memory": [],
    "display-only": [],
    "calc-dirty-rate-bitmap": [],
    "calc-dirty-rate-sampling": [],
    "calc-dirty-rate-ring": [],
    "boot": [],
}
MIGRATES = sorted(name for name, expected in EXPECTED.items() if expected)
POSTCOPY = ("postcopy", "postcopy-recover")
FAILS = sorted(name for name in MIGRATES if EXPECTED[name][0][1] != "completed")
ROUNDING = MS
"""QEMU's figures are differences of clock readings in whole milliseconds."""
TOLERANCE = MS


def _each(name: str) -> list[Attempt]:
    return attempts_of(name)


def test_every_scenario_has_a_recording_and_an_expectation() -> None:
    assert set(NAMES) == set(EXPECTED) == set(SCENARIOS)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_one_migration_for_each_attempt(name: str) -> None:
    """No migration where there was none, and none twice; nothing lost, nothing unknown."""
    run = run_of(name)
    snapshot = run.tracker.snapshot()
    assert (snapshot.lost, snapshot.unknown_records) == (0, 0)
    attempts = run.truth["attempts"]
    assert sorted(m.pid for m in run.migrations) == sorted(a["source_pid"] for a in attempts)
    assert not any(m.incomplete or m.missed_beginning for m in run.migrations)


@pytest.mark.parametrize("name", MIGRATES)
def test_role_outcome_and_cause(name: str) -> None:
    run = run_of(name)
    found = [(m.role, m.outcome, m.cause, m.channel.kind) for m in run.migrations]
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", MIGRATES)
def test_who_is_who(name: str) -> None:
    """UUID, name and the other side's pid are those of the processes that the driver started."""
    processes = {process["pid"]: process for process in truth_of(name)["processes"]}
    for attempt in _each(name):
        ours, source = attempt.migration, processes[attempt.migration.pid]
        assert (ours.uuid, ours.name) == (source["uuid"], source["name"])
        if ours.role == "stitched":
            assert ours.peer_pid == attempt.qemu["destination_pid"]
        assert ours.was_paused is (name == "paused-before")
        assert ours.postcopy is (name in POSTCOPY)


@pytest.mark.parametrize("name", MIGRATES)
def test_rounds_are_qemus_dirty_syncs(name: str) -> None:
    """Equal. With rings a sync that finds nothing asks nothing of the kernel, so there are fewer."""
    for attempt in _each(name):
        if name == "dirty-ring":
            assert attempt.passes - 2 <= len(attempt.migration.rounds) <= attempt.passes
        else:
            assert len(attempt.migration.rounds) == attempt.passes


@pytest.mark.parametrize("name", [n for n in MIGRATES if n != "dirty-ring"])
def test_each_round_ends_when_qemu_synced(name: str) -> None:
    """QEMU sends MIGRATION_PASS at the end of a sync (migration/ram.c, migration_bitmap_sync)."""
    for attempt in _each(name):
        said = attempt.qmp("MIGRATION_PASS")
        ended = [r.at_ns + r.duration_ns for r in attempt.migration.rounds]
        for ours, qemus in zip(ended, said, strict=True):
            assert 0 <= qemus - ours < 5 * MS


@pytest.mark.parametrize("name", MIGRATES)
def test_bytes_are_qemus_transferred(name: str) -> None:
    """Within 1 % of `transferred`, which in QEMU 7.2 leaves the vCPUs' and devices' state out."""
    for attempt in _each(name):
        ours, theirs = attempt.migration.channel, attempt.counted["transferred_bytes"]
        assert ours.bytes is not None
        ram = ours.bytes - (ours.state_bytes or 0)
        if name == "dest-killed-blackout":
            # QEMU continues to count pages that its broken channel drops (migration/qemu-file.c,
            # qemu_put_buffer returns at once after an error): no more than that was sent.
            assert 0 < ram <= theirs
        elif attempt.qemu["source"]["status"] in ("cancelled", "failed", "active"):
            # The last figures QEMU gave were polled before the end; its limit holds for windows of 100 ms
            # (migration/migration.h, BUFFER_DELAY).
            until = attempt.qemu["ended_at_ns"] - attempt.counted["at_ns"] + 100 * MS
            most = theirs + attempt.qemu["parameters"]["max-bandwidth"] * until / 1e9
            assert theirs * 0.99 <= ram <= most * 1.01
        else:
            assert ram == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("name", MIGRATES)
def test_stop_and_start_are_when_qemu_reported(name: str) -> None:
    """QEMU's STOP follows its clock read (system/cpus.c, do_vm_stop); its RESUME is sent as the vCPUs start."""
    for attempt in _each(name):
        stopped = attempt.qmp("STOP")
        ours = attempt.migration
        assert (attempt.checkpoint("clock-read") is not None) == bool(stopped)
        if stopped:
            read, exited = attempt.checkpoint("clock-read"), attempt.checkpoint("vcpus-stopped")
            assert read is not None
            assert exited is not None
            assert exited <= read <= stopped[-1] <= read + 2 * MS
        runner = ours.peer_pid if ours.role == "stitched" else ours.pid
        resumed = attempt.qmp("RESUME", runner)
        running = attempt.checkpoint("vcpus-running")
        if ours.was_paused or name == "file":
            assert running is None
        elif name == "file-resumed":
            (cont,) = [a["at_ns"] for a in attempt.run.truth["actions"] if a["what"] == "cont"]
            assert running is not None
            assert cont < running < cont + 50 * MS
        elif resumed:
            assert running is not None
            assert abs(running - resumed[-1]) < 10 * MS
        else:
            assert running is None


@pytest.mark.parametrize("name", MIGRATES)
def test_downtime_is_qemus_and_the_destinations_work(name: str) -> None:
    """QEMU 7.2's `downtime` (migration/migration.c) begins before vm_stop (migration_completion,
    downtime_start) and ends when the source has sent its last byte and has its lock again
    (migration_calculate_complete). So it holds our time from the vCPUs' stop to the last byte, and what it
    has more is between its last sync before the stop and our stop, and between the last byte and its word
    `completed`. What we have more are checkpoints of the destination.
    """
    for attempt in _each(name):
        ours, said = attempt.migration, (attempt.qemu["source"] or {}).get("downtime_ms")
        if said is None:
            assert ours.outcome != "completed"
            continue
        if ours.was_paused:
            # QEMU reports the time in which no vCPU ran anyway; ours is that no vCPU was stopped.
            assert ours.downtime.vcpu_ns is None
            continue
        stopped, saved = attempt.checkpoint("vcpus-stopped"), attempt.checkpoint("state-saved")
        loaded = attempt.checkpoint("devices-loaded")
        assert stopped is not None
        assert saved is not None
        qemus = said * MS
        before = stopped - max(at for at in attempt.qmp("MIGRATION_PASS") if at <= stopped)
        if ours.postcopy:
            # The state goes in one package and the pages after it: its end is not in the byte counts.
            assert loaded is not None
            assert saved - stopped - ROUNDING < qemus
            assert qemus <= loaded - stopped + before + ROUNDING + TOLERANCE
            continue
        sent = attempt.last_sent_ns
        after = max(0, attempt.qmp("MIGRATION", status="completed")[-1] - sent)
        assert sent - stopped - ROUNDING < qemus
        assert qemus <= sent - stopped + before + after + ROUNDING + TOLERANCE
        # The source's part ends, and the destination's begins, within named checkpoints.
        assert saved <= sent
        if loaded is not None:
            assert sent <= loaded


def test_the_checkpoint_of_what_was_done_is_the_largest() -> None:
    """libvirt's `cont` is `held`, which begins before it was asked for and ends after; a pause before the
    switchover lies before the final sync; a killed destination before the state was saved."""
    (libvirt,) = _each("libvirt")
    (cont,) = [a["at_ns"] for a in libvirt.run.truth["actions"] if a["what"] == "cont"]
    loaded, held = libvirt.checkpoint("devices-loaded"), libvirt.checkpoint("held")
    assert loaded is not None
    assert held is not None
    assert loaded < cont < held < cont + 50 * MS
    assert libvirt.migration.downtime.set_by == "held"
    (paused,) = _each("pause-before-switchover")
    assert paused.migration.downtime.set_by == "final-sync-done"
    longest = max(c.ns or 0 for c in paused.migration.downtime.checkpoints)
    (go_on,) = [a["at_ns"] for a in paused.run.truth["actions"] if a["what"] == "migrate-continue"]
    assert longest == pytest.approx(go_on - paused.qmp("STOP")[0], abs=20 * MS)


@pytest.mark.parametrize("name", MIGRATES)
def test_total_time_is_qemus(name: str) -> None:
    """QEMU counts from `migrate` (migrate_init) until its source has sent everything; we from the moment
    logging goes on. The destination's part comes on top."""
    for attempt in _each(name):
        ours, said = attempt.migration, (attempt.qemu["source"] or {}).get("total_time_ms")
        begun = ours.started_at_ns - attempt.qemu["issued_at_ns"]
        assert 0 <= begun < 50 * MS
        assert ours.ended_at_ns is not None
        if ours.outcome == "completed" and said is not None:
            end = ours.ended_at_ns if ours.postcopy else attempt.last_sent_ns
            completed = attempt.qmp("MIGRATION", status="completed")[-1]
            span = end - ours.started_at_ns
            most = span + begun + max(0, completed - end) + ROUNDING + TOLERANCE
            assert min(span, completed - ours.started_at_ns) - ROUNDING < said * MS <= most
            assert ours.ended_at_ns >= end or name == "file"


@pytest.mark.parametrize("name", FAILS)
def test_a_failure_ends_when_it_did(name: str) -> None:
    """The end is near QEMU's own word for it, or near the source's death."""
    for attempt in _each(name):
        ours = attempt.migration
        status = attempt.qemu["source"]["status"]
        if status == "completed":
            continue
        if status == "active":
            killed = [a for a in attempt.run.truth["actions"] if a["what"] == "SIGKILL"]
            near = killed[-1]["at_ns"]
        else:
            near = attempt.qmp("MIGRATION", status=status)[-1]
        assert ours.ended_at_ns is not None
        assert abs(ours.ended_at_ns - near) < 50 * MS


@pytest.mark.parametrize("name", MIGRATES)
def test_checkpoints_and_phases_add_up(name: str) -> None:
    for attempt in _each(name):
        ours = attempt.migration
        _is_ordered(ours)
        if ours.downtime.vcpu_ns is not None:
            assert sum(c.ns or 0 for c in ours.downtime.checkpoints) == ours.downtime.vcpu_ns


def _is_ordered(migration: Migration) -> None:
    """Phases of a role follow each other without a gap that is counted twice; rounds likewise."""
    by_role = defaultdict(list)
    for phase in migration.phases:
        by_role[phase.role].append(phase)
    assert by_role
    for phases in by_role.values():
        for before, after in pairwise(phases):
            assert before.end_at_ns is not None
            assert before.start_at_ns <= before.end_at_ns <= after.start_at_ns
    for earlier, later in pairwise(migration.rounds):
        assert earlier.at_ns + earlier.duration_ns <= later.at_ns


# -- the guest's pages ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DirtySet:
    """The pages that the guest of a process was set to write."""

    first: int
    last: int
    pages: int
    beside: tuple[int, ...]
    per_second: int
    per_tick: int

    @property
    def whole(self) -> set[int]:
        return set(range(self.first, self.last + 1)) | set(self.beside)


def _set_of(run: Run, pid: int) -> DirtySet | None:
    """The set of a process; None for a guest that is not the dirtying firmware, or where runs of several
    guests were recorded before the truth named the guest of each."""
    (process,) = [p for p in run.truth["processes"] if p["pid"] == pid]
    guest = process.get("guest")
    if guest is None and len(run.truth["attempts"]) < 4:
        guest = run.truth.get("guest")
    if guest is None:
        return None
    return DirtySet(
        guest["first_page"],
        guest["last_page"],
        guest["pages"],
        tuple(guest["also_dirty"]),
        guest["pages_per_second"],
        guest["schedule"]["pages_per_tick"],
    )


FIRMWARE_PAGES = 2
"""A handful beside the set: what firmware or QEMU itself may write."""


@pytest.mark.parametrize("name", MIGRATES)
def test_new_pages_are_those_the_guest_can_have_written(name: str) -> None:
    """In a round: what its schedule allows since the sweep before, while it ran. Two ticks of its timer more
    or less, and 3 % for the timer's own error."""
    for attempt in _each(name):
        ours, pages = attempt.migration, _set_of(attempt.run, attempt.migration.pid)
        if pages is None:
            continue
        for before, now in pairwise(ours.rounds):
            assert now.new_pages is not None
            end = now.at_ns + now.duration_ns
            # A guest that does not run writes nothing.
            end = min(end, ours.stopped_at_ns or end)
            seconds = 0.0 if ours.was_paused else max(0, end - before.at_ns) / 1e9
            may = min(pages.pages, pages.per_second * seconds)
            slack = 2 * pages.per_tick + len(pages.beside) + FIRMWARE_PAGES
            resets = [a for a in attempt.run.truth["actions"] if a["what"] == "system_reset"]
            if any(before.at_ns <= reset["at_ns"] <= end for reset in resets):
                # the guest begins by writing its whole set
                assert pages.pages <= now.new_pages <= pages.pages + slack
                continue
            assert may * 0.97 - slack <= now.new_pages <= may * 1.03 + slack


@pytest.mark.parametrize("name", [n for n in MIGRATES if n not in (*POSTCOPY, "dirty-ring")])
def test_new_pages_are_no_fewer_than_qemu_found(name: str) -> None:
    """QEMU's `remaining`, polled right after a sync, holds the new pages and what it had left unsent: at
    most what the downtime limit allows to be left (migration.c, threshold_size)."""
    for attempt in _each(name):
        allowed = attempt.qemu["parameters"]
        left = allowed["max-bandwidth"] * allowed["downtime-limit"] / 1000 / PAGE_SIZE
        for sample in attempt.qemu["samples"]:
            number = sample["dirty_sync_count"] or 0
            if 2 <= number <= len(attempt.migration.rounds):
                new = attempt.migration.rounds[number - 1].new_pages
                assert new is not None
                assert new + left >= sample["remaining_bytes"] / PAGE_SIZE


def _written(process: Process, attempt: Attempt) -> set[int]:
    """Guest pages (4 KiB) that became dirty during a session."""
    (session,) = [s for s in process.outgoing if s.started_at_ns == attempt.migration.started_at_ns]
    starts = {
        event.slot: event.gpa // PAGE_SIZE
        for event in attempt.run.events
        if isinstance(event, events.Region) and event.tgid == process.pid and event.size
    }
    return {
        starts[slot] + number * PIECE_PAGES + bit
        for slot, bitmap in session.ever.items()
        for number, bits in bitmap.items()
        for bit, digit in enumerate(reversed(f"{bits:b}"))
        if digit == "1"
    }


@pytest.mark.parametrize("name", MIGRATES)
def test_no_page_outside_the_guests_set(name: str) -> None:
    for attempt in _each(name):
        ours, pages = attempt.migration, _set_of(attempt.run, attempt.migration.pid)
        if pages is None:
            continue
        tracker = attempt.run.tracker
        known = [*tracker._ended, *tracker._processes.values()]
        (process,) = [p for p in known if p.pid == ours.pid]
        written = _written(process, attempt)
        assert len(written - pages.whole) <= FIRMWARE_PAGES
        assert ours.dirty.distinct_pages == len(written)
        assert ours.dirty.new_pages is not None
        assert ours.dirty.new_pages >= len(written)
        again = [r.redirtied_pages for r in ours.rounds[1:]]
        if name != "dirty-ring":
            assert sum(n or 0 for n in again) == ours.dirty.new_pages - len(written)


def test_the_graphics_guest_dirties_its_frame_each_round() -> None:
    """Mode 13h has 320 × 200 bytes: 16 pages at least. The round after the stop has none."""
    (attempt,) = _each("graphics")
    *drawn, last = [r.new_pages for r in attempt.migration.rounds[1:]]
    assert all(n is not None and n >= 320 * 200 // PAGE_SIZE for n in drawn)
    assert last == 0


# -- what is no migration ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(n for n, expected in EXPECTED.items() if not expected))
def test_what_is_no_migration(name: str) -> None:
    """The recording holds the act that could be taken for one, and the VM is known."""
    run = run_of(name)
    assert run.migrations == ()
    kinds = {type(event).__name__ for event in run.events}
    assert {"VmCreated", "Process", "Run", "Exit"} <= kinds
    regions = [event for event in run.events if isinstance(event, events.Region)]
    logs = any(event.flags & 1 for event in regions)
    assert logs is (
        name in ("boot", "savevm", "display-only", "calc-dirty-rate-bitmap", "calc-dirty-rate-ring")
    )


# -- the table --------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_each_attempt() -> None:
    table = rows()
    assert len(table) == sum(max(1, len(expected)) for expected in EXPECTED.values())
    (held,) = _each("libvirt")
    assert row(held).set_by == "held"
    lines = markdown(table).splitlines()
    assert len({line.count("|") for line in lines}) == 1
