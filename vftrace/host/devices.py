# SPDX-License-Identifier: MIT
"""Finds the device behind a VFIO device fd: its name from the kernel side or /proc, the rest from /sys.

The name is a PCI device's address, a mediated device's UUID, or the name of a device on another bus. QEMU names them on
its command line: `-device vfio-pci,host=ADDRESS,id=ID` or `sysfsdev=PATH` (QEMU hw/vfio/pci.c,
vfio_pci_dev_properties), also as JSON.
"""

import glob
import itertools
import json
import re
from pathlib import Path

import msgspec

from vftrace.host.processes import printable

PROC = Path("/proc")
SYS = Path("/sys")

_ADDRESS = re.compile(r"(?:([0-9a-fA-F]{4}):)?([0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])")
_VFIO_DRIVERS = ("vfio-pci", "vfio-pci-nohotplug")


class Named(msgspec.Struct, frozen=True):
    """A passed-through device of a command line: `address` and QEMU's `id` for it."""

    address: str
    id: str | None


class Device(msgspec.Struct, frozen=True):
    """`address`, QEMU's `id`, the `driver` it is bound to, and for a virtual function its card and number."""

    address: str
    id: str | None
    driver: str | None
    pf: str | None
    vf: int | None


def vf_address(pf: str, number: int) -> str | None:
    """Return the PCI address of a card's virtual function; None if the card now has no such function."""
    if _ADDRESS.fullmatch(pf) is None:
        return None
    try:
        return (SYS / "bus/pci/devices" / pf / f"virtfn{number}").readlink().name
    except OSError:
        return None


def named_devices(argv: list[str]) -> tuple[Named, ...]:
    """Return the VFIO devices of a QEMU command line, in its order. Never raises."""
    found = []
    for word, value in itertools.pairwise(argv):
        if word in ("-device", "--device"):
            named = _named(_properties(value))
            if named is not None:
                found.append(named)
    return tuple(found)


def _properties(value: str) -> dict[str, object]:
    if value.startswith("{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
    driver, *fields = value.replace(",,", "\0").split(",")
    pairs = (field.replace("\0", ",").partition("=") for field in fields)
    return {"driver": driver.removeprefix("driver="), **{key: text for key, _, text in pairs}}


def _named(properties: dict[str, object]) -> Named | None:
    if properties.get("driver") not in _VFIO_DRIVERS:
        return None
    host, path, name = (properties.get(key) for key in ("host", "sysfsdev", "id"))
    address = Path(path).name if isinstance(path, str) else host
    if not isinstance(address, str) or not address:
        return None
    return Named(
        printable(full_address(address)), printable(name) if isinstance(name, str) else None
    )


def full_address(name: str) -> str:
    """Return a PCI address with its domain in lower case, or a UUID in lower case, without options.

    VFIO_GROUP_GET_DEVICE_FD takes `ADDRESS vf_token=UUID` too (drivers/vfio/pci/vfio_pci_core.c).
    """
    word = (name.split() or [""])[0]
    match = _ADDRESS.fullmatch(word)
    return f"{match[1] or '0000'}:{match[2]}".lower() if match else word.lower()


def device_fds(pid: int) -> tuple[int, ...]:
    """Return the VFIO device fds of a process, in order: from a group, or /dev/vfio/devices/vfioN."""
    try:
        links = [(int(fd.name), _link(fd)) for fd in (PROC / str(pid) / "fd").iterdir()]
    except OSError:
        return ()
    return tuple(sorted(fd for fd, link in links if _is_device(link)))


def _is_device(link: str) -> bool:
    return link == "anon_inode:[vfio-device]" or link.startswith("/dev/vfio/devices/vfio")


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _syspath(pid: int, fd: int) -> str | None:
    """Return the device's path in /sys, which fdinfo has since 6.18 (drivers/vfio/vfio_main.c,
    vfio_device_show_fdinfo)."""
    try:
        text = (PROC / str(pid) / "fdinfo" / str(fd)).read_text()
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "vfio-device-syspath":
            return Path(value.strip()).name
    return None


def _cdev(pid: int, fd: int) -> str | None:
    """Return the device behind /dev/vfio/devices/vfioN."""
    node = Path(_link(PROC / str(pid) / "fd" / str(fd)))
    if node.parent != Path("/dev/vfio/devices"):
        return None
    target = _link(SYS / "class/vfio-dev" / node.name / "device")
    return Path(target).name or None


def find(pid: int, fd: int, name: str, argv: list[str]) -> Device | None:
    """Return the device behind `fd` of process `pid`; None if it cannot be found.

    `name` is the name that the kernel side read, or empty. Without a name this function looks in fdinfo, in /sys,
    and at last in the process's command line, if that names as many devices as the process has open: QEMU opens
    them in order.
    """
    named = named_devices(argv)
    found = name or _syspath(pid, fd) or _cdev(pid, fd)
    if not found:
        fds = device_fds(pid)
        if fd not in fds or len(fds) != len(named):
            return None
        found = named[fds.index(fd)].address
    address = printable(full_address(found))
    ids = [device.id for device in named if device.address == address]
    return Device(address, ids[0] if ids else None, _driver(address), *_function(address))


def _driver(address: str) -> str | None:
    """Return the driver of a device on any bus (pci, mdev, platform, ...)."""
    places = sorted(SYS.glob(f"bus/*/devices/{glob.escape(address)}"))
    names = (Path(_link(place / "driver")).name for place in places)
    return next(filter(None, names), None)


def _function(address: str) -> tuple[str | None, int | None]:
    """Return a virtual function's card and number, from the card's virtfnN links."""
    device = SYS / "bus/pci/devices" / address
    card = Path(_link(device / "physfn")).name
    if not card:
        return None, None
    for link in (SYS / "bus/pci/devices" / card).glob("virtfn*"):
        if Path(_link(link)).name == address:
            return card, int(link.name.removeprefix("virtfn"))
    return card, None
