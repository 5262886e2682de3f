# SPDX-License-Identifier: MIT
"""Devices: who they are (vftrace/host/devices.py), and what became of them (vftrace/analysis/devices/device.py)."""

from pathlib import Path

import pytest

from vftrace import events
from vftrace.analysis.devices.device import Devices, PassedDevice, absences, device_use
from vftrace.analysis.devices.downtime import MigrationDevices
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.analysis.tracker import Tracker
from vftrace.host import devices as host
from vftrace.host.devices import Device, Named, named_devices
from vftrace.model.host import HostInfo
from vftrace.model.migration import Checkpoint, Mapping, Role
from vftrace.model.report import live_report
from vftrace.outputs.report.html import render_html
from vftrace.outputs.report.perfetto import perfetto_trace
from vftrace.outputs.traces.otlp import traces_of

UUID = "6c616264-0000-4000-8000-00000000000a"
STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = 1, 2, 3, 4, 5, 6, 7


# -- command lines ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("vfio-pci,host=01:10.0,id=vf0", Named("0000:01:10.0", "vf0")),
        ("vfio-pci,host=0000:AF:10.1", Named("0000:af:10.1", None)),
        (f"vfio-pci,id=vf0,sysfsdev=/sys/bus/mdev/devices/{UUID}", Named(UUID, "vf0")),
        (
            '{"driver":"vfio-pci","host":"0001:01:10.0","id":"hostdev0"}',
            Named("0001:01:10.0", "hostdev0"),
        ),
        ("driver=vfio-pci,host=01:10.0", Named("0000:01:10.0", None)),
    ],
)
def test_devices_of_a_command_line(option: str, found: Named) -> None:
    assert named_devices(["qemu", "-m", "64", "-device", option]) == (found,)


@pytest.mark.parametrize(
    "option",
    ["virtio-net-pci,id=host", "vfio-pci,id=vf0", "{", '["vfio-pci"]', "", "vfio-pci,host="],
)
def test_what_is_no_passed_through_device(option: str) -> None:
    assert named_devices(["qemu", "-device", option]) == ()


def test_an_option_without_its_value_is_none() -> None:
    assert named_devices(["qemu", "-device"]) == ()


# -- /proc and /sys -----------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc with process 7 that has device fds 18 and 20, a /sys with a card and its VFs."""
    fds = tmp_path / "proc/7/fd"
    fds.mkdir(parents=True)
    (tmp_path / "proc/7/fdinfo").mkdir()
    for number, target in {
        "3": "/dev/kvm",
        "9": "anon_inode:kvm-vm",
        "18": "anon_inode:[vfio-device]",
        "20": "/dev/vfio/devices/vfio0",
    }.items():
        (fds / number).symlink_to(target)
    pci = tmp_path / "sys/bus/pci/devices"
    for address in ("0000:01:00.0", "0000:01:10.0", "0000:01:10.2"):
        (pci / address).mkdir(parents=True)
    for vf, address in enumerate(("0000:01:10.0", "0000:01:10.2")):
        (pci / "0000:01:00.0" / f"virtfn{vf}").symlink_to(f"../{address}")
        (pci / address / "physfn").symlink_to("../0000:01:00.0")
        (pci / address / "driver").symlink_to("../../../../bus/pci/drivers/vfio-pci")
    cdev = tmp_path / "sys/class/vfio-dev/vfio0"
    cdev.mkdir(parents=True)
    (cdev / "device").symlink_to("../../../0000:01:10.2")
    monkeypatch.setattr(host, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host, "SYS", tmp_path / "sys")
    return tmp_path


def test_device_fds_of_a_process(machine: Path) -> None:
    assert host.device_fds(7) == (18, 20)
    assert host.device_fds(8) == ()


def test_a_virtual_function_by_the_name_the_kernel_gave(machine: Path) -> None:
    argv = ["qemu", "-device", "vfio-pci,host=01:10.2,id=vf1"]
    token = "0000:01:10.2 vf_token=11111111-2222-4333-8444-555555555555"
    wanted = Device("0000:01:10.2", "vf1", "vfio-pci", "0000:01:00.0", 1)
    assert host.find(7, 18, token, argv) == wanted


