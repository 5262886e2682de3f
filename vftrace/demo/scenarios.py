# SPDX-License-Identifier: MIT
"""The table of scenarios: what is done to real VMs, step by step, and how QEMU is expected to end.

`run_scenario` plays one and returns its `Truth`: QEMU's own figures, what was done and when, and
what the guest wrote. Names are stable: recordings and tests are kept under them.
"""

import asyncio
import json
import signal
import tempfile
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from vftrace.demo import guest, libvirt, qemu
from vftrace.demo.display import Viewer
from vftrace.demo.guest import DirtySet
from vftrace.demo.qemu import MigrationFigures, Qemu, QemuError, QmpEvent, boottime_ns
from vftrace.errors import UsageError

Role = Literal["source", "destination", "other"]

MIB = 1024 * 1024
MEMORY_MIB = 128
FIRST_PAGE = 0x1000
"""The guest's set begins at 16 MiB: past everything firmware touches."""

_POLL_SECONDS = 0.02
_FINAL = ("completed", "failed", "cancelled")


class GuestTruth(msgspec.Struct, frozen=True):
    """What the firmware guest was set to dirty, in 4 KiB guest pages; `also_dirty` it writes
    beside its set.
    """

    schedule: DirtySet
    first_page: int
    last_page: int
    pages: int
    also_dirty: tuple[int, ...]
    pages_per_second: int


class Process(msgspec.Struct, frozen=True):
    """One QEMU of the scenario. Times are CLOCK_BOOTTIME ns; `ended_at_ns` is when its end was
    noticed.
    """

    pid: int
    role: Role
    uuid: str | None
    name: str | None
    command: tuple[str, ...]
    started_at_ns: int
    ended_at_ns: int | None
    guest: GuestTruth | None


class Action(msgspec.Struct, frozen=True):
    """Something the driver did: taken just before the driver requested it (CLOCK_BOOTTIME ns)."""

    at_ns: int
    what: str
    pid: int


class Sample(msgspec.Struct, frozen=True):
    """QEMU's figures when status or number of dirty syncs had changed (polled every 20 ms)."""

    at_ns: int
    status: str | None
    dirty_sync_count: int | None
    dirty_pages_rate: int | None
    transferred_bytes: int | None
    remaining_bytes: int | None


class Attempt(msgspec.Struct, frozen=True):
    """One migration attempt as QEMU accounts for it.

    `source` and `destination` are the last answers to query-migrate. QEMU gives no figures after a
    failure or a cancel; `counted` is the last answer of the source that had any.
    """

    source_pid: int
    destination_pid: int | None
    channel: str
    capabilities: tuple[str, ...]
    parameters: Mapping[str, int]
    issued_at_ns: int
    ended_at_ns: int
    source: MigrationFigures | None
    counted: MigrationFigures | None
    destination: MigrationFigures | None
    samples: tuple[Sample, ...]


class GuestProgress(msgspec.Struct, frozen=True):
    """The guest's own counter as the driver read it: page writes so far of the VM that process
    `pid` holds.
    """

    at_ns: int
    pid: int
    writes: int


class Truth(msgspec.Struct, frozen=True):
    """Everything known about a run from outside any tracer. `dirty_rate` is query-dirty-rate's
    answer, where asked.
    """

    scenario: str
    is_migration: bool
    qemu_version: str
    started_at_ns: int
    ended_at_ns: int
    processes: tuple[Process, ...]
    attempts: tuple[Attempt, ...]
    actions: tuple[Action, ...]
    events: tuple[QmpEvent, ...]
    progress: tuple[GuestProgress, ...]
    dirty_rate: Mapping[str, Any] | None
    screen_updates: int

    def to_json(self) -> str:
        """One JSON object with the fields' names as keys."""
        return json.dumps(msgspec.to_builtins(self), indent=1)


class Spec(msgspec.Struct, frozen=True):
    """What a VM is made of. `rom` None means SeaBIOS, `dirty` None a guest that is not the dirtying
    firmware.
    """

    name: str | None
    uuid: str | None
    rom: Path | None = None
    dirty: DirtySet | None = None
    accel: str = "kvm"
    extra: tuple[str, ...] = ()
    like_libvirt: bool = False

    def arguments(self, directory: Path, *, incoming: bool, held: bool) -> tuple[str, ...]:
        """QEMU's command line; `held` does not start the vCPUs (-S)."""
        if self.like_libvirt:
            assert self.name is not None
            assert self.uuid is not None
            assert self.rom is not None
            return libvirt.arguments(
                self.name, self.uuid, self.rom, directory, MEMORY_MIB, incoming=incoming
            )
        return (
            *(
                "-machine",
                "pc",
                "-accel",
                self.accel,
                "-m",
                str(MEMORY_MIB),
                "-nodefaults",
                "-display",
                "none",
            ),
            *(("-name", f"guest={self.name}") if self.name else ()),
            *(("-uuid", self.uuid) if self.uuid else ()),
            *(("-bios", str(self.rom)) if self.rom else ()),
            *self.extra,
            *(("-S",) if held else ()),
            *(("-incoming", "defer") if incoming else ()),
        )


