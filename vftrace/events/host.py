"""Events that the collector writes itself: time, losses, and who is who."""

from vftrace.events.base import Event
from vftrace.events.layout import Kind


class Tick(Event, frozen=True):
    """Time passed: written every 100 ms by the reader."""

    KIND = Kind.TICK


class ClockSample(Event, frozen=True):
    """CLOCK_REALTIME minus CLOCK_BOOTTIME, with the kernel's error bound (adjtimex maxerror), in ns."""

    KIND = Kind.CLOCK_SAMPLE

    realtime_offset_ns: int
    error_ns: int


class Lost(Event, frozen=True):
    """Records that did not fit into the ring buffers, in total since the start; `bulk` of them parts of bitmaps."""

    KIND = Kind.LOST

    count: int
    bulk: int = 0


class VmLost(Event, frozen=True):
    """Records of one process that did not fit into the ring buffers, in total: `bulk` parts of bitmaps, which only make
    numbers of dirty pages unknown, and `records` of all other kinds. `dropped` parts of bitmaps came out of the ring
    buffer, but the reader held too many of them."""

    KIND = Kind.VM_LOST

    pid: int
    records: int
    bulk: int
    dropped: int = 0


class Gone(Event, frozen=True):
    """A VMM process is no longer there, found by looking (its Exit record may be lost)."""

    KIND = Kind.GONE

    pid: int


class End(Event, frozen=True):
    """The recording was closed in order; `streams` holds the next `seq` of each live process."""

    KIND = Kind.END

    streams: dict[int, int]


class Uncounted(Event, frozen=True):
    """The kernel side's tables had no room for calls or sends of a process (MAX_CHANNELS and others in
    bpf/common.h): how many, in total."""

    KIND = Kind.UNCOUNTED

    pid: int
    count: int


class TableFull(Event, frozen=True):
    """A table of the kernel side had no room for an entry: how often so far (enum table in bpf/common.h)."""

    KIND = Kind.TABLE_FULL

    table: str
    count: int


class Process(Event, frozen=True):
    """Who a VMM process is, read from /proc when it was first seen.

    `late`: it was there before vftrace started, `running`: with a vCPU inside KVM_RUN. `incoming` and
    `started_paused` are QEMU's `-incoming` and `-S`. `start_time` is field 22 of /proc/PID/stat, in clock
    ticks since boot. `load_channel` (file, pipe, snapshot), `load_path` and `load_program` tell what it loads
    its state from, if not from another VMM. `namespace`, `vmi` and `pod_uid` are KubeVirt's, `vmid` is Proxmox VE's.
    """

    KIND = Kind.PROCESS

    pid: int
    start_time: int
    uuid: str | None
    name: str | None
    vmm: str
    incoming: bool
    started_paused: bool
    late: bool
    running: bool
    load_channel: str | None = None
    load_path: str | None = None
    load_program: str | None = None
    namespace: str | None = None
    vmi: str | None = None
    pod_uid: str | None = None
    vmid: str | None = None


class FileDescriptor(Event, frozen=True):
    """What an fd of a process is: kind (tcp, unix, pipe, file, unknown) and, for tcp, the remote address.

    `path` is a file's, `program` the one that holds the other end of a pipe.
    """

    KIND = Kind.FILE_DESCRIPTOR

    pid: int
    fd: int
    kind: str
    peer: str | None
    path: str | None = None
    program: str | None = None


class Device(Event, frozen=True):
    """Which device a VFIO device fd of a process is, read from /proc and /sys.

    `address` is a PCI address or a mediated device's UUID; `id` QEMU's; `driver` the one it is bound to;
    `pf` and `vf` are a virtual function's card and number.
    """

    KIND = Kind.DEVICE

    pid: int
    fd: int
    address: str
    id: str | None
    driver: str | None
    pf: str | None
    vf: int | None
    late: bool


class RecordedMigration(Event, frozen=True):
    """The migration that a recording was kept for: it began at `started_at_ns` and is the `attempt`th of process `pid`.

    Other migrations of which such a recording has records are not whole in it.
    """

    KIND = Kind.RECORDED_MIGRATION

    pid: int
    started_at_ns: int
    attempt: int


class NetLink(Event, frozen=True):
    """A network interface is another: `up` as somebody set it, `carrier` whether there is a link, `master` the
    bridge or bond it is in, `gone` if it was removed. `at_ns` is when the collector read it."""

    KIND = Kind.NET_LINK

    interface: str
    mac: str
    master: str | None
    up: bool
    carrier: bool
    gone: bool


class NetAddress(Event, frozen=True):
    """A bridge learned an address on a port where it was not before, or with `gone` forgot it.

    `pid` is the VMM whose tap the port is, None if it is no VMM's. `at_ns` is when the collector read it.
    """

    KIND = Kind.NET_ADDRESS

    mac: str
    port: str
    bridge: str
    gone: bool
    pid: int | None


class NetMissed(Event, frozen=True):
    """Events of interfaces and bridges that were too many to be recorded or read, in total since the start."""

    KIND = Kind.NET_MISSED

    count: int