def test_a_device_by_fdinfo(machine: Path) -> None:
    text = "pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:01:10.0\n"
    (machine / "proc/7/fdinfo/18").write_text(text)
    found = host.find(7, 18, "", [])
    assert found == Device("0000:01:10.0", None, "vfio-pci", "0000:01:00.0", 0)


def test_a_device_by_its_character_device(machine: Path) -> None:
    found = host.find(7, 20, "", [])
    assert found is not None
    assert found.address == "0000:01:10.2"


def test_a_device_by_its_place_on_the_command_line(machine: Path) -> None:
    argv = [
        "qemu",
        "-device",
        "vfio-pci,host=01:10.0,id=a",
        "-device",
        "vfio-pci,host=01:10.2,id=b",
    ]
    found = host.find(7, 18, "", argv)
    assert found is not None
    assert (found.address, found.id) == ("0000:01:10.0", "a")


def test_a_command_line_with_fewer_devices_shows_nothing(machine: Path) -> None:
    assert host.find(7, 18, "", ["qemu", "-device", "vfio-pci,host=01:10.0"]) is None


@pytest.mark.parametrize(
    ("bus", "name"), [("platform", "vft.0"), ("mdev", UUID), ("fsl-mc", "dprc.1")]
)
def test_a_device_on_another_bus_has_its_driver_named(machine: Path, bus: str, name: str) -> None:
    device = machine / f"sys/bus/{bus}/devices" / name
    device.mkdir(parents=True)
    (device / "driver").symlink_to(f"../../../../bus/{bus}/drivers/vfio-{bus}")
    assert host.find(7, 18, name, []) == Device(name, None, f"vfio-{bus}", None, None)


@pytest.mark.parametrize("name", ["*", "[a-z]", "../*"])
def test_a_name_is_no_pattern(machine: Path, name: str) -> None:
    assert host.find(7, 18, name, []) == Device(name, None, None, None, None)


def test_a_device_that_sysfs_does_not_know(machine: Path) -> None:
    assert host.find(7, 18, UUID, []) == Device(UUID, None, None, None, None)


# -- states -------------------------------------------------------------------------------------


class Bench:
    """Devices fed by hand; times are plain numbers."""

    def __init__(self) -> None:
        self.devices = Devices()

    def open(self, at: int, fd: int = 18, name: str = UUID) -> PassedDevice:
        self.devices.feed(events.VfioOpen(at, 0, 7, 7, fd, events.VfioOpen.GROUP, name))
        return self.devices.by_fd[fd]

    def ask(self, at: int, state: int, ret: int = 0, fd: int = 18, data_fd: int = -1) -> None:
        self.devices.feed(
            events.VfioState(at, 0, 7, 7, at - 1, fd, events.VfioState.SET, state, data_fd, ret)
        )

    def data(self, at: int, moved: int, op: int, fd: int = 18, error: int = 0) -> None:
        failed_at = at if error else 0
        self.devices.feed(
            events.VfioData(at, 0, 7, 7, moved, 1, at, at, failed_at, fd, 22, op, error, 0)
        )

    def reset(self, at: int, fd: int = 18) -> None:
        self.devices.feed(events.VfioReset(at, 0, 7, 7, at - 1, fd, events.VfioReset.DEVICE, "", 0))

    def close(self, at: int, fd: int = 18) -> None:
        self.devices.feed(events.VfioClose(at, 0, 7, 7, fd))


def names(device: PassedDevice) -> list[str]:
    return [state.state for state in device.states()]


@pytest.mark.parametrize(
    "asked",
    [
        [PRE_COPY, PRE_COPY_P2P, STOP_COPY, STOP],
        [PRE_COPY, STOP_COPY, STOP],
        [RUNNING_P2P, STOP, STOP_COPY, STOP],
        [STOP, STOP_COPY, STOP],
    ],
    ids=["precopy-p2p", "precopy", "p2p", "stop-copy"],
)
def test_a_source_device_walks_as_asked(asked: list[int]) -> None:
    """The sequences of QEMU's hw/vfio/migration.c for what a device can do."""
    bench = Bench()
    device = bench.open(10)
    for i, state in enumerate(asked):
        bench.ask(20 + 10 * i, state)
    uapi = [
        "ERROR",
        "STOP",
        "RUNNING",
        "STOP_COPY",
        "RESUMING",
        "RUNNING_P2P",
        "PRE_COPY",
        "PRE_COPY_P2P",
    ]
    assert names(device) == ["RUNNING", *(uapi[state] for state in asked)]


