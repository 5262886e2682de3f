# SPDX-License-Identifier: MIT
"""Runs that the kernel skipped: its counters, what they add up to, and which migrations they make incomplete."""

import ctypes
import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from uuid import UUID

import jsonschema
import pytest
from msgspec import structs
from msgspec.structs import replace

from tests.unit.test_join import Halves, halves
from tests.unit.test_losses import HOST, SCHEMA, others, replayed
from tests.unit.test_metrics import Bench
from tests.unit.two_hosts import golden, join
from vftrace import events
from vftrace.analysis.missed import DIRTY_RINGS, MATTERS, MAX_REPORTS, MissedLog
from vftrace.analysis.tracker import Tracker
from vftrace.archive.flight import _counter
from vftrace.collect.batch import Intake
from vftrace.collect.live import LiveSource
from vftrace.collect.replay import events_of
from vftrace.events import COLLECTOR, wire
from vftrace.model.migration import Migration, Role, Snapshot
from vftrace.model.report import live_report
from vftrace.outputs.report.json import report_json
from vftrace.outputs.text.words import losses, warnings
from vftrace.probes import kernel
from vftrace.probes.bpf import events as bpf_events
from vftrace.probes.bpf import syscall
from vftrace.probes.bpf.events import Attached, missed_hits
from vftrace.probes.bpf.object import KPROBE, RECURSION, Missed, Object
from vftrace.probes.missed import MissedRuns
from vftrace.probes.registry import BY_NAME, CALLS, MAILBOX, PROBES, VFIO, VFIO_DATA, probe_of

SECOND = 1_000_000_000


# -- the kernel's counters -------------------------------------------------------------------------

# struct bpf_prog_info in include/uapi/linux/bpf.h, counted by hand: as far as run_cnt (up to Linux 5.11), then
# recursion_misses (5.12), verified_insns (5.16), attach_btf_obj_id and attach_btf_id (6.0).
UP_TO_RUN_CNT = struct.Struct("=II8sIIQQQIIQ16sIIQQIIQQIIQIIQQIIIIQQQ")
ENDS = {"5.11": 208, "5.12": 216, "5.16": 224, "6.0": 232}


def prog_info(number: int, misses: int) -> bytes:
    """What the newest kernel has of a program, every other member with a value that is not to be read."""
    info = UP_TO_RUN_CNT.pack(
        *(2, number, b"\x11" * 8, 3, 4, 5, 6, 7, 8, 9, 10, b"kp_ioctl", 11, 12, 13, 14),
        *(15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32),
    )
    assert len(info) == ENDS["5.11"]
    return info + struct.pack("=QIII4x", misses, 33, 34, 35)


def kernel_with(size: int, programs: dict[int, bytes]) -> Callable[[int, ctypes.Structure], int]:
    """BPF_OBJ_GET_INFO_BY_FD of a kernel whose struct has so many bytes (bpf_prog_get_info_by_fd)."""

    def bpf(command: int, asked: ctypes.Structure) -> int:
        assert command == 15
        fd, length, place = struct.unpack("=IIQ", bytes(asked))
        if fd not in programs:
            raise OSError(9, "Bad file descriptor")
        given = ctypes.string_at(place, length)
        assert not any(given), "addresses that the kernel would write to"
        copied = min(size, length)
        ctypes.memmove(place, programs[fd], copied)
        asked.info_len = copied
        return 0

    return bpf


@pytest.mark.parametrize("release", ENDS)
def test_a_program_counts_from_5_12_on(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall, "bpf", kernel_with(ENDS[release], {7: prog_info(99, 1 << 40)}))
    assert syscall.missed_runs(7) == (None if release == "5.11" else (99, 1 << 40))


# struct bpf_link_info as far as perf_event.kprobe.addr (Linux 6.6), missed (6.7) and cookie (6.9): type, id, prog_id,
# padding; perf_event.type and a hole; func_name, name_len, offset, addr.
UP_TO_ADDR = struct.Struct("=IIIIIIQIIQ")
LINK_ENDS = {"6.6": 48, "6.7": 56, "6.9": 64}


def link_info(number: int, event: int, missed: int) -> bytes:
    info = UP_TO_ADDR.pack(7, number, 8, 0, event, 0, 0, 0, 9, 10)
    assert len(info) == LINK_ENDS["6.6"]
    return info + struct.pack("=QQ", missed, 11)


