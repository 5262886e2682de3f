"""What happened: one frozen dataclass for each kind of record (the layouts are in bpf/wire.h).

Every event begins with the same four fields: `at_ns` (CLOCK_BOOTTIME, integer nanoseconds),
`seq` (its place in the stream of its process, so that a loss shows as a hole), `tgid` and `tid`.
Field names are those of the uAPI structures they were read from. `ret` is what the ioctl
returned, a negative errno on failure.
"""

from dataclasses import dataclass

NO_PROCESS = 0
"""`tgid` of records that belong to no process: mailboxes."""

USER_STREAM = 0xFFFF_FFFF
"""`tgid` of records the collector writes itself: ticks, clock samples, who is who."""


@dataclass(frozen=True, slots=True)
class Event:
    """What all records begin with."""

    at_ns: int
    seq: int
    tgid: int
    tid: int


@dataclass(frozen=True, slots=True)
class VmCreated(Event):
    """KVM_CREATE_VM succeeded."""

    fd: int


@dataclass(frozen=True, slots=True)
class VcpuCreated(Event):
    """KVM_CREATE_VCPU returned; `fd` is negative if it failed."""

    fd: int
    vcpu_id: int


@dataclass(frozen=True, slots=True)
class Region(Event):
    """KVM_SET_USER_MEMORY_REGION(2); `size` 0 deletes the slot, sizes are in bytes."""

    slot: int
    flags: int
    gpa: int
    size: int
    uaddr: int
    ret: int


@dataclass(frozen=True, slots=True)
class Capability(Event):
    """KVM_ENABLE_CAP."""

    cap: int
    ret: int
    arg0: int


@dataclass(frozen=True, slots=True)
class GetDirtyLog(Event):
    """KVM_GET_DIRTY_LOG, seen at its return.

    `pieces` non-zero parts of the bitmap were sent before it, `walked_bytes` of `bitmap_bytes` were
    read (0: the slot's size was not known), `read_errors` parts could not be read.
    """

    enter_ns: int
    last_exit_ns: int
    bitmap_bytes: int
    walked_bytes: int
    slot: int
    ret: int
    pieces: int
    read_errors: int


@dataclass(frozen=True, slots=True)
class ClearDirtyLog(Event):
    """KVM_CLEAR_DIRTY_LOG; its bitmap was read before the call."""

    enter_ns: int
    first_page: int
    bitmap_bytes: int
    walked_bytes: int
    num_pages: int
    slot: int
    ret: int
    pieces: int
    read_errors: int


@dataclass(frozen=True, slots=True)
class Piece(Event):
    """A non-zero part of a bitmap: bit i of `bits` is page `first_page` + i of the slot."""

    call_ns: int
    first_page: int
    slot: int
    bits: int


@dataclass(frozen=True, slots=True)
class ResetDirtyRings(Event):
    """KVM_RESET_DIRTY_RINGS; `pushes`, `ring_full_exits` and `untracked` are totals of the process."""

    enter_ns: int
    last_exit_ns: int
    pushes: int
    ring_full_exits: int
    ret: int
    pieces: int
    untracked: int


@dataclass(frozen=True, slots=True)
class Clock(Event):
    """KVM_GET_CLOCK, KVM_SET_CLOCK or KVM_KVMCLOCK_CTRL, with the VM's latest vCPU exit.

    `clock` is the guest's kvmclock, ns: the destination sets what the source read last. 0: not known.
    """

    enter_ns: int
    last_exit_ns: int
    op: int
    ret: int
    clock: int

    GET = 0
    SET = 1
    CTRL = 2


@dataclass(frozen=True, slots=True)
class Run(Event):
    """A vCPU enters the guest, for the first time (`exit_ns` 0) or more than 1 ms after its last exit."""

    exit_ns: int


@dataclass(frozen=True, slots=True)
class VcpuState(Event):
    """KVM_SET_MP_STATE: QEMU's full register set ends with it (kvm_arch_put_registers)."""

    ret: int


@dataclass(frozen=True, slots=True)
class Channel(Event):
    """Totals of what a process sent on one fd while it logs; `error` is a negative errno or 0."""

    bytes: int
    calls: int
    first_ns: int
    last_ns: int
    error_ns: int
    fd: int
    error: int
    sender_tid: int
    op: int


@dataclass(frozen=True, slots=True)
class Burst(Event):
    """Totals of an fd: nanoseconds a VMM was busy sending, its own pauses left out, and what it sent in them."""

    bytes: int
    ns: int
    fd: int


@dataclass(frozen=True, slots=True)
class Userfault(Event):
    """A userfaultfd ioctl; `calls` and `bytes` are the process's totals of COPY, ZEROPAGE, CONTINUE."""

    calls: int
    bytes: int
    op: int
    ret: int

    API = 0
    REGISTER = 1
    UNREGISTER = 2
    COPY = 3
    ZEROPAGE = 4
    CONTINUE = 5


@dataclass(frozen=True, slots=True)
class Exit(Event):
    """The last thread of a process ended."""

    last_exit_ns: int


