# SPDX-License-Identifier: MIT
"""Passed-through devices inside the emulated machine: mtty, vftsteer, and igb's functions."""

from __future__ import annotations

import contextlib
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vftlab.job import CannotHereError, JobError, boottime_ns, modprobe, wait_for

STOP_COPY, P2P, PRE_COPY = 1, 2, 4
STATES = (
    "ERROR",
    "STOP",
    "RUNNING",
    "STOP_COPY",
    "RESUMING",
    "RUNNING_P2P",
    "PRE_COPY",
    "PRE_COPY_P2P",
)
PF = "0000:01:00.0"
PCI = Path("/sys/bus/pci")


def device_uuid(number: int) -> str:
    """The same device has the same UUID in every run."""
    return str(uuid.UUID(int=0x6C616264_0000_4000_8000_000000000000 + number))


def _create(parent: Path, kind: str, name: str) -> None:
    place = parent / "mdev_supported_types" / kind / "create"
    if not place.exists():
        raise JobError(f"this kernel's {parent.name} has no devices of type {kind}")
    place.write_text(name)


IOMMUFD = ("-object", "iommufd,id=iommufd0")
"""The option of QEMU's command line for the iommufd that its devices are bound to."""


def vfio_device(
    name: str,
    number: int = 0,
    *,
    iommufd: bool = False,
    own_log: bool = True,
    fd: int | None = None,
) -> str:
    """The value of QEMU's -device for one of the lab's devices, as vf<number>.

    With `iommufd` it is bound to IOMMUFD, else to a container of QEMU's; `fd` is an open file of the device. Without
    `own_log` QEMU does not ask the device itself to log its DMA.
    """
    places = [Path("/sys/bus", bus, "devices", name) for bus in ("mdev", "platform")]
    device = next(place for place in places if place.exists())
    # mtty offers a log, and then has none (DMA_LOGGING_REPORT gives -EOPNOTSUPP).
    sample = device.resolve().parent.name == "mtty"
    words = [
        f"vfio-pci,{f'sysfsdev={device}' if fd is None else f'fd={fd}'}",
        f"id=vf{number}",
        "enable-migration=on",
        *(["iommufd=iommufd0"] if iommufd else []),
        *(["x-device-dirty-page-tracking=off"] if sample or not own_log else []),
    ]
    return ",".join(words)


def need_iommufd() -> None:
    """Load iommufd; CannotHereError on a kernel without it."""
    modprobe("kvm-amd", "vfio-pci")
    if subprocess.run(["modprobe", "-q", "iommufd"], check=False).returncode:
        raise CannotHereError("no iommufd")


def device_file(name: str) -> Path:
    """The file of its own that a VFIO device has where there is an iommufd."""
    for entry in Path("/sys/class/vfio-dev").glob("*"):
        if (entry / "device").resolve().name == name:
            return Path("/dev/vfio/devices") / entry.name
    raise JobError(f"{name} has no file of its own")


class Mtty:
    """The kernel's sample device. Its module, with debug messages on, logs every arc it walks."""

    made: ClassVar[dict[str, int]] = {}
    """When each was created, CLOCK_BOOTTIME in ns."""

    @classmethod
    def create(cls, number: int, flags: int) -> str:
        """A device with these migration flags; its UUID."""
        if not Path("/sys/module/mtty").exists():
            modprobe("vfio-pci", "mdev", "kvm-amd")
            if subprocess.run(["modprobe", "mtty", "dyndbg=+p"], check=False).returncode:
                raise CannotHereError("its mtty sample cannot migrate, so it was not built")
        name = device_uuid(number)
        cls.made[name] = boottime_ns()
        Path("/sys/module/mtty/parameters/lab_flags").write_text(str(flags))
        _create(Path("/sys/class/mdev_bus/mtty"), "mtty-2", name)
        return name

    @classmethod
    def states(cls, *names: str) -> dict[str, list[dict[str, object]]]:
        """Arcs each device walked, from the kernel's log: at_ns (CLOCK_BOOTTIME), from, to."""
        log, offset_ns = _kernel_log()
        found: dict[str, list[dict[str, object]]] = {name: [] for name in names}
        arc = r"^\[ *(\d+)\.(\d+)\] mtty (\S+): mtty_step_state: (\d) -> (\d)$"
        for seconds, micros, name, old, new in re.findall(arc, log, re.MULTILINE):
            at_ns = int(seconds) * 10**9 + int(micros) * 1000 + offset_ns
            # An earlier job may have had a device of the same name.
            if name in found and at_ns > cls.made[name]:
                entry = {"at_ns": at_ns, "what": "arc"}
                found[name].append(entry | {"from": STATES[int(old)], "to": STATES[int(new)]})
        return found