@pytest.mark.parametrize("release", LINK_ENDS)
@pytest.mark.parametrize("event", [3, 4])
def test_a_link_counts_from_6_7_on(
    release: str, event: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        syscall, "bpf", kernel_with(LINK_ENDS[release], {7: link_info(5, event, 1 << 40)})
    )
    assert syscall.missed_hits(7) == (None if release == "6.6" else (5, 1 << 40))


def test_a_link_to_another_event_has_no_such_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracepoint's (5) has its name's length there."""
    monkeypatch.setattr(syscall, "bpf", kernel_with(64, {7: link_info(5, 5, 12)}))
    assert syscall.missed_hits(7) is None


@pytest.mark.parametrize("links", [True, False])
def test_a_kprobe_is_linked_where_the_kernel_can(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event's own fd is closed behind a link, which holds it; without links the event's fd is kept."""
    (tmp_path / "type").write_text("6\n")
    monkeypatch.setattr(bpf_events, "_KPROBE_PMU", tmp_path)
    opened: list[int] = []
    orders: list[tuple[int, int, int]] = []

    def open_fd() -> int:
        opened.append(os.open(os.devnull, os.O_RDONLY))
        return opened[-1]

    def bpf(command: int, asked: ctypes.Structure) -> int:
        # union bpf_attr, link_create: prog_fd, target_fd, attach_type BPF_PERF_EVENT, flags
        assert (command, bytes(asked)) == (28, struct.pack("=IIII", 3, opened[-1], 41, 0))
        if not links:
            raise OSError(22, "Invalid argument")
        return open_fd()

    monkeypatch.setattr(syscall, "perf_event_open", lambda _: open_fd())
    monkeypatch.setattr(syscall, "bpf", bpf)
    monkeypatch.setattr(fcntl, "ioctl", lambda *order: orders.append(order))
    attached = bpf_events.kprobe(3, "kvm_vm_ioctl")
    assert attached == Attached(opened[-1], None, linked=links)
    enable, set_program = 0x2400, 0x40042408
    if links:
        assert orders == [(opened[0], enable, 0)]
    else:
        assert orders == [(opened[-1], set_program, 3), (opened[-1], enable, 0)]
    os.fstat(attached.fd)
    attached.close()
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


PROFILE = """\
  kvm_dev_ioctl_77_0                                         12               0
  ksys_write_77_1                                         90210              41
  ksys_write_78_1                                             5            1000
  p_of_somebody_else_with_a_name_that_is_longer_than_its_column               3              17
  a line that a later kernel may have
"""


@pytest.fixture
def tracefs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "events").mkdir()
    (tmp_path / "kprobe_profile").write_text(PROFILE)
    monkeypatch.setattr(kernel, "TRACEFS_PLACES", (tmp_path,))
    return tmp_path


def an_object(programs: dict[str, int], attached: dict[tuple[str, str], Attached]) -> Object:
    """An object of which nothing is in the kernel."""
    made = Object.__new__(Object)
    made._programs, made._attached = programs, attached
    return made