class Vm(msgspec.Struct):
    """A VM of the run: its QEMU, what it was made of, and the viewer of its screen."""

    qemu: Qemu
    spec: Spec
    role: Role
    viewer: Viewer | None = None


class Migration(msgspec.Struct):
    """A migration that is under way; `samples` grows."""

    source: Vm
    destination: Vm | None
    channel: str
    capabilities: tuple[str, ...]
    parameters: Mapping[str, int]
    issued_at_ns: int
    first_event: int
    poller: "asyncio.Task[None] | None" = None
    samples: list[Sample] = msgspec.field(default_factory=list)
    last: MigrationFigures | None = None
    counted: MigrationFigures | None = None

    async def status(self, wanted: str) -> None:
        """Wait until the source reports this status. Raises QemuError when it ends with
        another.
        """
        event = await self._event(
            lambda event: event.name == "MIGRATION" and event.data["status"] in {wanted, *_FINAL},
            f"migration status {wanted}",
        )
        if event.data["status"] != wanted:
            why = (await self.source.qemu.query_migrate()).error_desc
            raise QemuError(
                f"the migration is {event.data['status']}, not {wanted}{f': {why}' if why else ''}"
            )

    async def dirty_sync(self, number: int) -> None:
        """Wait until the source has made its dirty sync number `number` (the first is 1)."""
        await self._event(
            lambda event: event.name == "MIGRATION_PASS" and event.data["pass"] >= number,
            f"dirty sync {number}",
        )

    async def stopped(self) -> None:
        """Wait until the source has stopped its vCPUs."""
        await self._event(lambda event: event.name == "STOP", "STOP")

    async def poll(self) -> None:
        """Ask for figures until the source is gone; keep those with a new status or number of dirty
        syncs.
        """
        with suppress(QemuError):
            while self.source.qemu.alive:
                self.note(await self.source.qemu.query_migrate())
                await asyncio.sleep(_POLL_SECONDS)

    def note(self, now: MigrationFigures) -> None:
        """Take an answer of query-migrate."""
        if now.status is None:
            return
        before, self.last = self.last, now
        if now.dirty_sync_count is not None:
            self.counted = now
        if before is None or (before.status, before.dirty_sync_count) != (
            now.status,
            now.dirty_sync_count,
        ):
            self.samples.append(
                Sample(**{name: getattr(now, name) for name in Sample.__struct_fields__})
            )

    async def _event(self, wanted: Callable[[QmpEvent], bool], what: str) -> QmpEvent:
        return await self.source.qemu.wait_event(wanted, what, self.first_event)


