# SPDX-License-Identifier: MIT
"""Jobs that migrate a VM with mediated devices whose driver is the kernel's own sample, mtty."""

from __future__ import annotations

from collections.abc import Callable

from vftlab.devices import IOMMUFD, P2P, PRE_COPY, STOP_COPY, Mtty, need_iommufd, vfio_device
from vftlab.job import Job, JobError, say
from vftlab.vm import migrate, migration_truth, run_state, vm, vm_truth, wait_resumed

# The sequences of QEMU's hw/vfio/migration.c; RUNNING is where every device starts.
SOURCE = {
    STOP_COPY: "RUNNING STOP STOP_COPY STOP",
    STOP_COPY | P2P: "RUNNING RUNNING_P2P STOP STOP_COPY STOP",
    STOP_COPY | PRE_COPY: "RUNNING PRE_COPY STOP_COPY STOP",
    STOP_COPY | P2P | PRE_COPY: "RUNNING PRE_COPY PRE_COPY_P2P STOP_COPY STOP",
}
DESTINATION = {
    STOP_COPY: "RUNNING STOP RESUMING STOP RUNNING",
    STOP_COPY | P2P: "RUNNING RUNNING_P2P STOP RESUMING STOP RUNNING_P2P RUNNING",
}
DESTINATION |= {flags | PRE_COPY: states for flags, states in DESTINATION.items()}


def _walked(arcs: list[dict[str, object]]) -> list[str]:
    """States one after the other. A VM's start is left out: RUNNING to itself and P2P and back."""
    states = ["RUNNING", *(str(arc["to"]) for arc in arcs)]
    while states[:3] == ["RUNNING", "RUNNING_P2P", "RUNNING"]:
        states = states[2:]
    return states


def _expect(what: str, seen: list[str], wanted: str) -> None:
    say(f"{what}: {' '.join(seen)}")
    if seen != wanted.split():
        raise JobError(f"{what} walked {' '.join(seen)}, not {wanted}")


def _migration(job: Job, kinds: list[int], *, cancel: bool = False, iommufd: bool = False) -> None:
    """Migrate a VM with one device for each of `kinds` (flags), and check how each went."""
    sources = [Mtty.create(10 + i, flags) for i, flags in enumerate(kinds)]
    targets = [Mtty.create(20 + i, flags) for i, flags in enumerate(kinds)]
    options = IOMMUFD if iommufd else ()

    def words(names: list[str]) -> list[str]:
        return [vfio_device(name, i, iommufd=iommufd) for i, name in enumerate(names)]

    with (
        vm("source", job.results, devices=words(sources), options=options) as source,
        vm(
            "destination", job.results, devices=words(targets), incoming=True, options=options
        ) as destination,
    ):
        migration = migrate(source, cancel=cancel)
        if not cancel:
            wait_resumed(destination)
        states = Mtty.states(*sources, *targets)
        job.write_truth(
            {
                "vms": [vm_truth(source, "source"), vm_truth(destination, "destination")],
                "migration": migration_truth(migration),
                "devices": [
                    {"uuid": name, "role": role, "flags": flags, "log": states[name]}
                    for role, names in (("source", sources), ("destination", targets))
                    for name, flags in zip(names, kinds, strict=True)
                ],
            }
        )
        say(f"vfio bytes {migration.vfio_bytes}, downtime {migration.result.get('downtime')} ms")
        wanted = "cancelled" if cancel else "completed"
        if migration.status != wanted:
            raise JobError(f"the migration is {migration.status}, not {wanted}")
        for name, target, flags in zip(sources, targets, kinds, strict=True):
            if cancel:
                _expect("source", _walked(states[name]), "RUNNING PRE_COPY RUNNING")
            else:
                _expect("source", _walked(states[name]), SOURCE[flags])
                _expect("destination", _walked(states[target]), DESTINATION[flags])
        if cancel and run_state(source) != "running":
            raise JobError(f"the source is {run_state(source)} after the cancel")


def vfio_precopy_p2p(job: Job) -> None:
    """Migrate with a device that can precopy and P2P."""
    _migration(job, [STOP_COPY | P2P | PRE_COPY])


def vfio_precopy(job: Job) -> None:
    """Migrate with a device that can precopy, not P2P."""
    _migration(job, [STOP_COPY | PRE_COPY])


def vfio_p2p(job: Job) -> None:
    """Migrate with a device that can P2P, not precopy."""
    _migration(job, [STOP_COPY | P2P])


def vfio_stop_copy(job: Job) -> None:
    """Migrate with a device that can neither precopy nor P2P."""
    _migration(job, [STOP_COPY])


def vfio_two_devices(job: Job) -> None:
    """Migrate with two devices of different kinds."""
    _migration(job, [STOP_COPY | P2P | PRE_COPY, STOP_COPY | P2P])


def vfio_cancel_precopy(job: Job) -> None:
    """Cancel a migration while the device is in PRE_COPY."""
    _migration(job, [STOP_COPY | P2P | PRE_COPY], cancel=True)


def vfio_iommufd(job: Job) -> None:
    """Migrate with a device bound to an iommufd that nobody tracks: it cannot, and has no IOMMU."""
    need_iommufd()
    _migration(job, [STOP_COPY | P2P | PRE_COPY], iommufd=True)


JOBS: dict[str, Callable[[Job], None]] = {
    "vfio-precopy-p2p": vfio_precopy_p2p,
    "vfio-precopy": vfio_precopy,
    "vfio-p2p": vfio_p2p,
    "vfio-stop-copy": vfio_stop_copy,
    "vfio-two-devices": vfio_two_devices,
    "vfio-cancel-precopy": vfio_cancel_precopy,
    "vfio-iommufd": vfio_iommufd,
}