@dataclass(frozen=True, slots=True)
class VfioOpen(Event):
    """A VFIO device fd: from its group, bound to an iommufd, or met by another request.

    `name` is a PCI address or a mediated device's UUID, empty where the kernel side did not see it.
    `mapping_ns` is when the VMM began to map the guest's memory for its first device, 0 for others.
    """

    fd: int
    how: int
    name: str
    mapping_ns: int = 0

    GROUP = 0
    BIND = 1
    SEEN = 2


@dataclass(frozen=True, slots=True)
class VfioClose(Event):
    """A device fd was closed by a process that lives on: the device has left the VM."""

    fd: int


@dataclass(frozen=True, slots=True)
class VfioState(Event):
    """VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: `state` is what was asked for (SET) or answered (GET).

    `data_fd` is -1 where none was given out.
    """

    enter_ns: int
    fd: int
    op: int
    state: int
    data_fd: int
    ret: int

    GET = 0
    SET = 1
    RESUMING = 4

    def asks_for(self, state: int) -> bool:
        """Whether this is a request for that state, granted or not."""
        return self.op == self.SET and self.state == state


@dataclass(frozen=True, slots=True)
class VfioMigration(Event):
    """VFIO_DEVICE_FEATURE_MIGRATION: what the device can do."""

    flags: int
    fd: int
    ret: int

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


@dataclass(frozen=True, slots=True)
class VfioDataSize(Event):
    """VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: the device's estimate in bytes."""

    stop_copy_length: int
    fd: int
    ret: int


@dataclass(frozen=True, slots=True)
class VfioPrecopyInfo(Event):
    """VFIO_MIG_GET_PRECOPY_INFO: bytes that can be read before the stop."""

    initial_bytes: int
    dirty_bytes: int
    data_fd: int
    ret: int


@dataclass(frozen=True, slots=True)
class VfioReset(Event):
    """A reset: by VFIO_DEVICE_RESET or VFIO_DEVICE_PCI_HOT_RESET on `fd`, or a function level reset.

    The last is seen at its beginning, by `name` (fd -1, enter_ns 0).
    """

    enter_ns: int
    fd: int
    op: int
    name: str
    ret: int

    DEVICE = 0
    HOT = 1
    FLR = 2


@dataclass(frozen=True, slots=True)
class VfioDirtyTracking(Event):
    """Dirty tracking of DMA went on or off, by a device, a container or an iommufd (`by`).

    `dma_maps` and `dma_unmaps` count the process's requests so far.
    """

    enter_ns: int
    page_size: int
    dma_maps: int
    dma_unmaps: int
    fd: int
    by: int
    on: int
    ret: int

    DEVICE = 0
    CONTAINER = 1
    IOMMUFD = 2


@dataclass(frozen=True, slots=True)
class VfioDirty(Event):
    """A bitmap of pages that DMA wrote, read and cleared; with `unmap` the last one of a mapping.

    Its pieces (`Piece`, same thread and `enter_ns`) count `page_size` pages from `iova`.
    """

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


@dataclass(frozen=True, slots=True)
class VfioData(Event):
    """Totals of a device's data fd since it was given out; `error` is a negative errno or 0.

    `flags`: END: a read said that there is no more; LEFT: the device has left that state.
    """

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

    SAVE = 0
    LOAD = 1
    END = 1
    LEFT = 2


@dataclass(frozen=True, slots=True)
class Mailbox(Event):
    """A message in the mailbox between a card's driver (`pf`, its PCI address) and its virtual function `vf`.

    It had `size` 32-bit words, of which the first `words` were recorded, the others of `word` are 0: keys
    never leave the kernel. `ret` not 0: it could not be read. `tgid` and `tid` are 0: a mailbox belongs to
    no process.
    """

    pf: str
    driver: int
    vf: int
    direction: int
    size: int
    words: int
    ret: int
    word: tuple[int, ...]

    IXGBE = 1
    IGB = 2
    FROM_VF = 0
    TO_VF = 1


@dataclass(frozen=True, slots=True)
class VfReset(Event):
    """The card's driver found that a virtual function was reset as a function, not by a message."""

    pf: str
    driver: int
    vf: int


@dataclass(frozen=True, slots=True)
class MailboxFlood(Event):
    """A virtual function's messages came faster than they are recorded: how many since the last such record."""

    pf: str
    driver: int
    vf: int
    from_vf: int
    to_vf: int
    resets: int


@dataclass(frozen=True, slots=True)
class VfAddress(Event):
    """The PCI address of a virtual function whose mailbox was seen, read from /sys."""

    pf: str
    vf: int
    address: str


@dataclass(frozen=True, slots=True)
class Tick(Event):
    """Time passed: written every 100 ms by the reader."""


@dataclass(frozen=True, slots=True)
class ClockSample(Event):
    """CLOCK_REALTIME minus CLOCK_BOOTTIME, with the kernel's error bound (adjtimex maxerror), in ns."""

    realtime_offset_ns: int
    error_ns: int