def test_a_refused_state_is_not_reached() -> None:
    bench = Bench()
    device = bench.open(10)
    bench.ask(20, PRE_COPY, ret=-16)
    assert names(device) == ["RUNNING"]
    assert [(t.what, t.ret, t.refused) for t in device.troubles(0, 100)] == [
        ("PRE_COPY refused", -16, True)
    ]


def test_refused_twice_is_error_and_a_reset_leaves_it() -> None:
    bench = Bench()
    device = bench.open(10)
    bench.ask(20, STOP)
    bench.ask(30, STOP_COPY, ret=-5)
    bench.ask(40, STOP, ret=-5)
    bench.reset(50)
    assert names(device) == ["RUNNING", "STOP", "ERROR", "RUNNING"]
    assert device.reset_after(30)


def test_a_reset_while_running_changes_nothing() -> None:
    bench = Bench()
    device = bench.open(10)
    bench.reset(20)
    assert names(device) == ["RUNNING"]
    assert bench.devices.transferring(0, 100) == []


def test_a_pause_is_no_transfer() -> None:
    bench = Bench()
    bench.open(10)
    bench.ask(20, STOP)
    bench.ask(30, RUNNING)
    assert bench.devices.transferring(0, 100) == []


def test_failed_reads_and_writes_are_reported() -> None:
    bench = Bench()
    device = bench.open(10)
    bench.ask(20, RESUMING, data_fd=22)
    bench.data(30, 100, events.VfioData.LOAD, error=-5)
    assert [(t.at_ns, t.what, t.ret) for t in device.troubles(0, 100)] == [(30, "load failed", -5)]


def test_bytes_of_two_attempts_are_kept_apart() -> None:
    bench = Bench()
    device = bench.open(10)
    bench.ask(20, PRE_COPY, data_fd=22)
    bench.data(25, 100, events.VfioData.SAVE)
    bench.ask(30, RUNNING)
    bench.ask(40, PRE_COPY, data_fd=22)
    bench.data(45, 60, events.VfioData.SAVE)
    bench.data(46, 70, events.VfioData.SAVE)
    assert device.bytes_moved(events.VfioData.SAVE, 40) == 70
    assert device.bytes_moved(events.VfioData.SAVE, 0) == 170
    assert device.bytes_moved(events.VfioData.LOAD, 0) is None


def _both_sides() -> tuple[Bench, Bench]:
    source, destination = Bench(), Bench()
    source.open(10)
    destination.open(10)
    source.ask(20, PRE_COPY, data_fd=22)
    destination.ask(21, RESUMING, data_fd=22)
    source.ask(50, PRE_COPY_P2P)
    source.ask(55, STOP_COPY)
    source.ask(70, STOP)
    destination.ask(80, RUNNING_P2P)
    destination.ask(90, RUNNING)
    return source, destination


def test_downtime_is_from_leaving_running_to_running_on_the_other_side() -> None:
    source, destination = _both_sides()
    (away,) = absences(source.devices.all, destination.devices.all, 15)
    # Asked at 49 to leave PRE_COPY; precopy itself is no downtime.
    assert (away.downtime().from_ns, away.downtime().ns) == (49, 41)


def test_downtime_without_the_other_side_is_not_known() -> None:
    source, _ = _both_sides()
    (away,) = absences(source.devices.all, [], 15)
    assert away.downtime().ns is None


def test_downtime_of_a_device_that_resumes_at_home() -> None:
    source = Bench()
    source.open(10)
    source.ask(20, PRE_COPY)
    source.ask(30, STOP_COPY)
    source.ask(60, RUNNING)
    (away,) = absences(source.devices.all, [], 15)
    assert away.downtime().ns == 60 - 29


def test_a_cancel_in_precopy_is_no_downtime() -> None:
    source = Bench()
    source.open(10)
    source.ask(20, PRE_COPY)
    source.ask(30, RUNNING)
    (away,) = absences(source.devices.all, [], 15)
    assert (away.downtime().from_ns, away.downtime().ns) == (None, None)


def test_time_in_each_state_adds_up_to_the_migration() -> None:
    source, _ = _both_sides()
    use = device_use(source.devices.all[0], Role.SOURCE, None, 15, 100, None)
    assert dict(use.state_ns) == {
        "RUNNING": 5,
        "PRE_COPY": 30,
        "PRE_COPY_P2P": 5,
        "STOP_COPY": 15,
        "STOP": 30,
    }
    assert sum(dict(use.state_ns).values()) == 100 - 15


