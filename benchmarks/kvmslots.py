# SPDX-License-Identifier: MIT
"""KVM memory slots of any size without a guest: what is dirty is known because we made it so.

A slot lies over memory that is mapped and never touched (MAP_NORESERVE), so 512 GiB cost little.
Pages become dirty in two ways: all at once, when logging is switched on with INITIALLY_SET, and one by
one, when KVM itself writes into the guest's memory: the MSR that says where the guest wants the wall
clock (arch/x86/kvm/x86.c, kvm_write_wall_clock) writes to a page of our choice.

As a program it does the same to one slot and prints what was done, for tests and benchmarks:

    python3 benchmarks/kvmslots.py exact --gib 64 [--no-manual] [--pages N]
    python3 benchmarks/kvmslots.py time --gib 64 --calls 200
"""

import argparse
import ctypes
import errno
import fcntl
import json
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

PAGE = 4096
GIB = 1 << 30
COLD_BYTES = 32 << 20
LOG_DIRTY_PAGES = 1
MANUAL_PROTECT, INITIALLY_SET = 1, 2

_CREATE_VM = 0xAE01
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_GET_DIRTY_LOG = 0x4010AE42
_CLEAR_DIRTY_LOG = 0xC018AEC0
_ENABLE_CAP = 0x4068AEA3
_SET_MSRS = 0x4008AE89
_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
_MSR_KVM_WALL_CLOCK_NEW = 0x4B564D00
_MAP_NORESERVE = 0x4000  # Python names it from 3.13 on

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


