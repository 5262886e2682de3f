# SPDX-License-Identifier: MIT
"""Jobs that migrate a VM with devices of our own driver, which follows instructions and logs its acts.

Where a kernel's VFIO has no precopy (6.1) the devices are P2P only.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vftlab.devices import (
    IOMMUFD,
    STOP_COPY_ARCS,
    Phys,
    Steer,
    device_file,
    has_precopy,
    need_iommufd,
    vfio_device,
)
from vftlab.job import CannotHereError, Job, JobError, say
from vftlab.vm import Migration, Vm, migrate, migration_truth, run_state, vm, vm_truth, wait_resumed

PAGE = 4096
KIB = 1 << 10
MIB = 1 << 20
HEADER = 24
# Of the failing jobs; a device that cannot precopy moves only the second part.
PRECOPY_BYTES = 64 * KIB
STOP_BYTES = 64 * KIB


def best_kind() -> str:
    return "precopy-p2p" if has_precopy() else "p2p"


@dataclass(frozen=True)
class Pair:
    """Two VMs, and the devices of each in the same order."""

    job: Job
    source: Vm
    destination: Vm
    sources: Sequence[Steer]
    targets: Sequence[Steer]

    def finish(self, migration: Migration, **more: object) -> None:
        """Write the truth: QEMU's figures and the devices' own logs."""
        devices = [
            {"uuid": device.name, "role": role, "log": device.log()}
            for role, devices in (("source", self.sources), ("destination", self.targets))
            for device in devices
        ]
        self.job.write_truth(
            {
                "vms": [vm_truth(self.source, "source"), vm_truth(self.destination, "destination")],
                "migration": migration_truth(migration),
                "devices": devices,
                **more,
            }
        )
        for device in (*self.sources, *self.targets):
            say(f"{device.name[-2:]}: {' '.join(device.walked())}")

    def expect(self, migration: Migration, status: str, source: str, destination: str) -> None:
        """JobError unless the migration and both VMs ended like this."""
        seen = (migration.status, run_state(self.source), run_state(self.destination))
        say(f"migration {seen[0]}, source {seen[1]}, destination {seen[2]}")
        if seen != (status, source, destination):
            raise JobError(f"expected {(status, source, destination)}, saw {seen}")


@contextlib.contextmanager
def pair(job: Job, kinds: Sequence[str]) -> Iterator[Pair]:
    """A VM with a device of each kind, and one like it that waits for it."""
    sources = [Steer.create(10 + i, kind) for i, kind in enumerate(kinds)]
    targets = [Steer.create(20 + i, kind) for i, kind in enumerate(kinds)]
    with pair_of(job, sources, targets) as two:
        yield two


@contextlib.contextmanager
def pair_of(
    job: Job,
    sources: Sequence[Steer],
    targets: Sequence[Steer],
    *,
    iommufd: bool = False,
    own_log: bool = True,
    passed: bool = False,
) -> Iterator[Pair]:
    """A VM with the sources, and one with the targets that waits for it.

    With `iommufd` devices are bound to one; if `passed` the waiting VM gets its devices as open files, as from
    libvirt. Without `own_log` QEMU asks the IOMMU what they wrote, not the devices.
    """
    options = IOMMUFD if iommufd else ()

    def words(devices: Sequence[Steer], fds: Sequence[int | None]) -> list[str]:
        return [
            vfio_device(device.name, i, iommufd=iommufd, own_log=own_log, fd=fd)
            for i, (device, fd) in enumerate(zip(devices, fds, strict=True))
        ]

    with contextlib.ExitStack() as stack:
        # A device's file can be opened once until it is bound: QEMU has it alone.
        fds: list[int] = []
        if passed:
            fds = [os.open(device_file(device.name), os.O_RDWR) for device in targets]
            for fd in fds:
                stack.callback(os.close, fd)
        source = stack.enter_context(
            vm(
                "source",
                job.results,
                devices=words(sources, [None] * len(sources)),
                options=options,
            )
        )
        destination = stack.enter_context(
            vm(
                "destination",
                job.results,
                devices=words(targets, fds or [None] * len(targets)),
                incoming=True,
                options=options,
                pass_fds=fds,
            )
        )
        yield Pair(job, source, destination, sources, targets)


def _moved(device: Steer, what: str) -> int:
    return sum(int(str(entry["bytes"])) for entry in device.log() if entry["what"] == what)


def _arc_ns(device: Steer, old: str, new: str) -> int:
    """How long the device's last arc from `old` to `new` took, by its own clock."""
    began = 0
    took = None
    for entry in device.log():
        if (entry.get("from"), entry.get("to")) == (old, new):
            if entry["what"] == "arc":
                began = int(str(entry["at_ns"]))
            elif entry["what"] == "state":
                took = int(str(entry["at_ns"])) - began
    if took is None:
        raise JobError(f"{device.name} never went from {old} to {new}")
    return took