class Run:
    """One run of a scenario: starts VMs, acts on them, and collects the Truth. Everything ends with
    `stack`.
    """

    def __init__(
        self,
        scenario: str,
        binary: Path,
        directory: Path,
        stack: AsyncExitStack,
        on_progress: Callable[[str], None],
    ) -> None:
        self.scenario = scenario
        self.binary = binary
        self.version = qemu.qemu_version(binary)
        self.directory = directory
        self.on_progress = on_progress
        self._stack = stack
        self._started_at_ns = boottime_ns()
        self._vms: list[Vm] = []
        self._actions: list[Action] = []
        self._attempts: list[Attempt] = []
        self._progress: list[GuestProgress] = []
        self._dirty_rate: Mapping[str, Any] | None = None

    def firmware(
        self, dirty: DirtySet, number: int = 0, *, accel: str = "kvm", anonymous: bool = False
    ) -> Spec:
        """A VM whose firmware dirties `dirty`. Number and scenario make its UUID and name, unless
        it is `anonymous`.
        """
        rom = self.directory / f"firmware-{number}.rom"
        rom.write_bytes(guest.dirtying_rom(dirty))
        if anonymous:
            return Spec(None, None, rom, dirty, accel)
        return Spec(self._name(number), self._uuid(number), rom, dirty, accel)

    def graphics(self) -> Spec:
        """A VM that SeaBIOS boots from our boot sector, with a VGA card."""
        disk = self.directory / "boot.img"
        disk.write_bytes(guest.boot_sector() + bytes(MIB - 512))
        # Read-only, so that source and destination may both hold it (QEMU locks images it can
        # write).
        drive = ("-drive", f"if=virtio,format=raw,readonly=on,file={disk}")
        return Spec(
            self._name(0), self._uuid(0), extra=("-device", "VGA", *drive, "-boot", "strict=on")
        )

    async def start(self, spec: Spec, role: Role, *, held: bool = False, view: bool = False) -> Vm:
        """Start a VM; a destination waits for `migrate-incoming`. With `view` a display client
        draws it.
        """
        number = len(self._vms)
        screen = self.directory / f"screen-{number}"
        arguments = spec.arguments(self.directory, incoming=role == "destination", held=held)
        if view:
            arguments = (*arguments, "-vnc", f"unix:{screen}")
        log = self.directory / f"qemu-{number}.log"
        running = await self._stack.enter_async_context(qemu.start(self.binary, arguments, log))
        vm = Vm(running, spec, role, Viewer(screen) if view else None)
        self._vms.append(vm)
        return vm

    async def source(self, spec: Spec, *, view: bool = False) -> Vm:
        """Start a VM and wait until its guest has written its whole set once, or draws."""
        vm = await self.start(spec, "source", view=view)
        if spec.like_libvirt:
            await self.act("cont", vm)
        await self.guest_runs(vm)
        self._view(vm)
        return vm

    async def destination(self, source: Vm, *, held: bool = False) -> Vm:
        """Start the VM that `source` will migrate to."""
        viewed = source.viewer is not None
        vm = await self.start(source.spec, "destination", held=held, view=viewed)
        self._view(vm)
        return vm

    async def act(self, what: str, vm: Vm, **arguments: object) -> Any:
        """Note and run a QMP command."""
        self._actions.append(Action(boottime_ns(), what, vm.qemu.pid))
        return await vm.qemu.command_qmp(what, **arguments)

    async def job(self, what: str, vm: Vm, **arguments: object) -> None:
        """Run a QMP command that is a job, and wait for its end. Raises QemuError if it fails."""
        name = f"{what}-{len(self._actions)}"
        await self.act(what, vm, job_id=name, **arguments)
        found: dict[str, Any] = {}
        while found.get("status") != "concluded":
            await asyncio.sleep(_POLL_SECONDS)
            (found,) = [j for j in await vm.qemu.command_qmp("query-jobs") if j["id"] == name]
        await vm.qemu.command_qmp("job-dismiss", id=name)
        if "error" in found:
            raise QemuError(f"QEMU {vm.qemu.pid}: {what} failed: {found['error']}")

    async def send_signal(self, number: signal.Signals, vm: Vm) -> None:
        """Note and send a signal; waits for the process to end where the signal ends it."""
        self._actions.append(Action(boottime_ns(), number.name, vm.qemu.pid))
        vm.qemu.kill(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            await vm.qemu.ended()

    async def migrate(
        self,
        source: Vm,
        destination: Vm | None,
        *,
        bandwidth: int,
        downtime_ms: int,
        capabilities: tuple[str, ...] = (),
        parameters: Mapping[str, int] | None = None,
        channel: str = "tcp",
    ) -> Migration:
        """Begin a migration. `bandwidth` in bytes/s; `channel` is tcp, unix, or an address for
        `migrate` itself.
        """
        settings = {"max-bandwidth": bandwidth, "downtime-limit": downtime_ms, **(parameters or {})}
        # "events": MIGRATION and MIGRATION_PASS say at once what polling would say late.
        states = [{"capability": name, "state": True} for name in ("events", *capabilities)]
        for vm in (source, destination):
            if vm is not None:
                await vm.qemu.command_qmp("migrate-set-capabilities", capabilities=states)
                await vm.qemu.command_qmp("migrate-set-parameters", **settings)
        address = channel if destination is None else await self._listen(destination, channel)
        await self._read_progress(source)
        first_event = len(source.qemu.events)
        self.on_progress(
            f"QEMU {source.qemu.pid} migrates over {channel} at {bandwidth / MIB:.0f} MiB/s"
        )
        issued_at_ns = boottime_ns()
        migration = Migration(
            source, destination, channel, capabilities, settings, issued_at_ns, first_event
        )
        await self.act("migrate", source, uri=address)
        migration.poller = asyncio.ensure_future(migration.poll())
        self._stack.push_async_callback(_cancel, migration.poller)
        return migration

    async def finish(self, migration: Migration) -> None:
        """Take QEMU's last figures of a migration and close its account."""
        assert migration.poller is not None
        await _cancel(migration.poller)
        if migration.source.qemu.alive:
            migration.note(await migration.source.qemu.query_migrate())
        destination = migration.destination
        at_destination = None
        if destination is not None and destination.qemu.alive:
            at_destination = await destination.qemu.query_migrate()
        self._attempts.append(
            Attempt(
                source_pid=migration.source.qemu.pid,
                destination_pid=destination.qemu.pid if destination else None,
                channel=migration.channel,
                capabilities=migration.capabilities,
                parameters=migration.parameters,
                issued_at_ns=migration.issued_at_ns,
                ended_at_ns=boottime_ns(),
                source=migration.last,
                counted=migration.counted,
                destination=at_destination,
                samples=tuple(migration.samples),
            )
        )
        status = migration.last.status if migration.last else None
        self.on_progress(f"QEMU {migration.source.qemu.pid}: migration {status}")

    async def arrived(self, migration: Migration) -> None:
        """Wait until the migration has completed and the guest runs at the destination; then close
        its account.
        """
        assert migration.destination is not None
        await migration.status("completed")
        await migration.destination.qemu.wait_event(lambda event: event.name == "RESUME", "RESUME")
        await self.guest_runs(migration.destination)
        await self.finish(migration)

    async def guest_runs(self, vm: Vm) -> None:
        """Wait until the guest is seen to make progress."""
        if vm.spec.dirty is None:
            frame = guest.GRAPHICS_FIRST_PAGE * guest.PAGE_SIZE
            before = await vm.qemu.read_u32(frame)
            await vm.qemu.wait_u32(frame, lambda value: value != before, "frame drawn by the guest")
            return
        before = await vm.qemu.read_u32(guest.TICKS_ADDRESS)
        await vm.qemu.wait_u32(
            guest.TICKS_ADDRESS, lambda value: value > before, "page written by the guest"
        )
        await self._read_progress(vm)

    async def dirty_rate(self, vm: Vm, mode: str) -> None:
        """Have QEMU measure the dirty rate for a second."""
        await self.act("calc-dirty-rate", vm, calc_time=1, mode=mode)
        # There is no event for its end; QEMU answers "measuring" until then.
        await asyncio.sleep(1)
        while (answer := await vm.qemu.command_qmp("query-dirty-rate"))["status"] != "measured":
            await asyncio.sleep(0.02)
        self._dirty_rate = answer

    def truth(self, scenario: "Scenario") -> Truth:
        """Return what has been collected, ordered by time."""
        events = sorted(
            (event for vm in self._vms for event in vm.qemu.events), key=lambda event: event.at_ns
        )
        return Truth(
            scenario=scenario.name,
            is_migration=scenario.is_migration,
            qemu_version=".".join(map(str, self.version)),
            started_at_ns=self._started_at_ns,
            ended_at_ns=boottime_ns(),
            processes=tuple(_process(vm) for vm in self._vms),
            attempts=tuple(self._attempts),
            actions=tuple(self._actions),
            events=tuple(events),
            progress=tuple(self._progress),
            dirty_rate=self._dirty_rate,
            screen_updates=sum(vm.viewer.frames for vm in self._vms if vm.viewer),
        )

    async def _listen(self, destination: Vm, channel: str) -> str:
        """Have the destination listen; returns the address to migrate to."""
        if channel == "unix":
            address = f"unix:{self.directory / f'migrate-{destination.qemu.pid}'}"
            await destination.qemu.command_qmp("migrate-incoming", uri=address)
            return address
        await destination.qemu.command_qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
        listening = await destination.qemu.command_qmp("query-migrate")
        return f"tcp:127.0.0.1:{listening['socket-address'][0]['port']}"

    def _view(self, vm: Vm) -> None:
        """Begin to draw the VM's screen. A source's only once its guest draws: a viewer slows its
        boot.
        """
        if vm.viewer is not None:
            watching = asyncio.ensure_future(vm.viewer.watch())
            self._stack.push_async_callback(_cancel, watching)

    async def _read_progress(self, vm: Vm) -> None:
        if vm.spec.dirty is not None:
            at_ns = boottime_ns()
            ticks = await vm.qemu.read_u32(guest.TICKS_ADDRESS)
            self._progress.append(
                GuestProgress(at_ns, vm.qemu.pid, vm.spec.dirty.writes_after(ticks))
            )

    def _name(self, number: int) -> str:
        return f"demo-{self.scenario}" + (f"-{number}" if number else "")

    def _uuid(self, number: int) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"vftrace/demo/{self.scenario}/{number}"))


