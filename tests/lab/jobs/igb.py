# SPDX-License-Identifier: MIT
"""Jobs with virtual functions of the emulated igb card, passed through with vfio-pci.

Such a VF cannot migrate, so it is unplugged first; the firmware image releases it.
"""

from __future__ import annotations

from collections.abc import Callable

from vftlab.devices import IOMMUFD, PF, functions, need_iommufd
from vftlab.job import Job, JobError, boottime_ns, modprobe, say
from vftlab.vm import Vm, migrate, migration_truth, run_state, vm, vm_truth, wait_resumed


def unplug_device(machine: Vm, name: str) -> dict[str, object]:
    """Request that the guest releases the device, and wait until it has; returns the times of request and release."""
    asked_at_ns = boottime_ns()
    machine.monitor("device_del", id=name)
    event = machine.monitor.wait_event("DEVICE_DELETED", 20)
    say(f"{machine.name}: {name} unplugged in {(event.at_ns - asked_at_ns) / 1e6:.0f} ms")
    return {"what": "unplug", "asked_at_ns": asked_at_ns, "done_at_ns": event.at_ns}


def plug_device(machine: Vm, name: str, address: str, **more: object) -> dict[str, object]:
    asked_at_ns = boottime_ns()
    machine.monitor("device_add", driver="vfio-pci", host=address, id=name, **more)
    done_at_ns = boottime_ns()
    say(f"{machine.name}: {address} plugged in {(done_at_ns - asked_at_ns) / 1e6:.0f} ms")
    return {"what": "plug", "asked_at_ns": asked_at_ns, "done_at_ns": done_at_ns}


def moved(source: Vm, destination: Vm) -> dict[str, object]:
    """Migrate and wait until the destination runs."""
    migration = migrate(source)
    wait_resumed(destination)
    ended = (migration.status, run_state(source), run_state(destination))
    if ended != ("completed", "postmigrate", "running"):
        raise JobError(f"migration, source and destination are {ended}")
    return migration_truth(migration)


def plain(job: Job) -> None:
    """Migrate a VM that has no passed-through device."""
    modprobe("kvm-amd")
    with (
        vm("source", job.results) as source,
        vm("destination", job.results, incoming=True) as destination,
    ):
        migration = moved(source, destination)
        job.write_truth(
            {
                "vms": [vm_truth(source, "source"), vm_truth(destination, "destination")],
                "migration": migration,
            }
        )


def _unplug_and_plug(job: Job, *, iommufd: bool = False) -> None:
    """Detach a VF, migrate, attach another VF on the destination."""
    first, second = functions(2)
    options, more = (IOMMUFD, {"iommufd": "iommufd0"}) if iommufd else ((), {})
    device = ",".join([f"vfio-pci,host={first},id=vf0", *(f"{k}={v}" for k, v in more.items())])
    with (
        vm("source", job.results, devices=[device], options=options) as source,
        vm("destination", job.results, incoming=True, options=options) as destination,
    ):
        acts = [{"vm": "source", "address": first, **unplug_device(source, "vf0")}]
        migration = moved(source, destination)
        back = plug_device(destination, "vf0", second, **more)
        acts.append({"vm": "destination", "address": second, **back})
        job.write_truth(
            {
                "vms": [vm_truth(source, "source"), vm_truth(destination, "destination")],
                "migration": migration,
                "pf": PF,
                "acts": acts,
            }
        )


def unplug(job: Job) -> None:
    """Detach a VF, migrate, attach another VF on the destination."""
    _unplug_and_plug(job)


def unplug_iommufd(job: Job) -> None:
    """The same with VFs that are bound to an iommufd by files of their own."""
    need_iommufd()
    _unplug_and_plug(job, iommufd=True)


def unplug_only(job: Job) -> None:
    """Detach a VF and attach it again, without a migration: no strategy may see one."""
    (address,) = functions(1)
    with vm("source", job.results, devices=[f"vfio-pci,host={address},id=vf0"]) as source:
        acts = [
            {"vm": "source", "address": address, **unplug_device(source, "vf0")},
            {"vm": "source", "address": address, **plug_device(source, "vf1", address)},
        ]
        job.write_truth({"vms": [vm_truth(source, "none")], "pf": PF, "acts": acts})


def plug_after(job: Job) -> None:
    """Migrate without any VF, then attach one on the destination: a plain migration."""
    (address,) = functions(1)
    with (
        vm("source", job.results) as source,
        vm("destination", job.results, incoming=True) as destination,
    ):
        migration = moved(source, destination)
        acts = [
            {"vm": "destination", "address": address, **plug_device(destination, "vf0", address)}
        ]
        job.write_truth(
            {
                "vms": [vm_truth(source, "source"), vm_truth(destination, "destination")],
                "migration": migration,
                "pf": PF,
                "acts": acts,
            }
        )


JOBS: dict[str, Callable[[Job], None]] = {
    "plain": plain,
    "unplug": unplug,
    "unplug-iommufd": unplug_iommufd,
    "unplug-only": unplug_only,
    "plug-after": plug_after,
}
