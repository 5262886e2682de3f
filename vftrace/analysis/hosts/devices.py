# SPDX-License-Identifier: MIT
"""Joins what two hosts saw of a migration's devices and virtual functions.

Times of both sides are on one clock here (`shift.shifted`).
"""

from itertools import zip_longest

from msgspec.structs import replace

from vftrace.model.migration import (
    DeviceDowntime,
    DeviceUse,
    Evidence,
    Migration,
    Role,
    Strategy,
    VfUse,
)

_UNPLUGGED = (Strategy.UNPLUG, Strategy.LATE_UNPLUG, Strategy.FAILOVER)


def join_devices(source: Migration, destination: Migration) -> tuple[DeviceUse, ...]:
    """Return the devices of both sides, each with its counterpart's address."""
    here = [
        replace(use, peer_address=other.address if other else use.peer_address)
        for use in source.devices
        for other in [_successor(use, source, destination)]
    ]
    there = [
        replace(
            use,
            peer_address=next((h.address for h in here if h.peer_address == use.address), None),
        )
        for use in destination.devices
    ]
    return (*here, *there)


def join_vfs(source: Migration, destination: Migration) -> tuple[VfUse, ...]:
    """Return the virtual functions of both sides.

    A function that is absent on the source is absent until the destination opened its own.
    """
    there = tuple(_since(vf, source.started_at_ns) for vf in destination.vfs)
    opened = [vf.phases[0].start_at_ns for vf in there if _begins(vf, "probing")]
    here = []
    for vf in source.vfs:
        last = vf.phases[-1] if vf.phases else None
        if last is not None and last.name == "absent" and last.end_at_ns is None and opened:
            back = max(last.start_at_ns, opened.pop(0))
            vf = replace(vf, phases=(*vf.phases[:-1], replace(last, end_at_ns=back)))
        here.append(vf)
    return (*here, *there)


def join_device_downtimes(source: Migration, destination: Migration) -> tuple[DeviceDowntime, ...]:
    """Return each source device's downtime, which ends on the destination."""
    opened = _opened_by_destination(join_vfs(source, destination))
    return tuple(
        _until_ready(_until_running(device, _successor(device, source, destination)), vf)
        for device, vf in zip_longest(source.downtime.devices, opened)
        if device is not None
    )


def plug_evidence(source: Migration, destination: Migration) -> tuple[Evidence, ...]:
    """Return the evidence that the destination opened a function for one that was unplugged on the source."""
    if source.strategy not in _UNPLUGGED:
        return ()
    return tuple(
        Evidence(f"destination opens {vf.address}", vf.phases[0].start_at_ns)
        for vf in _opened_by_destination(join_vfs(source, destination))
    )


def _successor(
    device: DeviceUse | DeviceDowntime, source: Migration, destination: Migration
) -> DeviceUse | None:
    """Return the destination's device with the same id, else the only device of each side."""
    same = [use for use in destination.devices if use.id is not None and use.id == device.id]
    if same:
        return same[0]
    alone = len(source.devices) == len(destination.devices) == 1
    return destination.devices[0] if alone else None


def _until_running(device: DeviceDowntime, successor: DeviceUse | None) -> DeviceDowntime:
    """Return the downtime until the successor runs with its loaded state: RUNNING after RESUMING."""
    if device.ns is not None or device.from_ns is None or successor is None:
        return device
    resuming = [state.at_ns for state in successor.states if state.state == "RESUMING"]
    ran = [
        state.at_ns
        for state in successor.states
        if resuming and state.state == "RUNNING" and state.at_ns >= resuming[-1]
    ]
    return replace(device, ns=max(0, ran[0] - device.from_ns)) if ran else device


def _until_ready(device: DeviceDowntime, vf: VfUse | None) -> DeviceDowntime:
    """Return the downtime of an unplugged function until its successor was ready, or without a traced mailbox,
    opened."""
    if device.ns is not None or device.from_ns is None or vf is None:
        return device
    ready = next((p.start_at_ns for p in vf.phases if p.name == "ready"), vf.phases[0].start_at_ns)
    return replace(device, ns=max(0, ready - device.from_ns))


def _opened_by_destination(vfs: tuple[VfUse, ...]) -> list[VfUse]:
    """Return the functions that the destination opened since the migration began."""
    return [vf for vf in vfs if vf.role == Role.DESTINATION and _begins(vf, "probing")]


def _since(vf: VfUse, started_ns: int) -> VfUse:
    """Return the function without its phases on the destination before the migration began."""
    early = _begins(vf, "probing") and vf.phases[0].start_at_ns < started_ns
    return replace(vf, phases=vf.phases[1:], mapping_at_ns=None, mapped_at_ns=None) if early else vf


def _begins(vf: VfUse, phase: str) -> bool:
    return bool(vf.phases) and vf.phases[0].name == phase