class Scenario(msgspec.Struct, frozen=True):
    """A row of the table: `expect` are the statuses QEMU's source must end with, one for each
    attempt.
    """

    name: str
    title: str
    run: Callable[[Run], Awaitable[None]]
    expect: tuple[str, ...] = ("completed",)

    @property
    def is_migration(self) -> bool:
        """Whether the scenario migrates at all."""
        return bool(self.expect)


SLOW = guest.fixed(FIRST_PAGE, 3072, 1000)
"""Half of what 8 MiB/s can send: every round is about half as long as the one before."""

FAST = guest.fixed(FIRST_PAGE, 8192, 16000)
"""The same for 128 MiB/s."""

XBZRLE = guest.fixed(FIRST_PAGE, 2048, 2000)
POSTCOPY = guest.fixed(FIRST_PAGE, 4096, 1600)

HOT = guest.fixed(FIRST_PAGE, 500, 8000)
"""At 8 MiB/s what QEMU's default limit of 300 ms allows to be left, and far more than 20 ms allow; all of it becomes
dirty again in every round."""

BLACKOUT = guest.fixed(FIRST_PAGE, 8192, 8000)


_SLOW_NETWORK = 8 * MIB
_FAST_NETWORK = 128 * MIB


async def _begin(
    run: Run,
    *,
    dirty: DirtySet = SLOW,
    number: int = 0,
    accel: str = "kvm",
    bandwidth: int = _SLOW_NETWORK,
    downtime_ms: int = 20,
    capabilities: tuple[str, ...] = (),
    parameters: Mapping[str, int] | None = None,
    channel: str = "tcp",
) -> tuple[Vm, Vm, Migration]:
    """A dirtying guest, its destination, and the migration between them under way."""
    source = await run.source(run.firmware(dirty, number, accel=accel))
    destination = await run.destination(source)
    migration = await run.migrate(
        source,
        destination,
        bandwidth=bandwidth,
        downtime_ms=downtime_ms,
        capabilities=capabilities,
        parameters=parameters,
        channel=channel,
    )
    return source, destination, migration


