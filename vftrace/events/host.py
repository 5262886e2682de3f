# SPDX-License-Identifier: MIT
"""Events that the collector writes itself: time, losses, and the identities of processes, fds and devices."""

from vftrace.events.base import Event
from vftrace.events.layout import Kind


class Tick(Event, frozen=True):
    """Time passed: the reader writes a tick every 100 ms."""

    KIND = Kind.TICK


class ClockSample(Event, frozen=True):
    """CLOCK_REALTIME minus CLOCK_BOOTTIME, with the kernel's error bound (adjtimex maxerror), in ns."""

    KIND = Kind.CLOCK_SAMPLE

    realtime_offset_ns: int
    error_ns: int


class Lost(Event, frozen=True):
    """Records that did not fit into the ring buffers, in total since the start; `bulk` of them were parts of
    bitmaps."""

    KIND = Kind.LOST

    count: int
    bulk: int = 0


class VmLost(Event, frozen=True):
    """Records of one process that did not fit into the ring buffers, in total: `bulk` parts of bitmaps, whose loss only
    makes numbers of dirty pages unknown, and `records` of all other kinds. The reader took `dropped` parts of bitmaps
    out of the ring buffer and dropped them, because it held too many."""

    KIND = Kind.VM_LOST

    pid: int
    records: int
    bulk: int
    dropped: int = 0


class Gone(Event, frozen=True):
    """A VMM process has ended, as the collector found in /proc (its Exit record may be lost)."""

    KIND = Kind.GONE

    pid: int


class End(Event, frozen=True):
    """The recorder closed the recording; `streams` holds the next `seq` of each live process."""

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


class Untraced(Event, frozen=True):
    """VMs of a user that are not traced, because the kernel side's table of VMs had no room for them: how many since
    vftrace started."""

    KIND = Kind.UNTRACED

    uid: int
    count: int


class MissedRuns(Event, frozen=True):
    """Runs of a probe's programs that the kernel skipped since vftrace started, in total.

    The latest were skipped between `since_ns` and `until_ns`, when the counters were read. Whose calls they would have
    seen is not known. `reason`: `recursion` (recursion_misses of struct bpf_prog_info), `kprobe` (nmissed of a kprobe).
    """

    KIND = Kind.MISSED_RUNS

    probe: str
    reason: str
    count: int
    since_ns: int
    until_ns: int


class Process(Event, frozen=True):
    """The identity of a VMM process, read from /proc when vftrace first saw it.

    `late`: the process started before vftrace; `running`: then one of its vCPUs was inside KVM_RUN. `incoming` and
    `started_paused` are QEMU's `-incoming` and `-S`. `start_time` is field 22 of /proc/PID/stat, in clock
    ticks since boot. `load_channel` (file, pipe, snapshot), `load_path` and `load_program` name what it loads
    its state from, if that is not another VMM. `namespace`, `vmi` and `pod_uid` are KubeVirt's, `vmid` is Proxmox VE's.
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
    """The file behind an fd of a process: kind (tcp, unix, pipe, file, unknown) and, for tcp, the remote address.

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
    """The device behind a VFIO device fd of a process, read from /proc and /sys.

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
    """The migration for which a recording was kept: the `attempt`th of process `pid`, which began at `started_at_ns`.

    Other migrations may have records in such a recording, but they are not complete in it.
    """

    KIND = Kind.RECORDED_MIGRATION

    pid: int
    started_at_ns: int
    attempt: int


class NetLink(Event, frozen=True):
    """A network interface changed: `up` is its administrative state, `carrier` whether it has a link, `master` the
    bridge or bond it belongs to, `gone` if it was removed. `at_ns` is when the collector read it."""

    KIND = Kind.NET_LINK

    interface: str
    mac: str
    master: str | None
    up: bool
    carrier: bool
    gone: bool


class NetAddress(Event, frozen=True):
    """A bridge learned an address on another port than before, or with `gone` forgot it.

    `pid` is the VMM that has the port's tap, None if the port is not a VMM's. `at_ns` is when the collector read it.
    """

    KIND = Kind.NET_ADDRESS

    mac: str
    port: str
    bridge: str
    gone: bool
    pid: int | None


class NetMissed(Event, frozen=True):
    """Events of interfaces and bridges that were not recorded or read because there were too many, in total."""

    KIND = Kind.NET_MISSED

    count: int