def steer_downtime(job: Job) -> None:
    """Two devices that take set times and move set bytes: the truth for per-device downtime."""
    kinds = [best_kind(), "p2p"]
    precopy = 256 * KIB if has_precopy() else 0
    sizes = [(precopy, 512 * KIB), (0, MIB)]
    with pair(job, kinds) as two:
        save = STOP_COPY_ARCS[kinds[0]]
        # (device, from, to, microseconds)
        delays = [
            (two.sources[0], *save, 40_000),
            (two.sources[0], "STOP_COPY", "STOP", 20_000),
            (two.sources[1], "RUNNING_P2P", "STOP", 30_000),
            (two.sources[1], "STOP", "STOP_COPY", 10_000),
            (two.targets[0], "RESUMING", "STOP", 50_000),
            (two.targets[1], "RUNNING_P2P", "RUNNING", 120_000),
        ]
        for device, old, new, micros in delays:
            device.command(f"delay {old} {new} {micros}")
        for source, target, (before, after) in zip(two.sources, two.targets, sizes, strict=True):
            source.command(f"bytes {before} {after}")
            target.command(f"bytes {before} {after}")
        migration = migrate(two.source)
        wait_resumed(two.destination)
        set_times = [
            {"uuid": device.name, "from": old, "to": new, "us": micros}
            for device, old, new, micros in delays
        ]
        two.finish(migration, set_times=set_times, set_bytes=[HEADER + a + b for a, b in sizes])
        two.expect(migration, "completed", "postmigrate", "running")
        for device, old, new, micros in delays:
            took = _arc_ns(device, old, new)
            say(f"{device.name[-2:]} {old} to {new}: set {micros} us, took {took // 1000} us")
            if took < micros * 1000:
                raise JobError(f"{device.name} left {old} for {new} sooner than set")
        for source, target, (before, after) in zip(two.sources, two.targets, sizes, strict=True):
            moved = (_moved(source, "saved"), _moved(target, "loaded"))
            if moved != (HEADER + before + after,) * 2:
                raise JobError(f"{source.name} saved and loaded {moved}, set {before} + {after}")
        total = sum(HEADER + before + after for before, after in sizes)
        say(f"bytes set {total}, QEMU counted {migration.vfio_bytes}")
        if migration.vfio_bytes != total:
            raise JobError(
                f"QEMU counted {migration.vfio_bytes} bytes of device state, not {total}"
            )


# How the source's device walks on from the VM's first start, with precopy and without.
STOPPED = (
    "PRE_COPY PRE_COPY_P2P STOP_COPY STOP RUNNING_P2P RUNNING",
    "RUNNING_P2P STOP STOP_COPY STOP RUNNING_P2P RUNNING",
)