async def _arrive(run: Run, migration: Migration) -> None:
    """The ordinary end: the guest runs at the destination, the source's process is ended, the
    other's after it.
    """
    assert migration.destination is not None
    await run.arrived(migration)
    await run.send_signal(signal.SIGTERM, migration.source)
    await run.send_signal(signal.SIGTERM, migration.destination)


async def _stay(run: Run, migration: Migration) -> None:
    """The end of a migration that did not happen: the guest goes on at the source."""
    await run.guest_runs(migration.source)
    await run.finish(migration)
    await run.send_signal(signal.SIGTERM, migration.source)


async def _completed_slow(run: Run) -> None:
    _, _, migration = await _begin(run)
    await _arrive(run, migration)


async def _completed_fast(run: Run) -> None:
    _, _, migration = await _begin(run, dirty=FAST, bandwidth=_FAST_NETWORK, downtime_ms=10)
    await _arrive(run, migration)


async def _dirty_ring(run: Run) -> None:
    _, _, migration = await _begin(run, accel="kvm,dirty-ring-size=4096")
    await _arrive(run, migration)


async def _multifd(run: Run) -> None:
    _, _, migration = await _begin(
        run, capabilities=("multifd",), parameters={"multifd-channels": 2}
    )
    await _arrive(run, migration)


async def _xbzrle(run: Run) -> None:
    # Half the bandwidth: from the second round on a page costs a few bytes instead of 4 KiB, which
    # makes precopy converge where it would not otherwise.
    _, _, migration = await _begin(
        run,
        dirty=XBZRLE,
        bandwidth=_SLOW_NETWORK // 2,
        capabilities=("xbzrle",),
        parameters={"xbzrle-cache-size": 64 * MIB},
        downtime_ms=5,
    )
    await _arrive(run, migration)


async def _pause_before_switchover(run: Run) -> None:
    source, _, migration = await _begin(
        run, capabilities=("pause-before-switchover",), channel="unix"
    )
    await migration.status("pre-switchover")
    await asyncio.sleep(1)
    await run.act("migrate-continue", source, state="pre-switchover")
    await _arrive(run, migration)


async def _postcopy(run: Run) -> None:
    source, _, migration = await _begin(
        run,
        dirty=POSTCOPY,
        capabilities=("postcopy-ram",),
        parameters={"max-postcopy-bandwidth": _SLOW_NETWORK},
    )
    await migration.dirty_sync(3)
    await run.act("migrate-start-postcopy", source)
    await migration.status("postcopy-active")
    await _arrive(run, migration)


async def _cancel_precopy(run: Run) -> None:
    source, destination, migration = await _begin(run)
    await migration.dirty_sync(3)
    await run.act("migrate_cancel", source)
    await migration.status("cancelled")
    await destination.qemu.ended()
    await _stay(run, migration)


async def _cancel_not_converging(run: Run) -> None:
    source, destination, migration = await _begin(run, dirty=HOT)
    await migration.dirty_sync(24)
    await run.act("migrate_cancel", source)
    await migration.status("cancelled")
    await destination.qemu.ended()
    await _stay(run, migration)


async def _cancel_pre_switchover(run: Run) -> None:
    source, destination, migration = await _begin(run, capabilities=("pause-before-switchover",))
    await migration.status("pre-switchover")
    await run.act("migrate_cancel", source)
    await migration.status("cancelled")
    await destination.qemu.ended()
    await _stay(run, migration)


async def _dest_killed_precopy(run: Run) -> None:
    _, destination, migration = await _begin(run)
    await migration.dirty_sync(3)
    await run.send_signal(signal.SIGKILL, destination)
    await migration.status("failed")
    await _stay(run, migration)


async def _source_killed_precopy(run: Run) -> None:
    source, destination, migration = await _begin(run)
    await migration.dirty_sync(3)
    await run.send_signal(signal.SIGKILL, source)
    await destination.qemu.ended()
    await run.finish(migration)


async def _dest_killed_blackout(run: Run) -> None:
    # A limit of 30 s lets QEMU stop the guest after 100 ms, with nearly all of its set still to
    # send. In the blackout QEMU sends as fast as it can (migration/migration.c,
    # migration_completion), which can be over before a kill: so the destination is frozen early, as
    # if its host hung. What QEMU sends until it stops the guest fits the socket's buffers, what it
    # sends afterwards does not.
    _, destination, migration = await _begin(run, dirty=BLACKOUT, downtime_ms=30_000)
    await destination.qemu.wait_event(lambda event: event.data.get("status") == "active", "stream")
    await run.send_signal(signal.SIGSTOP, destination)
    await migration.stopped()
    await asyncio.sleep(0.5)
    await run.send_signal(signal.SIGKILL, destination)
    await migration.status("failed")
    await _stay(run, migration)