def _kernel_log() -> tuple[str, int]:
    """The kernel's log, and what to add to its time stamps for CLOCK_BOOTTIME, in ns.

    Its clock starts a little off. A marker is written just after its time was read, so each marker
    gives a lower bound, and the largest of some is the best.
    """
    times = []
    for _ in range(5):
        times.append(boottime_ns())
        # Without its end of line the record would wait for more.
        Path("/dev/kmsg").write_text(f"lab marker {times[-1]}\n")
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    offsets = []
    for at_ns in times:
        at = re.search(rf"^\[ *(\d+)\.(\d+)\] lab marker {at_ns}$", log, re.MULTILINE)
        if at is None:
            raise JobError("the kernel's log does not show what was written into it")
        offsets.append(at_ns - (int(at[1]) * 10**9 + int(at[2]) * 1000))
    return log, max(offsets)


@dataclass(frozen=True)
class Steer:
    """A device of tests/lab/modules/vftsteer, which describes its commands and its log."""

    name: str

    @classmethod
    def create(cls, number: int, kind: str) -> Steer:
        """A device of `kind`: stop-copy, p2p, precopy or precopy-p2p."""
        modprobe("vfio-pci", "mdev", "kvm-amd", "vftsteer")
        steer = cls(device_uuid(number))
        _create(Path("/sys/class/mdev_bus/vftsteer"), f"vftsteer-{kind}", steer.name)
        return steer

    @property
    def _place(self) -> Path:
        return Path("/sys/kernel/debug/vftsteer") / self.name

    @property
    def since_ns(self) -> int:
        """What is older in its log is not its own."""
        return 0

    def command(self, text: str) -> None:
        """Write one command; raises JobError with the kernel's error if it refuses."""
        try:
            (self._place / "control").write_text(text + "\n")
        except OSError as error:
            raise JobError(f"vftsteer refused {text!r}: {error.strerror}") from None

    def state(self) -> str:
        return (self._place / "state").read_text().strip()

    def log(self) -> list[dict[str, object]]:
        """What happened to the device, from its module."""
        entries: list[dict[str, object]] = []
        for line in (self._place / "log").read_text().splitlines():
            at, what, old, new, ret, a, b = line.split()
            if int(at) < self.since_ns:
                continue
            entry: dict[str, object] = {"at_ns": int(at), "what": what}
            if old != "-":
                entry |= {"from": old, "to": new}
            if int(ret):
                entry["ret"] = int(ret)
            names = {
                "saved": ("bytes", None),
                "loaded": ("bytes", None),
                "lost": ("bytes", None),
                "touched": ("iova", "pages"),
                "reported": ("iova", "pages"),
                "peeked": ("iova", "pages"),
                "log-start": ("page_size", "ranges"),
                "read-failed": ("bytes", None),
                "write-failed": ("bytes", None),
            }.get(what, (None, None))
            entry |= {key: int(value) for key, value in zip(names, (a, b), strict=True) if key}
            entries.append(entry)
        return entries

    def walked(self) -> list[str]:
        """The states it was in since it was opened, one after the other."""
        states = ["RUNNING"]
        for entry in self.log():
            moved = entry["what"] == "state" or entry["what"] == "reset"
            if moved and entry["to"] != states[-1]:
                states.append(str(entry["to"]))
        return states


