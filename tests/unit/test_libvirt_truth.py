# SPDX-License-Identifier: MIT
"""What tests/libvirt knows without vftrace: a daemon's log read, a recording cut in two."""

import gzip
from pathlib import Path

import pytest

from tests.libvirt import split
from tests.libvirt.truth import MonitorLog, attempts, job_info

GOLDEN = Path(__file__).parents[1] / "golden"

# Lines of a real libvirtd 9.0 during `virsh migrate`, shortened where a message is long.
SOURCE = """\
2026-11-29 19:44:58.617+0000: 12: debug : qemuProcessWaitForMonitor:2291 : Connect monitor to vm=0x7f name='lv-one'
2026-11-29 19:44:58.617+0000: 12: info : qemuMonitorOpenInternal:647 : QEMU_MONITOR_NEW: mon=0x5740 fd=30
2026-11-29 19:44:59.531+0000: 76: info : qemuMonitorJSONIOProcessLine:203 : QEMU_MONITOR_RECV_EVENT: mon=0x5740 event={"timestamp": {"seconds": 1795981499, "microseconds": 531664}, "event": "RESUME"}
2026-11-29 19:45:04.192+0000: 14: info : qemuMonitorSend:861 : QEMU_MONITOR_SEND_MSG: mon=0x5740 msg={"execute":"migrate","arguments":{"detach":true,"resume":false,"uri":"fd:migrate"},"id":"libvirt-423"}
2026-11-29 19:45:04.192+0000: 76: info : qemuMonitorJSONIOProcessLine:203 : QEMU_MONITOR_RECV_EVENT: mon=0x5740 event={"timestamp": {"seconds": 1795981504, "microseconds": 192646}, "event": "MIGRATION", "data": {"status": "setup"}}
2026-11-29 19:45:05.750+0000: 76: info : qemuMonitorJSONIOProcessLine:203 : QEMU_MONITOR_RECV_EVENT: mon=0x5740 event={"timestamp": {"seconds": 1795981505, "microseconds": 750728}, "event": "MIGRATION_PASS", "data": {"pass": 4}}
2026-11-29 19:45:05.751+0000: 76: info : qemuMonitorJSONIOProcessLine:203 : QEMU_MONITOR_RECV_EVENT: mon=0x5740 event={"timestamp": {"seconds": 1795981505, "microseconds": 751139}, "event": "STOP"}
2026-11-29 19:45:05.753+0000: 76: info : qemuMonitorJSONIOProcessLine:208 : QEMU_MONITOR_RECV_REPLY: mon=0x5740 reply={"return": {"status": "pre-switchover", "ram": {"transferred": 1, "dirty-sync-count": 4}}, "id": "libvirt-424"}
2026-11-29 19:45:05.771+0000: 76: info : qemuMonitorJSONIOProcessLine:203 : QEMU_MONITOR_RECV_EVENT: mon=0x5740 event={"timestamp": {"seconds": 1795981505, "microseconds": 771384}, "event": "MIGRATION", "data": {"status": "completed"}}
2026-11-29 19:45:05.771+0000: 76: info : qemuMonitorJSONIOProcessLine:208 : QEMU_MONITOR_RECV_REPLY: mon=0x5740 reply={"return": {"status": "completed", "downtime": 20, "total-time": 1579, "ram": {"transferred": 14899917, "dirty-sync-count": 5}}, "id": "libvirt-431"}
"""  # noqa: E501
DESTINATION = """\
2026-11-29 19:45:00.836+0000: 14: debug : qemuProcessWaitForMonitor:2291 : Connect monitor to vm=0x7f name='lv-one'
2026-11-29 19:45:00.836+0000: 14: info : qemuMonitorOpenInternal:647 : QEMU_MONITOR_NEW: mon=0x7740 fd=30
2026-11-29 19:45:05.776+0000: 16: info : qemuMonitorJSONIOProcessLine:203 : QEMU_MONITOR_RECV_EVENT: mon=0x7740 event={"timestamp": {"seconds": 1795981505, "microseconds": 776139}, "event": "RESUME"}
"""  # noqa: E501


def test_a_move_is_read_from_both_daemons_logs(tmp_path: Path) -> None:
    said = []
    for name, text in (("a", SOURCE), ("b", DESTINATION)):
        path = tmp_path / name
        # In two pieces, cut in the middle of a line, as a daemon writes it.
        path.write_text(text[:500])
        log = MonitorLog(path, name)
        log.poll()
        path.write_text(text)
        said += log.poll()
    (attempt,) = attempts(said, {"lv-one"})
    known = attempt.to_json()
    assert known["h"] == "A"
    assert known["statuses"] == ["setup", "completed"]
    assert (known["passes"], known["transferred"]) == (5, 14899917)
    # STOP ...505.751139, RESUME ...505.776139; the RESUME of the start is not the move's.
    assert known["stop_to_resume_ms"] == 25.0
    assert known["resumed_on"] == "B*"
    assert attempts(said, {"another"}) == []


def test_figures_before_the_end_are_not_the_migrations(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(SOURCE.splitlines(keepends=True)[:-2]))
    (attempt,) = attempts(MonitorLog(path, "a").poll(), {"lv-one"})
    known = attempt.to_json()
    assert known["passes"] == 4
    assert "transferred" not in known
    assert "stop_to_resume_ms" not in known


def test_job_info_is_one_line() -> None:
    text = (
        "Job type:         Completed   \nTime elapsed:     4962         ms\nIteration:        5\n\n"
    )
    assert job_info(text) == "time 4962 ms, iter 5"
    assert job_info("error: no job\n") is None


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.vft.gz"))[:20], ids=lambda p: p.name)
def test_a_recording_that_is_not_cut_stays_what_it_is(path: Path, tmp_path: Path) -> None:
    meta, records = split.read(path)
    copy = tmp_path / "copy.vft"
    split.write(copy, meta, records)
    assert copy.read_bytes() == gzip.decompress(path.read_bytes())


def test_a_half_has_its_own_processes_only() -> None:
    _, records = split.read(GOLDEN / "libvirt/copy-storage.vft.gz")
    pids = {r.tgid for r in records} - {0, split.COLLECTOR}
    assert len(pids) == 2
    halves = [split.only(records, {pid}) for pid in pids]
    for pid, half in zip(pids, halves, strict=True):
        assert {r.tgid for r in half} - {0, split.COLLECTOR} == {pid}
        own = [r.seq for r in half if r.tgid == split.COLLECTOR]
        # Nothing that was left out reads as lost.
        assert own == list(range(len(own)))
    of_processes = [sum(r.tgid in pids for r in part) for part in (records, *halves)]
    assert of_processes[0] == of_processes[1] + of_processes[2]