async def _libvirt(run: Run) -> None:
    source = await run.source(run.firmware(SLOW))
    destination = await run.destination(source, held=True)
    migration = await run.migrate(source, destination, bandwidth=_SLOW_NETWORK, downtime_ms=20)
    await migration.status("completed")
    await asyncio.sleep(0.3)
    await run.act("cont", destination)
    await _arrive(run, migration)


async def _libvirt_cmdline(run: Run) -> None:
    spec = msgspec.structs.replace(run.firmware(SLOW), like_libvirt=True)
    source = await run.source(spec)
    destination = await run.destination(source)
    migration = await run.migrate(source, destination, bandwidth=_SLOW_NETWORK, downtime_ms=20)
    await migration.status("completed")
    await run.act("cont", destination)
    await _arrive(run, migration)


async def _paused_before(run: Run) -> None:
    source = await run.source(run.firmware(SLOW))
    await run.act("stop", source)
    destination = await run.destination(source)
    migration = await run.migrate(source, destination, bandwidth=_SLOW_NETWORK, downtime_ms=20)
    await migration.status("completed")
    await destination.qemu.wait_event(
        lambda event: event.name == "MIGRATION" and event.data["status"] == "completed", "arrival"
    )
    await run.finish(migration)
    await run.send_signal(signal.SIGTERM, source)
    await run.send_signal(signal.SIGTERM, destination)


async def _file(run: Run) -> None:
    source, migration = await _save(run)
    await run.finish(migration)
    await run.send_signal(signal.SIGTERM, source)


async def _save(run: Run) -> tuple[Vm, Migration]:
    """A guest whose memory and state have been written to a file, and which stands since."""
    source = await run.source(run.firmware(SLOW))
    path = run.directory / "saved"
    with path.open("wb") as saved:
        if run.version >= (8, 2, 0):
            channel = f"file:{path}"
        else:  # older QEMU has no file: address, but takes an open file
            await source.qemu.pass_file("saved", saved.fileno())
            channel = "fd:saved"
        migration = await run.migrate(
            source, None, bandwidth=_SLOW_NETWORK, downtime_ms=20, channel=channel
        )
        await migration.status("completed")
    return source, migration


async def _file_resumed(run: Run) -> None:
    # As `virsh snapshot-create-as --memspec` does it: the guest's memory in a file, and on it goes.
    source, migration = await _save(run)
    await run.act("cont", source)
    await _stay(run, migration)


async def _reboot(run: Run) -> None:
    source, _, migration = await _begin(run)
    await migration.dirty_sync(3)
    await run.act("system_reset", source)
    await _arrive(run, migration)


async def _retry(run: Run) -> None:
    source, first, migration = await _begin(run)
    second = await run.destination(source)
    await migration.dirty_sync(2)
    await run.send_signal(signal.SIGKILL, first)
    await migration.status("failed")
    await run.finish(migration)
    again = await run.migrate(source, second, bandwidth=_SLOW_NETWORK, downtime_ms=20)
    await _arrive(run, again)