def test_what_an_object_counts(tracefs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its programs, and of its own probes in tracefs: not those of another process, and none twice."""
    programs = {7: prog_info(99, 3), 8: prog_info(100, 0)}
    # One link of a kernel that shows nothing of it, and one that does.
    programs |= {21: link_info(4, 0, 9), 23: link_info(5, 3, 6)}
    monkeypatch.setattr(syscall, "bpf", kernel_with(232, programs))
    bpf = an_object(
        {"kp_ioctl": 7, "kr_send": 8, "gone": 9},
        {
            ("kvm_vm_ioctl", "kp_ioctl"): Attached(20),
            ("ksys_write", "kr_send"): Attached(21, "vftrace/ksys_write_77_1", linked=True),
            ("do_writev", "kr_send"): Attached(22, "vftrace/do_writev_77_2"),
            ("kvm_dev_ioctl", "kp_ioctl"): Attached(23, linked=True),
        },
    )
    assert list(bpf.missed_runs()) == [
        Missed("kp_ioctl", RECURSION, "99", 3),
        Missed("kr_send", RECURSION, "100", 0),
        Missed("kp_ioctl", KPROBE, "link 5", 6),
        Missed("kr_send", KPROBE, "ksys_write_77_1", 41),
    ]
    (tracefs / "kprobe_profile").unlink()
    assert [m.reason for m in bpf.missed_runs()] == [RECURSION, RECURSION, KPROBE]


def test_without_tracefs_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events").mkdir()
    monkeypatch.setattr(kernel, "TRACEFS_PLACES", (tmp_path,))
    assert missed_hits() == {}


def test_totals_continue_when_a_program_ends_and_comes_again() -> None:
    missed = MissedRuns()

    def total(*counters: tuple[str, int]) -> int:
        read = (("vfio", Missed("kp_request", RECURSION, name, n)) for name, n in counters)
        return missed.total(read).get(("vfio", RECURSION), 0)

    assert total(("5", 0)) == 0
    assert total(("5", 4)) == 4
    assert total(("5", 4), ("6", 1)) == 5
    # The module was unloaded and is loaded again: another program, which counts from 0.
    assert total() == 5
    assert total(("9", 2)) == 7
    # One that could not be read for a moment is not counted twice.
    assert total(("9", 2), ("6", 3)) == 9


def test_the_probe_of_each_program() -> None:
    for probes in (PROBES, (VFIO, VFIO_DATA), (CALLS,)):
        for probe in probes:
            for hook in (hook for way in probe.ways for hook in (*way.hooks, *way.optional)):
                assert probe_of(hook.function, probes) is probe
    assert probe_of("fexit__kvm_device_ioctl", PROBES).name == "ioctl"
    assert probe_of("walk", PROBES).name == "ioctl"
    assert probe_of("fexit__ksys_read", (VFIO, VFIO_DATA)) is VFIO_DATA
    assert probe_of("kr_send", (MAILBOX,)) is MAILBOX
    assert BY_NAME.keys() >= MATTERS


class Counting:
    """The probes' totals, one answer for each look."""

    def __init__(self, *answers: dict[tuple[str, str], int]) -> None:
        self._answers = iter(answers)

    def missed_runs(self) -> dict[tuple[str, str], int]:
        return next(self._answers)


def test_the_reader_reports_what_is_new_since_it_looked_last() -> None:
    source = LiveSource.__new__(LiveSource)
    source._intake = Intake()
    source._missed, source._missed_read_ns = {}, 5
    ioctl, channel = ("ioctl", RECURSION), ("channel", KPROBE)
    source.probes = Counting({}, {ioctl: 2}, {ioctl: 2, channel: 1})  # type: ignore[assignment]

    def report() -> list[events.Event]:
        source._report_missed_runs()
        return [wire.decode(record) for record in source._intake.drain().records]

    assert report() == []
    looked = source._missed_read_ns
    assert looked > 5
    (first,) = report()
    assert isinstance(first, events.MissedRuns)
    assert (first.probe, first.reason, first.count, first.since_ns) == (*ioctl, 2, looked)
    assert first.until_ns >= source._missed_read_ns > looked
    (second,) = report()
    assert isinstance(second, events.MissedRuns)
    assert (second.probe, second.reason, second.count) == (*channel, 1)


# -- migrations --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Snapshot:
    return replayed()


def missed(
    at_ns: int, probe: str, count: int, ns: int = SECOND, reason: str = RECURSION
) -> events.MissedRuns:
    return events.MissedRuns(at_ns, 0, COLLECTOR, 1, probe, reason, count, at_ns - ns, at_ns)


def middle_of(m: Migration) -> int:
    assert m.ended_at_ns is not None
    return (m.started_at_ns + m.ended_at_ns) // 2


def under_way(snapshot: Snapshot, since_ns: int, until_ns: int) -> Iterator[Migration]:
    for m in snapshot.migrations:
        assert m.ended_at_ns is not None
        if m.started_at_ns <= until_ns and m.ended_at_ns >= since_ns:
            yield m


@pytest.mark.parametrize("probe", sorted(MATTERS - DIRTY_RINGS))
def test_migrations_under_way_are_incomplete_with_the_reason(probe: str, whole: Snapshot) -> None:
    at_ns = middle_of(whole.migrations[0])
    found = replayed((missed(at_ns, probe, 1, 10_000_000),))
    marked = {m.key for m in under_way(whole, at_ns - 10_000_000, at_ns)}
    assert marked
    assert {m.key for m in found.migrations if m.incomplete} == marked
    for m in found.migrations:
        assert m.missed_runs == (((probe, 1),) if m.key in marked else ())
        if m.key in marked:
            assert warnings(m) == (
                f"INCOMPLETE: 1 run of probe {probe} was skipped by the kernel; figures may be too small",
            )


def marked(records: Iterable[bytes], *probes: str) -> list[tuple[str, bool, tuple[str, ...]]]:
    """Role, mark and probes of each migration of a recording in whose whole time a run of each probe was skipped."""
    tracker = Tracker()
    last_ns = seq = 0
    for event in events_of(records):
        if not isinstance(event, events.End):
            tracker.feed(event)
            last_ns = max(last_ns, event.at_ns)
            seq = event.seq + 1 if event.tgid == COLLECTOR else seq
    for number, probe in enumerate(probes, seq):
        tracker.feed(replace(missed(last_ns, probe, 1), since_ns=0, seq=number))
    tracker.finish()
    return [
        (m.role, m.incomplete, tuple(probe for probe, _ in m.missed_runs))
        for m in tracker.snapshot().migrations
    ]


def test_dirty_rings_concern_only_a_vm_that_has_them() -> None:
    _, records = golden("dirty-ring")
    assert marked(records, "dirty-ring") == [(Role.STITCHED, True, ("dirty-ring",))]
    _, records = golden("completed-slow")
    assert marked(records, "dirty-ring") == [(Role.STITCHED, False, ())]
    # Before the first dirty log is read, the VM may have dirty rings.
    unread = [r for r in records if not isinstance(wire.decode(r), events.GetDirtyLog)]
    assert {runs for _, _, runs in marked(unread, "dirty-ring")} == {("dirty-ring",)}


def test_sends_do_not_concern_a_destination_whose_source_is_elsewhere() -> None:
    found = halves("completed-slow")
    assert marked(found.destination, "channel", "dirty-ring") == [(Role.DESTINATION, False, ())]
    assert marked(found.destination, "channel", "ioctl") == [(Role.DESTINATION, True, ("ioctl",))]
    assert marked(found.source, "channel") == [(Role.SOURCE, True, ("channel",))]


def test_a_source_whose_sends_are_all_unseen_leaves_no_migration_unmarked() -> None:
    """The destination is marked too: its source is on this host, and not shown. Without a UUID and the clock that the
    source hands over, nothing else makes them one migration."""
    found = halves("completed-slow")
    unseen = (events.Channel, events.Burst, events.Clock)
    source = [record for record in found.source if not isinstance(wire.decode(record), unseen)]
    renumbered = {pid: count() for pid in (found.migration.pid, found.migration.peer_pid)}
    records = []
    for record in sorted(source + found.destination, key=wire.time_of):
        event = wire.decode(record)
        if event.tgid in renumbered:
            record = wire.with_seq(record, next(renumbered[event.tgid]))
        elif isinstance(event, events.Process) and event.pid == found.migration.peer_pid:
            record = wire.encode(replace(event, uuid=str(UUID(int=1))))
        records.append(record)
    shown = marked(records, "channel")
    assert shown == [(Role.DESTINATION, True, ("channel",))]


@pytest.mark.parametrize("probe", ["calls", "vcpus", "process", "mailbox"])
def test_probes_whose_skipped_runs_change_no_figure(probe: str, whole: Snapshot) -> None:
    """They are counted. A mailbox has marks of its own, and no VM here has a VF."""
    at_ns = middle_of(whole.migrations[0])
    found = replayed((missed(at_ns, probe, 12),))
    assert found.migrations == whole.migrations
    assert found.missed_runs == ((probe, RECURSION, 12),)
    assert found.vfs_incomplete == (probe == "mailbox")


def test_migrations_before_and_after_stay_whole(whole: Snapshot) -> None:
    """A report may come while a migration goes on that had not begun when the run was skipped."""
    first = min(m.started_at_ns for m in whole.migrations)
    last = max(m.ended_at_ns or 0 for m in whole.migrations)
    report = missed(middle_of(whole.migrations[0]), "ioctl", 3)
    before = replace(report, since_ns=first - SECOND, until_ns=first - 1)
    after = replace(report, count=5, since_ns=last + 1, until_ns=last + SECOND)
    found = replayed((before, after))
    assert found.migrations == whole.migrations
    assert found.missed_runs == (("ioctl", RECURSION, 5),)
    touching = replayed((before, replace(after, since_ns=last)))
    assert [m.missed_runs for m in touching.migrations if m.incomplete] == [(("ioctl", 2),)]


def test_a_lost_record_and_a_skipped_run_are_both_named(whole: Snapshot) -> None:
    victim = whole.migrations[1]
    at_ns = middle_of(victim)
    told = (
        events.VmLost(at_ns, 0, COLLECTOR, 1, victim.pid, 120, 0),
        missed(at_ns, "ioctl", 2),
        missed(at_ns, "channel", 1, reason=KPROBE),
    )
    found = replayed(told)
    (mine,) = (m for m in found.migrations if m.key == victim.key)
    assert [line.partition(";")[0] for line in warnings(mine)] == [
        "INCOMPLETE: 1 run of probe channel and 2 runs of probe ioctl were skipped by the kernel",
        "INCOMPLETE: 120 events of this migration were lost",
    ]
    assert [m.loss for m in others(found, victim)] == [m.loss for m in others(whole, victim)]
    (line,) = losses(found)
    assert line == (
        "RUNS MISSED: 1 run of probe channel and 2 runs of probe ioctl were skipped by the kernel"
    )


def test_the_report_has_them_and_the_metric_only_grows(whole: Snapshot) -> None:
    at_ns = middle_of(whole.migrations[0])
    told = missed(at_ns, "ioctl", 2), missed(at_ns, "channel", 1, reason=KPROBE)
    found = replayed(told)
    report = report_json(live_report(HOST, found))
    jsonschema.validate(json.loads(json.dumps(report)), SCHEMA)
    assert report["hosts"][0]["missed_runs"] == [
        {"probe": "channel", "reason": "kprobe", "count": 1},
        {"probe": "ioctl", "reason": "recursion", "count": 2},
    ]
    mine = next(m for m in report["migrations"] if m["incomplete"])
    assert mine["missed_runs"] == [
        {"probe": "channel", "count": 1},
        {"probe": "ioctl", "count": 2},
    ]
    bench = Bench()
    for snapshot, wanted in (
        (whole, {}),
        (found, {("channel", "kprobe"): 1, ("ioctl", "recursion"): 2}),
        (
            replayed((*told, missed(at_ns, "ioctl", 9))),
            {("channel", "kprobe"): 1, ("ioctl", "recursion"): 9},
        ),
    ):
        assert bench.scrape(snapshot, snapshot.at_ns).all("probe_missed_runs_total") == wanted


def test_totals_never_fall_and_long_logs_are_bounded() -> None:
    log = MissedLog()
    assert log.report(missed(10 * SECOND, "ioctl", 5)) == 5
    assert log.report(missed(11 * SECOND, "ioctl", 5)) == 0
    assert log.report(missed(12 * SECOND, "ioctl", 3)) == 0
    assert log.between(0, 8 * SECOND) == ()
    assert log.between(0, 9 * SECOND) == log.between(10 * SECOND, None) == (("ioctl", 5),)
    for n in range(1, 3 * MAX_REPORTS):
        log.report(missed((20 + n) * SECOND, "ioctl", 5 + n))
    assert log.total == (("ioctl", RECURSION, 3 * MAX_REPORTS + 4),)
    assert log.between(0, None) == (("ioctl", 3 * MAX_REPORTS + 4),)
    assert len(log._reports["ioctl"]) == MAX_REPORTS


def test_a_recording_of_one_migration_counts_each_by_itself() -> None:
    ioctl = missed(1, "ioctl", 5)
    assert _counter(ioctl) == _counter(missed(9, "ioctl", 7))
    assert (
        len(
            {
                _counter(ioctl),
                _counter(missed(1, "ioctl", 5, reason=KPROBE)),
                _counter(missed(1, "channel", 5)),
            }
        )
        == 3
    )


def test_the_runs_that_both_hosts_skipped_are_added() -> None:
    skipped = ((("ioctl", 2),), (("channel", 1), ("ioctl", 5)))
    hosts = []
    for host, runs in zip(Halves("completed-slow").boots(0, (1, 1)), skipped, strict=True):
        (half,) = host.snapshot.migrations
        marked = structs.replace(half, incomplete=True, missed_runs=runs)
        snapshot = structs.replace(host.snapshot, migrations=(marked,))
        hosts.append(structs.replace(host, snapshot=snapshot))
    (found,) = join(hosts)
    assert found.migration.role == Role.STITCHED
    assert found.migration.incomplete
    assert found.migration.missed_runs == (("channel", 1), ("ioctl", 7))