class Vm:
    """A VM fd with one vCPU that never runs. `protect`: bits of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 0 for off.

    Use as a context manager. Raises OSError where KVM refuses something.
    """

    def __init__(self, protect: int) -> None:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self._fd = fcntl.ioctl(kvm, _CREATE_VM, 0)
        os.close(kvm)
        if protect:
            self._call(
                _ENABLE_CAP, struct.pack("<IIQ88x", _CAP_MANUAL_DIRTY_LOG_PROTECT2, 0, protect)
            )
        self._vcpu = fcntl.ioctl(self._fd, _CREATE_VCPU, 0)
        self._memory: dict[int, tuple[int, mmap.mmap, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._vcpu)
        os.close(self._fd)

    def add_slot(self, slot: int, gpa: int, size: int) -> None:
        """A slot of `size` bytes at guest address `gpa`, not logged."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        memory = mmap.mmap(-1, size, flags=flags)
        self._memory[slot] = (gpa, memory, size)
        self.log(slot, on=False)

    def log(self, slot: int, *, on: bool) -> None:
        """Switch dirty logging of a slot on or off."""
        gpa, memory, size = self._memory[slot]
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        flags = LOG_DIRTY_PAGES if on else 0
        self._call(_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", slot, flags, gpa, size, address))

    def remove_slot(self, slot: int) -> None:
        """Delete a slot."""
        gpa, _, _ = self._memory.pop(slot)
        self._call(_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", slot, 0, gpa, 0, 0))

    def dirty(self, pages: Iterable[int]) -> None:
        """Have KVM write to these guest page numbers (those of the address space, not of a slot)."""
        for page in pages:
            msr = struct.pack("<IIIIQ", 1, 0, _MSR_KVM_WALL_CLOCK_NEW, 0, page * PAGE)
            if _LIBC.ioctl(self._vcpu, _SET_MSRS, msr) != 1:
                raise OSError(errno.EINVAL, "KVM refused MSR_KVM_WALL_CLOCK_NEW")

    def get(self, slot: int, bitmap: "Bitmap") -> None:
        """KVM_GET_DIRTY_LOG into `bitmap`."""
        self._call(_GET_DIRTY_LOG, struct.pack("<IIQ", slot, 0, bitmap.address))

    def clear(self, slot: int, first_page: int, pages: int, bitmap: "Bitmap") -> None:
        """KVM_CLEAR_DIRTY_LOG of `pages` pages from `first_page`; bit 0 of `bitmap` is `first_page`."""
        self._call(_CLEAR_DIRTY_LOG, struct.pack("<IIQQ", slot, pages, first_page, bitmap.address))

    def _call(self, number: int, argument: bytes) -> None:
        if _LIBC.ioctl(self._fd, number, argument) < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"ioctl {number:#x}: {os.strerror(error)}")


class Bitmap:
    """Memory for `pages` bits, in whole u64 words."""

    def __init__(self, pages: int) -> None:
        self.bytes = (pages + 63) // 64 * 8
        self._memory = mmap.mmap(-1, max(self.bytes, PAGE))
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # Touched before it is timed: the kernel would otherwise fault every page in.
        self.fill(0)

    def fill(self, byte: int) -> None:
        """Every byte of it."""
        ctypes.memset(self.address, byte, self.bytes)

    def set(self, pages: Iterable[int]) -> None:
        """Set these bits."""
        for page in pages:
            self._memory[page // 8] |= 1 << page % 8

    def load(self, bits: int) -> None:
        """Bit i of it is bit i of `bits`."""
        self._memory[: self.bytes] = bits.to_bytes(self.bytes, "little")

    def count(self) -> int:
        """Bits that are set."""
        return int.from_bytes(self._memory[: self.bytes], "little").bit_count()


def exact(gib: int, protect: int, pages: int) -> dict[str, object]:
    """What `sweeps` does to a new VM, in a thread of its own as in a VMM: not the vCPU's."""
    with Vm(protect) as vm, ThreadPoolExecutor(1) as thread:
        return thread.submit(sweeps, vm, gib, protect, pages).result()


def sweeps(vm: Vm, gib: int, protect: int, pages: int) -> dict[str, object]:
    """Rounds whose new pages are known, made as a migration's thread makes them; says what they were.

    A page written to /dev/null after each sweep stands for the migration channel.
    """
    total = gib * GIB // PAGE
    chosen = random.Random(gib)
    rounds = []
    got = []
    channel = os.open("/dev/null", os.O_WRONLY)
    # Above 4 GiB: below lie the addresses KVM wants for itself (APIC, TSS).
    first = 4 * GIB // PAGE
    vm.add_slot(0, first * PAGE, gib * GIB)
    bitmap, cleared = Bitmap(total), Bitmap(total)
    vm.log(0, on=True)

    def sweep(new: int | None) -> None:
        vm.get(0, bitmap)
        got.append(bitmap.count())
        rounds.append(new)
        os.write(channel, bytes(PAGE))

    sweep(None if protect & INITIALLY_SET else 0)
    if protect & INITIALLY_SET:
        cleared.fill(0x55)  # every second page, in chunks between syncs as QEMU does
        chunk = 1 << 18
        for start in range(0, total, chunk):
            vm.clear(0, start, min(chunk, total - start), cleared)
    even = sorted({chosen.randrange(total // 2) * 2 for _ in range(pages)})
    vm.dirty(first + page for page in even)
    sweep(len(even))
    # Some of those again, some not cleared and so not new, some that were never dirty.
    half = even[: len(even) // 2]
    if protect:
        cleared.fill(0)
        cleared.set(half)
        vm.clear(0, 0, total, cleared)
    vm.dirty(first + page for page in even)
    sweep(len(half) if protect else len(even))
    sweep(0)
    vm.log(0, on=False)
    distinct = len(even)
    return {"gib": gib, "protect": protect, "new": rounds, "log": got, "distinct": distinct}


def measure(gib: int, calls: int) -> dict[str, object]:
    """Times of KVM_GET_DIRTY_LOG in ns: of an idle slot, and with every second page dirty.

    One call after the other finds the bitmap in the CPU's caches; `cold` calls come after 32 MiB of other
    memory were written, as a VMM does that sends pages between two syncs.
    """
    total = gib * GIB // PAGE
    with Vm(MANUAL_PROTECT | INITIALLY_SET) as vm:
        vm.add_slot(0, 4 * GIB, gib * GIB)
        bitmap, cleared = Bitmap(total), Bitmap(total)
        vm.log(0, on=True)
        cleared.fill(0xAA)
        _clear(vm, total, cleared)
        half = _timed(vm, bitmap, calls)
        half_pages = bitmap.count()
        cleared.fill(0x55)
        _clear(vm, total, cleared)
        idle = _timed(vm, bitmap, calls)
        cold = _timed(vm, bitmap, max(5, calls // 4), between=Bitmap(COLD_BYTES * 8))
        return {
            "gib": gib,
            "idle": idle,
            "cold": cold,
            "half": half,
            "half_pages": half_pages,
            "idle_pages": bitmap.count(),
        }


def _clear(vm: Vm, total: int, bitmap: Bitmap) -> None:
    # one bitmap does for every part: its pattern repeats
    chunk = 1 << 18
    for start in range(0, total, chunk):
        vm.clear(0, start, min(chunk, total - start), bitmap)


def _timed(vm: Vm, bitmap: Bitmap, calls: int, between: Bitmap | None = None) -> list[int]:
    argument = struct.pack("<IIQ", 0, 0, bitmap.address)
    ioctl, fd, clock = _LIBC.ioctl, vm._fd, time.perf_counter_ns
    times = []
    for number in range(calls):
        if between is not None:
            between.fill(number & 0xFF)
        before = clock()
        ret = ioctl(fd, _GET_DIRTY_LOG, argument)
        times.append(clock() - before)
        if ret < 0:
            raise OSError(ctypes.get_errno(), "KVM_GET_DIRTY_LOG")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="KVM memory slots of any size without a guest")
    parser.add_argument("what", choices=("exact", "time"))
    parser.add_argument("--gib", type=int, required=True)
    parser.add_argument("--no-manual", action="store_true", help="GET clears what it returns")
    parser.add_argument("--pages", type=int, default=2000, help="pages dirtied a round")
    parser.add_argument("--calls", type=int, default=100)
    args = parser.parse_args()
    protect = 0 if args.no_manual else MANUAL_PROTECT | INITIALLY_SET
    done = (
        exact(args.gib, protect, args.pages)
        if args.what == "exact"
        else measure(args.gib, args.calls)
    )
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
