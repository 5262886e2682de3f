# SPDX-License-Identifier: MIT
"""The ways a guest with a virtual function can move, as QEMU's words and the steps around the migration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

GUEST = "10.9.0.9"
VF_MAC = "52:54:00:0f:00:01"
VIRTIO_MAC = "52:54:00:0f:00:09"
DEVICE = "vf0"
"""QEMU's id of the passed-through device."""


@dataclass(frozen=True)
class Place:
    """What a host has for a guest: a tap in its bridge, its VF, and the test driver's device."""

    tap: str
    vf: str
    steer: str


Words = Callable[[Place], tuple[str, ...]]


@dataclass(frozen=True)
class Case:
    """One way.

    `devices` are QEMU's words for the guest's devices. With `unplug` somebody takes DEVICE out before the
    migration and puts the destination's in once it runs, so there the guest starts without. `has_vf`: in the end
    the guest has a VF on the destination. `options` go to guest/linux-init. `expect` is the strategy that vftrace
    should name.
    """

    name: str
    title: str
    devices: Words
    expect: str
    unplug: bool = False
    has_vf: bool = True
    machine: str = "pc"
    options: str = ""

    def words(self, place: Place, *, incoming: bool) -> tuple[str, ...]:
        """QEMU's words on one host."""
        words = self.devices(place)
        return words if incoming and self.unplug else (*words, *self._plugged(place))

    def _plugged(self, place: Place) -> tuple[str, ...]:
        return ("-device", f"vfio-pci,host={place.vf},id={DEVICE}") if self.unplug else ()


def _virtio(place: Place, mac: str = VIRTIO_MAC, more: str = "") -> tuple[str, ...]:
    return (
        *("-netdev", f"tap,id=net0,ifname={place.tap},script=no,downscript=no"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={mac},id=net0{more}"),
    )


def _failover(place: Place) -> tuple[str, ...]:
    vf = f"vfio-pci,host={place.vf},id={DEVICE},bus=hot,failover_pair_id=net0"
    return (
        *("-device", "pcie-root-port,id=hot,slot=1,chassis=1"),
        *_virtio(place, VF_MAC, ",failover=on"),
        *("-device", vf),
    )


def _steer(place: Place) -> tuple[str, ...]:
    device = f"vfio-pci,sysfsdev=/sys/bus/mdev/devices/{place.steer},id={DEVICE}"
    return (*_virtio(place), "-device", f"{device},enable-migration=on")


_TALK = "talk=10.9.0.1"

CASES = {
    case.name: case
    for case in (
        Case("plain", "virtio only", _virtio, "plain", has_vf=False),
        Case("vfio", "virtio, and a device that transfers its state", _steer, "vfio", has_vf=False),
        Case("unplug", "VF only: unplug, migrate, plug", lambda place: (), "unplug", unplug=True),
        Case(
            "bond",
            "VF and virtio in a bond: unplug, migrate, plug",
            _virtio,
            "unplug",
            unplug=True,
            options=f"bond {_TALK}",
        ),
        Case(
            "failover-talking",
            "failover pair, a guest that talks",
            _failover,
            "failover",
            machine="q35,sata=off,smbus=off",
            options=_TALK,
        ),
        Case(
            "failover-quiet",
            "failover pair, a quiet guest",
            _failover,
            "failover",
            machine="q35,sata=off,smbus=off",
        ),
    )
}