@contextlib.contextmanager
def _starved(machine: Vm) -> Iterator[None]:
    """A VM whose threads, but for the vCPUs, run only when nobody else wants a processor, and somebody does."""
    os.sched_setscheduler(machine.pid, os.SCHED_IDLE, os.sched_param(0))
    command = ["nice", "-n", "19", sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        os.sched_setscheduler(machine.pid, os.SCHED_OTHER, os.sched_param(0))


def _failing(
    job: Job,
    steer: Callable[[Pair], None],
    walked: tuple[str, str],
    *,
    before: str | None = None,
    starve: bool = False,
) -> None:
    """Migrate with one steered device: the migration must fail, and the source run on.

    `walked` is what the source's device must have walked since the VM started: with precopy, and
    without. `before` is the other way it may have gone, where the destination's failure may reach
    the source before its device is asked. With `starve` the source is kept slow.
    """
    with pair(job, [best_kind()]) as two:
        for device in (*two.sources, *two.targets):
            device.command(f"bytes {PRECOPY_BYTES} {STOP_BYTES}")
        steer(two)
        with _starved(two.source) if starve else contextlib.nullcontext():
            migration = migrate(two.source)
        # QEMU reports `failed` before the VM runs again.
        two.source.monitor.wait_running(30)
        two.destination.process.wait(20)
        two.finish(migration)
        say(f"QEMU's reason: {migration.result.get('error-desc')}")
        two.expect(migration, "failed", "running", "gone")
        start = "RUNNING RUNNING_P2P RUNNING"
        orders = {walked[0 if has_precopy() else 1]} | ({before} if before is not None else set())
        wanted = sorted(f"{start} {states}".strip() for states in orders)
        if (seen := " ".join(two.sources[0].walked())) not in wanted:
            raise JobError(f"the source's device walked {seen}, not {' or '.join(wanted)}")


def _after_the_stop() -> int:
    """A place in the state that is only read, and written, after the source's device stopped."""
    return HEADER + (PRECOPY_BYTES if has_precopy() else 0) + STOP_BYTES // 2


def _fail_stop_copy(two: Pair, *, broken: bool = False) -> None:
    old, new = STOP_COPY_ARCS[best_kind()]
    two.sources[0].command(f"fail {old} {new} 5 1" + (" error" if broken else ""))


def steer_fail_resuming(job: Job) -> None:
    """The destination's device refuses RESUMING with -22."""
    refuse = "fail STOP RESUMING 22 1"
    # The destination loads its setup as soon as it has the stream's header (QEMU's
    # qemu_loadvm_state). If it is gone when the source flushes its RAM's setup, that is where the
    # source's setup ends, and the devices after it are never asked (qemu_savevm_state_setup).
    _failing(job, lambda two: two.targets[0].command(refuse), ("PRE_COPY RUNNING", ""), before="")


def steer_fail_resuming_early(job: Job) -> None:
    """The same with a source that is slow: mostly its device is never asked for anything, as in the golden
    recording. Which of the two is first is still a race, on processors that others use."""
    refuse = "fail STOP RESUMING 22 1"
    late = "PRE_COPY RUNNING" if has_precopy() else ""
    _failing(job, lambda two: two.targets[0].command(refuse), ("", ""), before=late, starve=True)


def steer_fail_load(job: Job) -> None:
    """The destination's device fails while its state is written, with -5."""
    at = _after_the_stop()
    _failing(job, lambda two: two.targets[0].command(f"fail-write {at} 5"), STOPPED)


def steer_fail_save(job: Job) -> None:
    """The source's device fails while its state is read after the stop, with -5."""
    at = _after_the_stop()
    _failing(job, lambda two: two.sources[0].command(f"fail-read {at} 5"), STOPPED)


def steer_fail_stop_copy(job: Job) -> None:
    """The source's device refuses STOP_COPY with -5, and the source runs on."""
    # From PRE_COPY QEMU has no state to fall back on and resets; else it falls back on STOP.
    reset = "PRE_COPY PRE_COPY_P2P RUNNING RUNNING_P2P RUNNING"
    _failing(job, _fail_stop_copy, (reset, "RUNNING_P2P STOP RUNNING_P2P RUNNING"))


def steer_error(job: Job) -> None:
    """The source's device goes to ERROR instead of STOP_COPY; QEMU resets it and runs on."""
    broken = "ERROR RUNNING RUNNING_P2P RUNNING"
    walked = (f"PRE_COPY PRE_COPY_P2P {broken}", f"RUNNING_P2P STOP {broken}")
    _failing(job, lambda two: _fail_stop_copy(two, broken=True), walked)


def steer_refuse(job: Job) -> None:
    """The source's device refuses PRE_COPY with -16: the migration ends as it starts."""
    if not has_precopy():
        raise CannotHereError("VFIO without precopy")
    _failing(job, lambda two: two.sources[0].command("fail RUNNING PRE_COPY 16 1"), ("", ""))


# Guest memory that the firmware leaves alone, and how many pages the device writes from there on.
TOUCHES = ((16 * MIB, 7), (20 * MIB, 100), (32 * MIB, 1))


def _written_pages(machine: Vm, address: int, pages: int) -> int:
    """How many of the guest's pages from `address` on are not empty."""
    dump = Path("/tmp/pages")
    machine.monitor("pmemsave", val=address, size=pages * PAGE, filename=str(dump))
    memory = dump.read_bytes()
    dump.unlink()
    return sum(any(memory[at : at + PAGE]) for at in range(0, len(memory), PAGE))


def _dma(two: Pair) -> None:
    """The source's device writes to known pages during precopy, with whatever dirty tracking there is."""

    def touch() -> None:
        for iova, pages in TOUCHES:
            two.sources[0].command(f"touch {iova} {pages}")
            say(f"the device wrote to {pages} pages from {iova:#x} on")

    migration = migrate(two.source, during=touch)
    wait_resumed(two.destination)
    log = two.sources[0].log()
    logged = any(entry["what"] == "log-start" for entry in log)
    reported = sum(int(str(e["pages"])) for e in log if e["what"] == "reported")
    touched = sum(pages for _, pages in TOUCHES)
    two.finish(
        migration, tracking="device" if logged else "iommu", touched=touched, reported=reported
    )
    two.expect(migration, "completed", "postmigrate", "running")
    say(f"tracked by {'the device' if logged else 'the IOMMU driver'}, reported {reported}")
    # A container's type1 driver reports too, but only to QEMU.
    if (logged or isinstance(two.sources[0], Phys)) and reported != touched:
        raise JobError(f"the device wrote to {touched} pages, reported were {reported}")
    arrived = sum(_written_pages(two.destination, iova, pages) for iova, pages in TOUCHES)
    say(f"{arrived} of {touched} pages arrived")
    if arrived != touched:
        raise JobError(f"the device wrote to {touched} pages, {arrived} arrived")


def steer_dma(job: Job) -> None:
    """A device writes to known pages during precopy, and logs them itself where VFIO can carry that."""
    with pair(job, [best_kind()]) as two:
        _dma(two)


def steer_dma_container(job: Job) -> None:
    """The same with the IOMMU driver of QEMU's container asked, not the device."""
    devices = [Steer.create(number, best_kind()) for number in (10, 20)]
    with pair_of(job, devices[:1], devices[1:], own_log=False) as two:
        _dma(two)


def steer_dma_iommufd(job: Job) -> None:
    """A mediated device bound to an iommufd: it has no IOMMU, so it logs itself."""
    need_iommufd()
    devices = [Steer.create(number, best_kind()) for number in (10, 20)]
    with pair_of(job, devices[:1], devices[1:], iommufd=True) as two:
        _dma(two)


def steer_dma_phys(job: Job) -> None:
    """A device behind an IOMMU that tracks what it writes, by iommufd; the destination gets it as an open file."""
    devices = [Phys.take(number) for number in (0, 1)]
    with pair_of(job, devices[:1], devices[1:], iommufd=True, passed=True) as two:
        for device in devices:
            device.command(f"bytes {PRECOPY_BYTES} {STOP_BYTES}")
        _dma(two)


JOBS: dict[str, Callable[[Job], None]] = {
    "steer-downtime": steer_downtime,
    "steer-fail-resuming": steer_fail_resuming,
    "steer-fail-resuming-early": steer_fail_resuming_early,
    "steer-fail-load": steer_fail_load,
    "steer-fail-save": steer_fail_save,
    "steer-fail-stop-copy": steer_fail_stop_copy,
    "steer-error": steer_error,
    "steer-refuse": steer_refuse,
    "steer-dma": steer_dma,
    "steer-dma-container": steer_dma_container,
    "steer-dma-iommufd": steer_dma_iommufd,
    "steer-dma-phys": steer_dma_phys,
}