@dataclass(frozen=True)
class Phys(Steer):
    """A device of tests/lab/modules/vftphys: a Steer behind an IOMMU that tracks what it writes."""

    made_at_ns: int = 0

    @classmethod
    def take(cls, number: int) -> Phys:
        """One of the module's devices, which are always there; its log and sizes begin anew."""
        need_iommufd()
        # Its MSIs are not isolated: it has none.
        Path("/sys/module/iommufd/parameters/allow_unsafe_interrupts").write_text("Y")
        modprobe("vftphys")
        device = cls(f"vft.{number}", boottime_ns())
        device.command("bytes 0 4096")
        return device

    @property
    def _place(self) -> Path:
        return Path("/sys/kernel/debug/vftphys") / self.name

    @property
    def since_ns(self) -> int:
        return self.made_at_ns


STOP_COPY_ARCS = {
    "precopy-p2p": ("PRE_COPY_P2P", "STOP_COPY"),
    "precopy": ("PRE_COPY", "STOP_COPY"),
    "p2p": ("STOP", "STOP_COPY"),
    "stop-copy": ("STOP", "STOP_COPY"),
}


def has_precopy() -> bool:
    """Whether this kernel's VFIO has PRE_COPY (6.2 and newer): our driver then offers it."""
    modprobe("vfio-pci", "mdev", "kvm-amd", "vftsteer")
    types = Path("/sys/class/mdev_bus/vftsteer/mdev_supported_types")
    return (types / "vftsteer-precopy-p2p").exists()


@contextlib.contextmanager
def bind(address: str, driver: str) -> Iterator[None]:
    """Give a PCI device to another driver; it is given back with the context."""
    device = PCI / "devices" / address

    def give(to: str) -> None:
        if (device / "driver").exists():
            (device / "driver/unbind").write_text(address)
        (device / "driver_override").write_text(to + "\n")
        (PCI / "drivers_probe").write_text(address)

    give(driver)
    try:
        if (device / "driver").resolve().name != driver:
            raise JobError(f"{address} did not bind to {driver}")
        yield
    finally:
        give("")


def functions(count: int) -> list[str]:
    """Bring the igb card up with `count` VFs, each on vfio-pci; their PCI addresses."""
    modprobe("vfio-pci", "igb", "kvm-amd")
    card = PCI / "devices" / PF
    wait_for("igb's interface", 20, lambda: (card / "net").exists())
    interface = next((card / "net").iterdir()).name
    # The PF comes up before its VFs: their mailboxes are served by its interrupt.
    subprocess.run(["ip", "link", "set", interface, "up"], check=True)
    carrier = Path("/sys/class/net") / interface / "carrier"
    wait_for("igb's link", 20, lambda: carrier.read_text().strip() == "1")
    (card / "sriov_numvfs").write_text(str(count))
    addresses = []
    for number in range(count):
        address = (card / f"virtfn{number}").resolve().name
        device = PCI / "devices" / address
        if (device / "driver").exists():
            (device / "driver/unbind").write_text(address)
        (device / "driver_override").write_text("vfio-pci")
        (PCI / "drivers_probe").write_text(address)
        if (device / "driver").resolve().name != "vfio-pci":
            raise JobError(f"{address} did not bind to vfio-pci")
        addresses.append(address)
    return addresses


def remove_all() -> None:
    """Remove all mediated devices and VFs, so that the next job starts without any."""
    for device in Path("/sys/bus/mdev/devices").glob("*"):
        (device / "remove").write_text("1")
    vfs = PCI / "devices" / PF / "sriov_numvfs"
    if vfs.exists() and vfs.read_text().strip() != "0":
        vfs.write_text("0")
