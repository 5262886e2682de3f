# SPDX-License-Identifier: MIT
"""The VMs inside the emulated machine, and their migrations."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vftlab.firmware import rom
from vftlab.job import JobError, boottime_ns, say
from vftlab.qmp import Event, Monitor, RefusedError

VM_UUID = "6c616200-0000-4000-8000-000000000001"
MIGRATION_PORT = 4455
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Vm:
    """One QEMU process and its monitor."""

    name: str
    process: subprocess.Popen[bytes]
    monitor: Monitor
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid


@contextlib.contextmanager
def vm(
    name: str,
    results: Path,
    *,
    devices: Sequence[str] = (),
    incoming: bool = False,
    memory_mib: int = 64,
    dirty_pages: int = 64,
    options: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Iterator[Vm]:
    """Start a VM named `name`; it is ended with the context.

    `devices` are the values of -device; with `incoming` it waits for a migration on
    MIGRATION_PORT. `pass_fds` are open files that QEMU inherits. Its messages go to NAME.log among
    the results.
    """
    image = Path("/tmp") / f"{name}.rom"
    image.write_bytes(rom(dirty_pages))
    monitor = Path("/tmp") / f"{name}.qmp"
    monitor.unlink(missing_ok=True)
    command = [
        *("qemu-system-x86_64", "-name", f"guest={name}", "-uuid", VM_UUID),
        *("-M", "pc", "-accel", "kvm", "-cpu", "qemu64", "-m", str(memory_mib)),
        *("-nodefaults", "-display", "none", "-bios", str(image)),
        *("-qmp", f"unix:{monitor},server=on,wait=off"),
        *(word for device in devices for word in ("-device", device)),
        *options,
    ]
    if incoming:
        command += ["-incoming", f"tcp:127.0.0.1:{MIGRATION_PORT}"]
    log = results / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=pass_fds
        )
    try:
        try:
            connection = Monitor(monitor)
        except JobError as failure:
            raise JobError(f"{name}: {failure}; it said: {log.read_text().strip()}") from None
        # As libvirt does: without the return path a source may be done, and say so, while the
        # destination still fails to load what is in the socket.
        wanted = [{"capability": name, "state": True} for name in ("events", "return-path")]
        connection("migrate-set-capabilities", capabilities=wanted)
        yield Vm(name, process, connection, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Migration:
    """QEMU's figures of one migration. Times are CLOCK_BOOTTIME in ns at the query."""

    asked_at_ns: int
    statuses: list[dict[str, object]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return str(self.result.get("status", "none"))

    @property
    def vfio_bytes(self) -> int | None:
        """Device state sent, as QEMU counts it; None without VFIO devices."""
        vfio = self.result.get("vfio")
        return None if vfio is None else int(vfio["transferred"])


ENDED = ("completed", "failed", "cancelled")


def migrate(
    source: Vm,
    *,
    syncs: int = 3,
    during: Callable[[], None] | None = None,
    cancel: bool = False,
    seconds: float = 90.0,
) -> Migration:
    """Migrate `source` to whoever listens on MIGRATION_PORT, and wait until QEMU says it is over.

    Bandwidth and downtime are limited so that it goes on for `syncs` dirty syncs; then `during`
    is called, and the limits fall, or with `cancel` the migration is cancelled.
    """
    qmp = source.monitor
    qmp("migrate-set-parameters", **{"max-bandwidth": MIB, "downtime-limit": 1})
    migration = Migration(boottime_ns())
    qmp("migrate", uri=f"tcp:127.0.0.1:{MIGRATION_PORT}")
    end = time.monotonic() + seconds
    held = True
    while True:
        now = boottime_ns()
        answer = qmp("query-migrate")
        status = answer.get("status")
        if not migration.statuses or migration.statuses[-1]["status"] != status:
            migration.statuses.append({"at_ns": now, "status": status})
            said = answer.get("error-desc", "")
            say(f"{source.name}: migration {status} {said}".rstrip())
        migration.result = answer
        if status in ENDED:
            return migration
        if held and answer.get("ram", {}).get("dirty-sync-count", 0) >= syncs:
            held = False
            if during is not None:
                during()
            if cancel:
                qmp("migrate_cancel")
            else:
                qmp("migrate-set-parameters", **{"max-bandwidth": GIB, "downtime-limit": 2000})
        if time.monotonic() > end:
            raise JobError(f"migration still {status} after {seconds:.0f} s: {answer}")
        time.sleep(0.05)


def wait_resumed(destination: Vm, seconds: float = 20.0) -> None:
    """Wait until the destination's VM and its devices run.

    QEMU sends RESUME before it moves its devices to RUNNING, and answers after that.
    """
    destination.monitor.wait_event("RESUME", seconds)
    destination.monitor.wait_running(seconds)


def run_state(machine: Vm) -> str:
    """QEMU's own word for what the VM does, or `gone`."""
    try:
        return str(machine.monitor("query-status")["status"])
    except RefusedError:
        return "gone"


def vm_truth(machine: Vm, role: str) -> dict[str, object]:
    """Return the entry of truth.json for one VM."""

    def entry(event: Event) -> dict[str, object]:
        return {"at_ns": event.at_ns, "event": event.name, "data": event.data}

    return {
        "name": machine.name,
        "uuid": VM_UUID,
        "pid": machine.pid,
        "role": role,
        "status": run_state(machine),
        "events": [entry(event) for event in list(machine.monitor.events)],
    }


def migration_truth(migration: Migration) -> dict[str, object]:
    """Return the entry of truth.json for a migration: QEMU's figures, in QEMU's units."""
    return {
        "asked_at_ns": migration.asked_at_ns,
        "statuses": migration.statuses,
        "vfio_bytes": migration.vfio_bytes,
        "query_migrate": migration.result,
    }