def test_pairs_are_made_by_id_before_order() -> None:
    source, destination = Bench(), Bench()
    for bench, ids in ((source, ("a", "b")), (destination, ("b", "a"))):
        for fd, name in zip((18, 20), ids, strict=True):
            device = bench.open(10, fd)
            device.id = name
            bench.ask(20, PRE_COPY if bench is source else RESUMING, fd=fd)
    away = absences(source.devices.all, destination.devices.all, 15)
    assert [(a.device.id, a.successor.id if a.successor else None) for a in away] == [
        ("a", "a"),
        ("b", "b"),
    ]


def test_a_device_that_was_there_before_vftrace_has_no_first_state() -> None:
    devices = Devices()
    devices.identify(events.Device(5, 0, 7, 7, 7, 18, "0000:01:10.0", None, None, None, None, True))
    assert devices.by_fd[18].state is None


def test_an_fd_that_is_used_again_is_another_device() -> None:
    bench = Bench()
    first = bench.open(10)
    bench.close(20)
    second = bench.open(30, name="0000:01:10.0")
    assert first.closed_at_ns == 20
    assert (second.address, len(bench.devices.all)) == ("0000:01:10.0", 2)


@pytest.mark.parametrize("name", ["", " ", "\t \n"])
def test_an_open_without_a_name_is_a_device_without_address(name: str) -> None:
    assert Bench().open(1, name=name).address is None


def test_a_bind_that_a_kprobe_met_at_its_entry_is_one_device() -> None:
    bench = Bench()
    for at, how, name in ((10, events.VfioOpen.SEEN, "vft.0"), (12, events.VfioOpen.BIND, "")):
        bench.devices.feed(events.VfioOpen(at, 0, 7, 7, 18, how, name, mapping_ns=at - 3))
    (device,) = bench.devices.all
    assert (device.address, device.opened_at_ns, device.mapping_ns) == ("vft.0", 12, 9)


def test_memory_is_mapped_before_a_groups_device_and_after_a_bound_one() -> None:
    bench = Bench()
    mapped = events.VfioMapped(9, 0, 7, 7, 3, 8, 4, 2, 0)
    bench.devices.feed(mapped)
    bench.devices.feed(events.VfioOpen(10, 0, 7, 7, 18, events.VfioOpen.GROUP, UUID, 4))
    bench.devices.feed(events.VfioOpen(20, 0, 7, 7, 19, events.VfioOpen.BIND, "vft.0"))
    bench.devices.feed(events.VfioMapped(40, 1, 7, 7, 25, 30, 4, 5, 1))
    # More of it later, as for a hot-plugged memory, belongs to no device's coming.
    bench.devices.feed(events.VfioMapped(60, 2, 7, 7, 50, 55, 4, 1, 0))
    by_group, bound = bench.devices.all
    assert by_group.mapping == Mapping(3, 8, 4, 2)
    assert (bound.mapping, bound.mapping_ns) == (Mapping(25, 30, 4, 5), 25)


def test_a_device_is_tracked_by_the_page_table_that_it_is_attached_to() -> None:
    bench = Bench()
    device = bench.open(1)
    assert device.iommu_tracks is None
    table = events.VfioPageTable
    alloc, attach = table.ALLOC, table.ATTACH
    bench.devices.feed(table(2, 0, 7, 7, 20, alloc, 5, 1, 0))
    bench.devices.feed(table(3, 0, 7, 7, 20, alloc, 6, 1, -95))
    bench.devices.feed(table(4, 0, 7, 7, 18, attach, 5, 0, -22))
    assert device.iommu_tracks is None
    # 6 was refused, so it is the number of something else: an address space.
    for number, tracks in ((5, True), (6, False)):
        bench.devices.feed(table(5, 0, 7, 7, 18, attach, number, 0, 0))
        assert device.iommu_tracks is tracks


def test_a_bind_of_an_fd_in_use_is_another_device() -> None:
    bench = Bench()
    bench.open(1)
    bench.devices.feed(events.VfioOpen(9, 0, 7, 7, 18, events.VfioOpen.BIND, ""))
    assert len(bench.devices.all) == 2


