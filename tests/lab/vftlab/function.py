# SPDX-License-Identifier: MIT
"""A virtual function of igb in our own hands: opened through vfio-pci as a VMM does, its mailbox spoken to
as a guest's driver does (drivers/net/ethernet/intel/igbvf/mbx.c)."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vftlab.devices import PCI
from vftlab.job import JobError

# include/uapi/linux/vfio.h
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD, DEVICE_RESET = 0x3B66, 0x3B68, 0x3B6A, 0x3B6F
TYPE1V2_IOMMU = 3

# drivers/net/ethernet/intel/igbvf/mbx.h and regs.h; BAR 0 is VFIO's region 0, at offset 0 of the fd.
V2P_MAILBOX, MEMORY = 0xC40, 0x800
REQ, ACK, VFU, PFSTS = 1, 2, 4, 0x10


@dataclass(frozen=True)
class VfMailbox:
    """The VF's side of a mailbox, in the hands of whoever can read and write its registers by offset."""

    read: Callable[[int], int]
    write: Callable[[int, int], None]

    def ask(self, *words: int) -> list[int]:
        """Write a message, wait for the answer; as many of its words as were written. JobError without one."""
        self._lock()
        self.read(V2P_MAILBOX)
        for number, word in enumerate(words):
            self.write(MEMORY + 4 * number, word)
        self.write(V2P_MAILBOX, REQ)
        end = time.monotonic() + 5
        while not self.read(V2P_MAILBOX) & PFSTS:
            if time.monotonic() > end:
                raise JobError(f"no answer to {words[0]:#x}")
            time.sleep(0.005)
        self._lock()
        answer = [self.read(MEMORY + 4 * number) for number in range(len(words))]
        self.write(V2P_MAILBOX, ACK)
        return answer

    def _lock(self) -> None:
        end = time.monotonic() + 5
        self.write(V2P_MAILBOX, VFU)
        while not self.read(V2P_MAILBOX) & VFU:
            if time.monotonic() > end:
                raise JobError("the mailbox is never free")
            self.write(V2P_MAILBOX, VFU)


class OpenFunction:
    """Use as a context manager; opening and closing resets the function (vfio_pci_core_enable, _disable)."""

    def __init__(self, address: str) -> None:
        """Take the function from whatever driver it has, and open it. JobError if vfio-pci does not."""
        device = PCI / "devices" / address
        if (device / "driver").exists():
            (device / "driver/unbind").write_text(address)
        (device / "driver_override").write_text("vfio-pci")
        (PCI / "drivers_probe").write_text(address)
        if (device / "driver").resolve().name != "vfio-pci":
            raise JobError(f"{address} did not bind to vfio-pci")
        group = Path("/dev/vfio") / (device / "iommu_group").resolve().name
        self._container = os.open("/dev/vfio/vfio", os.O_RDWR)
        self._group = os.open(group, os.O_RDWR)
        fcntl.ioctl(self._group, SET_CONTAINER, struct.pack("i", self._container))
        fcntl.ioctl(self._container, SET_IOMMU, TYPE1V2_IOMMU)
        # A mutable buffer: the answer is then ioctl()'s own return value, the fd.
        self._fd = fcntl.ioctl(self._group, GET_DEVICE_FD, bytearray(address.encode() + b"\0"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._fd, self._group, self._container):
            os.close(fd)

    def reset(self) -> None:
        """VFIO_DEVICE_RESET, as QEMU does at a machine's reset."""
        fcntl.ioctl(self._fd, DEVICE_RESET)

    def ask(self, *words: int) -> list[int]:
        """See VfMailbox."""
        return VfMailbox(self._read, self._write).ask(*words)

    def _read(self, offset: int) -> int:
        (value,) = struct.unpack("<I", os.pread(self._fd, 4, offset))
        return int(value)

    def _write(self, offset: int, value: int) -> None:
        os.pwrite(self._fd, struct.pack("<I", value), offset)