async def _postcopy_recover(run: Run) -> None:
    source, destination, migration = await _begin(
        run,
        dirty=POSTCOPY,
        capabilities=("postcopy-ram",),
        parameters={"max-postcopy-bandwidth": _SLOW_NETWORK // 2},
    )
    await migration.dirty_sync(3)
    await run.act("migrate-start-postcopy", source)
    await migration.status("postcopy-active")
    await asyncio.sleep(0.3)
    await run.act("migrate-pause", source)
    await migration.status("postcopy-paused")
    await destination.qemu.wait_event(
        lambda event: event.data.get("status") == "postcopy-paused", "postcopy-paused"
    )
    address = f"unix:{run.directory / 'recover'}"
    await run.act("migrate-recover", destination, uri=address)
    await run.act("migrate", source, uri=address, resume=True)
    await _arrive(run, migration)


async def _four_at_once(run: Run) -> None:
    async def one(number: int) -> None:
        dirty = guest.fixed(FIRST_PAGE + number * 0x400, 1024 + number * 256, 600)
        _, _, migration = await _begin(run, dirty=dirty, number=number, bandwidth=5 * MIB)
        await _arrive(run, migration)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(one(number))
    except* QemuError as errors:
        raise errors.exceptions[0] from None


async def _there_and_back(run: Run) -> None:
    dirty = guest.fixed(FIRST_PAGE, 1536, 1000)
    source, there, migration = await _begin(run, dirty=dirty)
    await run.arrived(migration)
    await run.send_signal(signal.SIGTERM, source)
    back = await run.destination(there)
    migration = await run.migrate(there, back, bandwidth=_SLOW_NETWORK, downtime_ms=20)
    await _arrive(run, migration)


async def _no_uuid(run: Run) -> None:
    source = await run.source(run.firmware(SLOW, anonymous=True))
    destination = await run.destination(source)
    migration = await run.migrate(source, destination, bandwidth=_SLOW_NETWORK, downtime_ms=20)
    await _arrive(run, migration)


async def _graphics(run: Run) -> None:
    source = await run.source(run.graphics(), view=True)
    destination = await run.destination(source)
    # Each frame dirties more than a limit of 1 ms allows: precopy goes on until the limit is
    # raised, as an operator would do it.
    migration = await run.migrate(source, destination, bandwidth=2 * MIB, downtime_ms=1)
    await migration.dirty_sync(6)
    await run.act("migrate-set-parameters", source, downtime_limit=500)
    await _arrive(run, migration)


async def _stop_cont(run: Run) -> None:
    vm = await run.source(run.firmware(SLOW))
    for _ in range(2):
        await run.act("stop", vm)
        await asyncio.sleep(0.3)
        await run.act("cont", vm)
        await run.guest_runs(vm)
    await run.send_signal(signal.SIGTERM, vm)


async def _savevm(run: Run) -> None:
    vm = await run.source(run.firmware(SLOW))
    await _add_disk(run, vm)
    monitor = "human-monitor-command"
    await run.act(monitor, vm, command_line="savevm first")
    await run.guest_runs(vm)
    await run.job("snapshot-save", vm, tag="second", vmstate="disk", devices=["disk"])
    await run.guest_runs(vm)
    await run.act(monitor, vm, command_line="loadvm first")
    await run.guest_runs(vm)
    await run.send_signal(signal.SIGTERM, vm)


async def _add_disk(run: Run, vm: Vm) -> None:
    """A qcow2 image that snapshots can be written to; the guest does not see it."""
    file = {"driver": "file", "filename": str(run.directory / "disk.qcow2")}
    await run.job("blockdev-create", vm, options={**file, "size": 0})
    await vm.qemu.command_qmp("blockdev-add", **file, node_name="disk-file")
    image = {"driver": "qcow2", "file": "disk-file"}
    await run.job("blockdev-create", vm, options={**image, "size": 1024 * MIB})
    await vm.qemu.command_qmp("blockdev-add", **image, node_name="disk")


async def _dump_guest_memory(run: Run) -> None:
    vm = await run.source(run.firmware(SLOW))
    for detach in (False, True):
        first_event = len(vm.qemu.events)
        core = f"file:{run.directory / f'core-{detach}'}"
        await run.act("dump-guest-memory", vm, paging=False, protocol=core, detach=detach)
        await vm.qemu.wait_event(
            lambda event: event.name == "DUMP_COMPLETED", "DUMP_COMPLETED", first_event
        )
        await run.guest_runs(vm)
    await run.send_signal(signal.SIGTERM, vm)


async def _display_only(run: Run) -> None:
    vm = await run.source(run.graphics(), view=True)
    await asyncio.sleep(1.5)
    await run.send_signal(signal.SIGTERM, vm)


async def _boot(run: Run) -> None:
    vm = await run.source(run.graphics())
    await run.send_signal(signal.SIGTERM, vm)


async def _calc_dirty_rate(run: Run, mode: str, accel: str = "kvm") -> None:
    vm = await run.source(run.firmware(SLOW, accel=accel))
    await run.dirty_rate(vm, mode)
    await run.send_signal(signal.SIGTERM, vm)


async def _calc_dirty_rate_bitmap(run: Run) -> None:
    await _calc_dirty_rate(run, "dirty-bitmap")


async def _calc_dirty_rate_sampling(run: Run) -> None:
    await _calc_dirty_rate(run, "page-sampling")


async def _calc_dirty_rate_ring(run: Run) -> None:
    await _calc_dirty_rate(run, "dirty-ring", "kvm,dirty-ring-size=4096")


_TABLE = (
    Scenario("completed-slow", "completed, slow network (8 MiB/s)", _completed_slow),
    Scenario("completed-fast", "completed, fast network (128 MiB/s)", _completed_fast),
    Scenario("dirty-ring", "completed, KVM dirty ring instead of the bitmap", _dirty_ring),
    Scenario("multifd", "completed, two multifd channels", _multifd),
    Scenario("xbzrle", "completed, xbzrle-compressed", _xbzrle),
    Scenario(
        "pause-before-switchover",
        "completed, held for 1 s with the guest stopped before the switchover",
        _pause_before_switchover,
    ),
    Scenario("postcopy", "completed in postcopy, started after two rounds", _postcopy),
    Scenario("cancel-precopy", "cancelled in precopy", _cancel_precopy, ("cancelled",)),
    Scenario(
        "cancel-not-converging",
        "cancelled after 23 rounds that did not converge",
        _cancel_not_converging,
        ("cancelled",),
    ),
    Scenario(
        "cancel-pre-switchover",
        "cancelled with the guest stopped before the switchover",
        _cancel_pre_switchover,
        ("cancelled",),
    ),
    Scenario(
        "dest-killed-precopy", "destination killed in precopy", _dest_killed_precopy, ("failed",)
    ),
    Scenario(
        "source-killed-precopy", "source killed in precopy", _source_killed_precopy, ("active",)
    ),
    Scenario(
        "dest-killed-blackout",
        "destination hangs and is killed in the blackout; the guest runs again on the source",
        _dest_killed_blackout,
        ("failed",),
    ),
    Scenario("libvirt", "completed as libvirt does it: the destination waits for cont", _libvirt),
    Scenario("paused-before", "completed with a guest that was paused before", _paused_before),
    Scenario("file", "the running guest saved to a file", _file),
    Scenario("file-resumed", "saved to a file, then the guest runs again", _file_resumed),
    Scenario("reboot", "completed, the guest reset in the middle of it", _reboot),
    Scenario(
        "retry",
        "destination killed in precopy, at once another one taken",
        _retry,
        ("failed", "completed"),
    ),
    Scenario(
        "postcopy-recover",
        "completed in postcopy, with the channel broken and made again",
        _postcopy_recover,
    ),
    Scenario("four-at-once", "four guests at once", _four_at_once, ("completed",) * 4),
    Scenario("there-and-back", "there and back again", _there_and_back, ("completed",) * 2),
    Scenario("graphics", "a graphics guest under SeaBIOS while a viewer draws it", _graphics),
    Scenario("libvirt-cmdline", "a command line as libvirt writes it", _libvirt_cmdline),
    Scenario("no-uuid", "a guest with neither UUID nor name", _no_uuid),
    Scenario("stop-cont", "no migration: stopped and continued twice", _stop_cont, ()),
    Scenario("savevm", "no migration: snapshots into the disk's image, one loaded", _savevm, ()),
    Scenario(
        "dump-guest-memory",
        "no migration: the guest's memory dumped, stopped and running",
        _dump_guest_memory,
        (),
    ),
    Scenario("display-only", "no migration: a viewer draws a graphics guest", _display_only, ()),
    Scenario(
        "calc-dirty-rate-bitmap",
        "no migration: QEMU measures the dirty rate by the bitmap",
        _calc_dirty_rate_bitmap,
        (),
    ),
    Scenario(
        "calc-dirty-rate-sampling",
        "no migration: QEMU measures the dirty rate by sampling pages",
        _calc_dirty_rate_sampling,
        (),
    ),
    Scenario(
        "calc-dirty-rate-ring",
        "no migration: QEMU measures the dirty rate by the dirty ring",
        _calc_dirty_rate_ring,
        (),
    ),
    Scenario("boot", "no migration: SeaBIOS boots a graphics guest", _boot, ()),
)

SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _TABLE}