@dataclass(frozen=True, slots=True)
class Process(Event):
    """Who a VMM process is, read from /proc when it was first seen.

    `late`: it was there before vftrace started, `running`: with a vCPU inside KVM_RUN. `incoming` and
    `started_paused` are QEMU's `-incoming` and `-S`. `start_time` is field 22 of /proc/PID/stat, in clock
    ticks since boot.
    """

    pid: int
    start_time: int
    uuid: str | None
    name: str | None
    vmm: str
    incoming: bool
    started_paused: bool
    late: bool
    running: bool


@dataclass(frozen=True, slots=True)
class FileDescriptor(Event):
    """What an fd of a process is: kind (tcp, unix, pipe, file, unknown) and, for tcp, the remote address."""

    pid: int
    fd: int
    kind: str
    peer: str | None


@dataclass(frozen=True, slots=True)
class Device(Event):
    """Which device a VFIO device fd of a process is, read from /proc and /sys.

    `address` is a PCI address or a mediated device's UUID; `id` QEMU's; `driver` the one it is bound to;
    `pf` and `vf` are a virtual function's card and number.
    """

    pid: int
    fd: int
    address: str
    id: str | None
    driver: str | None
    pf: str | None
    vf: int | None
    late: bool


@dataclass(frozen=True, slots=True)
class NetLink(Event):
    """A network interface is another: `up` as somebody set it, `carrier` whether there is a link, `master` the
    bridge or bond it is in, `gone` if it was removed. `at_ns` is when the collector read it."""

    interface: str
    mac: str
    master: str | None
    up: bool
    carrier: bool
    gone: bool


@dataclass(frozen=True, slots=True)
class NetAddress(Event):
    """A bridge heard an address on a port where it was not before, or with `gone` forgot it.

    `pid` is the VMM whose tap the port is, None if it is no VMM's. `at_ns` is when the collector read it.
    """

    mac: str
    port: str
    bridge: str
    gone: bool
    pid: int | None


@dataclass(frozen=True, slots=True)
class NetMissed(Event):
    """Events of interfaces and bridges that were too many to be recorded or read, in total since the start."""

    count: int


@dataclass(frozen=True, slots=True)
class Gone(Event):
    """A VMM process is no longer there, found by looking (its Exit record may be lost)."""

    pid: int


@dataclass(frozen=True, slots=True)
class Uncounted(Event):
    """A process sends on more fds than are counted (MAX_CHANNELS in bpf/common.h): how often it did on others."""

    pid: int
    count: int


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """Records that did not fit into the ring, in total since the start."""

    count: int


@dataclass(frozen=True, slots=True)
class End(Event):
    """The recording was closed in order; `streams` holds the next `seq` of each live process."""

    streams: dict[int, int]


@dataclass(frozen=True, slots=True)
class PingSettings(Event):
    """How `vftrace ping` was started; the first record of its stream.

    `protocol` is icmp, udp or tcp, `port` 0 for icmp; `policy` is the scheduling policy that the
    sending process got: `fifo` or `other`.
    """

    target: str
    address: str
    protocol: str
    port: int
    interval_ns: int
    timeout_ns: int
    policy: str


@dataclass(frozen=True, slots=True)
class PingGap(Event):
    """A time without replies, written when it is settled (a timeout after its last probe).

    `kind` is `lost` (probes in a row that were never answered) or `held` (lost or answered late in
    a row, up to the first reply). `ns` counts from the first such probe; with one interruption,
    its true length lies between `least_ns` and `most_ns` (null: no answered probe on one side).
    `lost`, `late` and `missed` count probes: not answered, answered late, never sent because the
    pinger itself was late. The last four fields are the neighbours' times, null where there is no
    neighbour: the probe answered before was sent and its reply came, and the one answered after.
    """

    kind: str
    start_at_ns: int
    ns: int
    least_ns: int
    most_ns: int | None
    lost: int
    late: int
    missed: int
    before_sent_ns: int | None
    before_reply_ns: int | None
    after_sent_ns: int | None
    after_reply_ns: int | None


@dataclass(frozen=True, slots=True)
class PingSummary(Event):
    """Totals of a ping so far, written every second and at its end.

    Every probe sent from `since_ns` up to `settled_ns` was answered or has timed out. `late_*_ns`:
    how long after its time a probe was sent (the pinger's own jitter); `rtt_*_ns`: round trips.
    """

    since_ns: int
    settled_ns: int
    sent: int
    received: int
    lost: int
    missed_slots: int
    duplicates: int
    reordered: int
    after_timeout: int
    longest_gap_ns: int
    late_p50_ns: int
    late_p99_ns: int
    late_p999_ns: int
    late_max_ns: int
    rtt_min_ns: int
    rtt_p50_ns: int
    rtt_p99_ns: int
    rtt_max_ns: int


@dataclass(frozen=True, slots=True)
class Unknown(Event):
    """A record of a kind this version does not know, or one that does not fit its kind's layout."""

    kind: int