# -- the blackout's checkpoints -----------------------------------------------------------------

DATA_ENDS, STOP_ASKED, STOPPED, STREAM_ENDS, LOADED = 110, 120, 400, 410, 450


def _saved(*, stop_at: int, stream_ends: int) -> int:
    """When the state was saved, of a source that leaves STOP_COPY at a time and sends until another."""
    process = Process(7, 0)
    bench = Bench()
    process.devices = bench.devices
    bench.open(1)
    bench.ask(100, STOP_COPY, data_fd=22)
    bench.data(DATA_ENDS, 4096, events.VfioData.SAVE)
    bench.ask(stop_at, STOP)
    outgoing = OutgoingMigration(7, 8, 0, 50, {}, {}, paused_before=False)
    outgoing.sent(5, events.Channel(stream_ends, 0, 7, 8, 9000, 9, 60, stream_ends, 0, 5, 0, 8, 0))
    found = MigrationDevices(
        process, outgoing, None, None, 50, 50, 10_000, bench.devices.transferring(50, 10_000)
    )
    times = {Checkpoint.STATE_SAVED: 105, Checkpoint.DEVICES_LOADED: LOADED}
    return found.checkpoints(times, None)[Checkpoint.STATE_SAVED]


def test_a_slow_stop_request_within_the_stream_is_the_sources() -> None:
    assert _saved(stop_at=STOPPED, stream_ends=STREAM_ENDS) == STOPPED


def test_a_stop_request_after_the_stream_holds_nobody_up() -> None:
    assert _saved(stop_at=STOPPED, stream_ends=STOPPED - 1) == DATA_ENDS
    assert _saved(stop_at=LOADED + 1, stream_ends=LOADED + 2) == DATA_ENDS


def test_what_a_device_does_after_its_part_is_left_out() -> None:
    bench = Bench()
    device = bench.open(10)
    bench.ask(20, PRE_COPY)
    bench.ask(30, STOP_COPY, ret=-5)
    bench.reset(40)
    bench.ask(50, RUNNING_P2P)
    bench.ask(60, RUNNING)
    bench.ask(90, STOP)
    use = device_use(device, Role.SOURCE, None, 15, 62, 62)
    assert [s.state for s in use.states] == [
        "RUNNING",
        "PRE_COPY",
        "RUNNING",
        "RUNNING_P2P",
        "RUNNING",
    ]


def test_transitions_are_counted_and_only_grow() -> None:
    bench = Bench()
    bench.open(10)
    for at in (20, 40, 60):
        bench.ask(at, PRE_COPY)
        bench.ask(at + 10, RUNNING)
    bench.ask(80, RUNNING)
    (shown,) = bench.devices.shown()
    assert (shown.address, shown.state) == (UUID, "RUNNING")
    counted = {(UUID, "PRE_COPY", "RUNNING"): 3, (UUID, "RUNNING", "PRE_COPY"): 3}
    assert bench.devices.transitions == counted
    bench.close(90)
    assert bench.devices.shown() == ()
    assert bench.devices.transitions == counted


# -- a device whose states nobody saw -----------------------------------------------------------


def test_a_refused_resuming_of_a_late_trace_is_in_every_output() -> None:
    """vftrace came when the device was open already, so that no state of it is known."""
    tracker = Tracker()
    asked = (events.VfioState.SET, RESUMING, -1, -22)
    for event in (
        events.ClockSample(9, 0, events.COLLECTOR, 0, 10**18, 0),
        events.Process(
            *(10, 1, events.COLLECTOR, 0, 7, 1, None, None, "qemu"),
            incoming=True,
            started_paused=False,
            late=True,
            running=False,
        ),
        events.VfioState(20, 0, 7, 7, 19, 18, *asked),
        events.Exit(30, 1, 7, 7, 0),
    ):
        tracker.feed(event)
    tracker.finish()
    report = live_report(HostInfo("host", "boot", "kernel", "0", 0, ()), tracker.snapshot())
    (found,) = report.migrations
    assert found.migration.devices[0].states == ()
    assert found.migration.cause_detail == "fd 18: RESUMING refused, -22"
    assert "fd 18" in render_html(report)
    trace = perfetto_trace(report)
    assert trace.data
    assert not list(trace.left_out)
    traces, failed = traces_of(report.migrations)
    assert (len(traces), failed) == (1, [])
