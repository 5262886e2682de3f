# SPDX-License-Identifier: MIT
"""Events of VFIO devices: what bpf/vfio.bpf.c sends."""

from vftrace import uapi
from vftrace.events import layout
from vftrace.events.base import Event
from vftrace.events.layout import Kind


class VfioOpen(Event, frozen=True):
    """A VFIO device fd: opened from its group, bound to an iommufd, or first seen in another request.

    `name` is a PCI address or a mediated device's UUID, empty where the kernel side did not see it.
    `mapping_ns` is the time at which the VMM began to map the guest's memory for its first device, 0 for other devices.
    """

    KIND = Kind.VFIO_OPEN
    PROBE = "vfio"

    fd: int
    how: int
    name: str
    mapping_ns: int = 0

    GROUP = layout.VFIO_GROUP
    BIND = layout.VFIO_BIND
    SEEN = layout.VFIO_SEEN


class VfioClose(Event, frozen=True):
    """A process closed a device fd and continues: the device has left the VM."""

    KIND = Kind.VFIO_CLOSE
    PROBE = "vfio"

    fd: int


class VfioState(Event, frozen=True):
    """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: `state` is the requested (SET) or the returned (GET) state.

    `data_fd` is -1 if the kernel returned none.
    """

    KIND = Kind.VFIO_STATE
    PROBE = "vfio"

    enter_ns: int
    fd: int
    op: int
    state: int
    data_fd: int
    ret: int

    GET = layout.VFIO_GET
    SET = layout.VFIO_SET
    RESUMING = uapi.VFIO_DEVICE_STATE_RESUMING

    def requests_state(self, state: int) -> bool:
        """Whether this is a request for that state, granted or not."""
        return self.op == self.SET and self.state == state


class VfioMigration(Event, frozen=True):
    """VFIO_DEVICE_FEATURE_MIGRATION: what the device can do."""

    KIND = Kind.VFIO_MIGRATION
    PROBE = "vfio"

    flags: int
    fd: int
    ret: int

    STOP_COPY = uapi.VFIO_MIGRATION_STOP_COPY
    P2P = uapi.VFIO_MIGRATION_P2P
    PRE_COPY = uapi.VFIO_MIGRATION_PRE_COPY


class VfioDataSize(Event, frozen=True):
    """VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: the device's estimate in bytes."""

    KIND = Kind.VFIO_DATA_SIZE
    PROBE = "vfio"

    stop_copy_length: int
    fd: int
    ret: int


class VfioPrecopyInfo(Event, frozen=True):
    """VFIO_MIG_GET_PRECOPY_INFO: bytes that can be read before the stop."""

    KIND = Kind.VFIO_PRECOPY_INFO
    PROBE = "vfio-data"

    initial_bytes: int
    dirty_bytes: int
    data_fd: int
    ret: int


class VfioReset(Event, frozen=True):
    """A reset: by VFIO_DEVICE_RESET or VFIO_DEVICE_PCI_HOT_RESET on `fd`, or a function level reset.

    A function level reset is recorded at its beginning, with the device's `name` (fd -1, enter_ns 0).
    """

    KIND = Kind.VFIO_RESET
    PROBE = "vfio"

    enter_ns: int
    fd: int
    op: int
    name: str
    ret: int

    DEVICE = layout.VFIO_DEVICE_RESET
    HOT = layout.VFIO_HOT_RESET
    FLR = layout.VFIO_FLR


class VfioDirtyTracking(Event, frozen=True):
    """A device, a container or an iommufd (`by`) switched dirty tracking of DMA on or off.

    `dma_maps` and `dma_unmaps` count the process's requests so far.
    """

    KIND = Kind.VFIO_DIRTY_TRACKING
    PROBE = "vfio"

    enter_ns: int
    page_size: int
    dma_maps: int
    dma_unmaps: int
    fd: int
    by: int
    on: int
    ret: int

    DEVICE = layout.VFIO_BY_DEVICE
    CONTAINER = layout.VFIO_BY_CONTAINER
    IOMMUFD = layout.VFIO_BY_IOMMUFD


class VfioDirty(Event, frozen=True):
    """The VMM read and cleared a bitmap of pages that DMA wrote; with `unmap` the last bitmap of a mapping.

    Its pieces (`Piece`, same thread and `enter_ns`) count `page_size` pages from `iova`. `page_table` is iommufd's
    number of the page table that was read; `kept`: the bitmap was not cleared (NO_CLEAR), so it reports the pages
    again.
    """

    KIND = Kind.VFIO_DIRTY
    PROBE = "vfio"

    enter_ns: int
    iova: int
    length: int
    page_size: int
    bitmap_bytes: int
    walked_bytes: int
    fd: int
    by: int
    unmap: int
    ret: int
    pieces: int
    read_errors: int
    kept: int = 0
    page_table: int = 0


class VfioMapped(Event, frozen=True):
    """Mappings of guest memory for devices since the process's last such event.

    `first_ns`: the first request began; `last_ns`: the last one ended; `took_ns`: the time within requests.
    """

    KIND = Kind.VFIO_MAPPED
    PROBE = "vfio"

    first_ns: int
    last_ns: int
    took_ns: int
    maps: int
    unmaps: int


class VfioPageTable(Event, frozen=True):
    """An iommufd's page table was made, or a device was attached to one or to an address space.

    `id` is the iommufd's number for the page table; `tracks`: it was made to mark written pages.
    """

    KIND = Kind.VFIO_PAGE_TABLE
    PROBE = "vfio"

    fd: int
    op: int
    id: int
    tracks: int
    ret: int

    ALLOC = layout.VFIO_TABLE_ALLOC
    ATTACH = layout.VFIO_TABLE_ATTACH


class VfioData(Event, frozen=True):
    """Totals of a device's data fd since the kernel returned it; `error` is a negative errno or 0.

    `flags`: END: a read returned the end of the data; LEFT: the device has left the state.
    """

    KIND = Kind.VFIO_DATA
    PROBE = "vfio-data"

    bytes: int
    calls: int
    first_ns: int
    last_ns: int
    error_ns: int
    fd: int
    data_fd: int
    op: int
    error: int
    flags: int

    SAVE = layout.VFIO_SAVE
    LOAD = layout.VFIO_LOAD
    END = layout.VFIO_DATA_END
    LEFT = layout.VFIO_DATA_LEFT
