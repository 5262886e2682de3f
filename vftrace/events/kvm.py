# SPDX-License-Identifier: MIT
"""Events of KVM, userfaultfd, the migration channel and the VMM's process: what bpf/kvm.bpf.c sends."""

from vftrace.events import layout
from vftrace.events.base import Event
from vftrace.events.bitmap import unpacked
from vftrace.events.layout import Kind


class VmCreated(Event, frozen=True):
    """KVM_CREATE_VM succeeded."""

    KIND = Kind.VM_CREATED
    PROBE = "ioctl"

    fd: int


class VcpuCreated(Event, frozen=True):
    """KVM_CREATE_VCPU returned; `fd` is negative if it failed."""

    KIND = Kind.VCPU_CREATED
    PROBE = "ioctl"

    fd: int
    vcpu_id: int


class Region(Event, frozen=True):
    """KVM_SET_USER_MEMORY_REGION(2); `size` 0 deletes the slot, sizes are in bytes."""

    KIND = Kind.REGION
    PROBE = "ioctl"

    slot: int
    flags: int
    gpa: int
    size: int
    uaddr: int
    ret: int


class Capability(Event, frozen=True):
    """KVM_ENABLE_CAP."""

    KIND = Kind.CAP
    PROBE = "ioctl"

    cap: int
    ret: int
    arg0: int


class GetDirtyLog(Event, frozen=True):
    """KVM_GET_DIRTY_LOG, seen at its return.

    The kernel side sent `pieces` non-zero parts of the bitmap before this record. It read `walked_bytes` of
    `bitmap_bytes` (0: it did not know the slot's size), and could not read `read_errors` parts.
    """

    KIND = Kind.GET_DIRTY_LOG
    PROBE = "ioctl"

    enter_ns: int
    last_exit_ns: int
    bitmap_bytes: int
    walked_bytes: int
    slot: int
    ret: int
    pieces: int
    read_errors: int


class ClearDirtyLog(Event, frozen=True):
    """KVM_CLEAR_DIRTY_LOG; the kernel side read its bitmap before the call."""

    KIND = Kind.CLEAR_DIRTY_LOG
    PROBE = "ioctl"

    enter_ns: int
    first_page: int
    bitmap_bytes: int
    walked_bytes: int
    num_pages: int
    slot: int
    ret: int
    pieces: int
    read_errors: int


class Piece(Event, frozen=True):
    """A non-zero part of a bitmap: bit i of `bits` is page `first_page` + i of the slot.

    Only recordings of earlier versions have this kind; `BitmapPart` replaced it.
    """

    KIND = Kind.PIECE
    PROBE = "ioctl"

    call_ns: int
    first_page: int
    slot: int
    bits: int


class BitmapPart(Event, frozen=True):
    """A part of a bitmap as the kernel side sends it now: `bits` may be longer than the bits of a `Piece`.

    Its `seq` counts only the process's records of this kind, because they have a ring buffer of their own.
    The event keeps the part packed: 64 bytes may be a bitmap of 32 KiB, and thousands wait for the record of their
    call.
    """

    KIND = Kind.BITMAP
    PROBE = "ioctl"

    call_ns: int
    first_page: int
    slot: int
    words: int
    entries: bytes

    @property
    def bits(self) -> int:
        """Bit i is page `first_page` + i of the slot; unpacked each time."""
        return unpacked(self.entries, self.words)


Part = Piece | BitmapPart
"""The classes of parts of bitmaps."""


class ResetDirtyRings(Event, frozen=True):
    """KVM_RESET_DIRTY_RINGS; `pushes`, `ring_full_exits` and `untracked` are totals of the process."""

    KIND = Kind.RESET_DIRTY_RINGS
    PROBE = "ioctl"

    enter_ns: int
    last_exit_ns: int
    pushes: int
    ring_full_exits: int
    ret: int
    pieces: int
    untracked: int


class Clock(Event, frozen=True):
    """KVM_GET_CLOCK, KVM_SET_CLOCK or KVM_KVMCLOCK_CTRL, with the VM's latest vCPU exit.

    `clock` is the guest's kvmclock, in ns: the destination sets the value that the source read last. 0: not known.
    """

    KIND = Kind.CLOCK
    PROBE = "ioctl"

    enter_ns: int
    last_exit_ns: int
    op: int
    ret: int
    clock: int

    GET = layout.CLOCK_GET
    SET = layout.CLOCK_SET
    CTRL = layout.CLOCK_CTRL


class Run(Event, frozen=True):
    """A vCPU enters the guest, for the first time (`exit_ns` 0) or more than 1 ms after its last exit."""

    KIND = Kind.RUN
    PROBE = "ioctl"

    exit_ns: int


class VcpuState(Event, frozen=True):
    """KVM_SET_MP_STATE: QEMU's full register set ends with it (kvm_arch_put_registers)."""

    KIND = Kind.VCPU_STATE
    PROBE = "ioctl"

    ret: int


class Userfault(Event, frozen=True):
    """A userfaultfd ioctl; `calls` and `bytes` are the process's totals of COPY, ZEROPAGE, CONTINUE."""

    KIND = Kind.UFFD
    PROBE = "ioctl"

    calls: int
    bytes: int
    op: int
    ret: int

    API = layout.UFFD_API
    REGISTER = layout.UFFD_REGISTER
    UNREGISTER = layout.UFFD_UNREGISTER
    COPY = layout.UFFD_COPY
    ZEROPAGE = layout.UFFD_ZEROPAGE
    CONTINUE = layout.UFFD_CONTINUE


class Channel(Event, frozen=True):
    """Totals of what a process sent on one fd while it logs dirty pages; `error` is a negative errno or 0."""

    KIND = Kind.CHANNEL
    PROBE = "channel"

    bytes: int
    calls: int
    first_ns: int
    last_ns: int
    error_ns: int
    fd: int
    error: int
    sender_tid: int
    op: int


class Burst(Event, frozen=True):
    """Totals of an fd: the nanoseconds in which a VMM was busy sending, without its own pauses, and the bytes sent in
    them."""

    KIND = Kind.BURST
    PROBE = "channel"

    bytes: int
    ns: int
    fd: int


class ThreadExit(Event, frozen=True):
    """A thread of a process that logs dirty pages ended; the process continues, or ends with the thread."""

    KIND = Kind.THREAD_EXIT
    PROBE = "process"


class Exit(Event, frozen=True):
    """The last thread of a process ended; `lost` and `bulk_lost` as in `events.VmLost`."""

    KIND = Kind.EXIT
    PROBE = "process"

    last_exit_ns: int
    lost: int = 0
    bulk_lost: int = 0