def run_scenario(name: str, workdir: Path, on_progress: Callable[[str], None]) -> Truth:
    """Play a scenario to its end, as `play` does, in an event loop of its own.

    In the main thread, a signal that raises KeyboardInterrupt ends all VMs before it is raised.
    """
    numbers = _interrupting()

    async def until_interrupted() -> Truth:
        task = asyncio.ensure_future(play(name, workdir, on_progress))
        for number in numbers:
            # Raised in the midst of the event loop's own code, it would leave a task with a traceback behind.
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(until_interrupted())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)


def _interrupting() -> list[signal.Signals]:
    """Return the signals that raise KeyboardInterrupt in this thread."""
    if threading.current_thread() is not threading.main_thread():
        return []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [n for n in numbers if signal.getsignal(n) is signal.default_int_handler]


async def play(name: str, workdir: Path, on_progress: Callable[[str], None]) -> Truth:
    """Play a scenario of the table as `play_scenario` does. Raises UsageError for another name."""
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise UsageError(f"no scenario {name}; there are: {', '.join(SCENARIOS)}")
    return await play_scenario(scenario, workdir, on_progress)


async def play_scenario(
    scenario: Scenario, workdir: Path, on_progress: Callable[[str], None]
) -> Truth:
    """Play a scenario, of the table or not; its files live in a directory under `workdir` that is
    gone afterwards.

    `on_progress` gets a line now and then. Cancelling the task ends all VMs. Raises MachineError
    without QEMU or KVM, QemuError when QEMU ends otherwise than the scenario expects.
    """
    binary = qemu.find_qemu()
    # Short: the path of a unix socket has 107 characters at most (unix(7)).
    with tempfile.TemporaryDirectory(prefix="vm-", dir=workdir) as directory:
        async with AsyncExitStack() as stack:
            run = Run(scenario.name, binary, Path(directory), stack, on_progress)
            on_progress(scenario.title)
            await scenario.run(run)
        truth = run.truth(scenario)
    ended = tuple(attempt.source.status if attempt.source else None for attempt in truth.attempts)
    if ended != scenario.expect:
        raise QemuError(f"QEMU ended {scenario.name} with {ended}, expected {scenario.expect}")
    return truth


def _process(vm: Vm) -> Process:
    running = vm.qemu
    return Process(
        running.pid,
        vm.role,
        vm.spec.uuid,
        vm.spec.name,
        running.command,
        running.started_at_ns,
        running.ended_at_ns,
        _guest_truth(vm.spec.dirty) if vm.spec.dirty else None,
    )


def _guest_truth(dirty: DirtySet) -> GuestTruth:
    pages = dirty.pages
    return GuestTruth(
        dirty, min(pages), max(pages), len(pages), (guest.STACK_PAGE,), dirty.pages_per_second
    )


async def _cancel(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
