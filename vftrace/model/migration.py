"""What the tracker returns: immutable, ready for any output. Times are CLOCK_BOOTTIME nanoseconds,
None where they are not known."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from vftrace.events import NetAddress, NetLink
from vftrace.model.brownout import Brownout
from vftrace.model.calls import BlackoutCalls
from vftrace.model.checkpoint import Checkpoint as Checkpoint
from vftrace.model.vf import VfHistory


class Role(StrEnum):
    """Which side of a migration was seen; `stitched`: both, joined to one."""

    SOURCE = "source"
    DESTINATION = "destination"
    STITCHED = "stitched"


class Kind(StrEnum):
    """What the VMM did: a move to another process, or a save to a file and a load from one."""

    MOVE = "move"
    SAVE = "save"
    LOAD = "load"


class Outcome(StrEnum):
    """How it ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Strategy(StrEnum):
    """What was done about passed-through devices (docs/reference/devices.md)."""

    PLAIN = "plain"
    VFIO = "vfio"
    UNPLUG = "unplug"
    LATE_UNPLUG = "late-unplug"
    FAILOVER = "failover"
    MAILBOX = "mailbox"


class Cause(StrEnum):
    """Why it did not complete, or why its end is not known."""

    CANCELLED = "cancelled"
    CHECKPOINTING = "checkpointing"
    CHANNEL_ERROR = "channel-error"
    DESTINATION_ENDED = "destination-ended"
    DEVICE_FAILED = "device-failed"
    DEVICE_REFUSED = "device-refused"
    INTERNAL_ERROR = "internal-error"
    RESUMED_AFTER_STOP = "resumed-after-stop"
    SOURCE_ENDED = "source-ended"
    TRACE_ENDED = "trace-ended"


class Phase(StrEnum):
    """A phase of one role: the source's first, then the destination's; both have `postcopy`."""

    SETUP = "setup"
    PRECOPY = "precopy"
    STOP = "stop"
    FINAL_SYNC = "final-sync"
    DEVICE_SAVE = "device-save"
    HANDOVER = "handover"
    POSTCOPY = "postcopy"
    CLEANUP = "cleanup"
    INCOMING = "incoming"
    DEVICE_LOAD = "device-load"
    RESUME = "resume"
    RUNNING = "running"


CHANNEL_KINDS = frozenset(("tcp", "unix", "socket", "pipe", "file", "unknown"))

DmaSource = Literal["none", "guest", "device", "iommu", "untracked"]
"""Who reports the pages that devices wrote. none: there is no device; guest: its driver writes to them itself, as in a
mailbox-assisted migration; device: the device's own DMA logging; iommu: an IOMMU driver or a container; untracked: the
VMM asked nobody, so it has to send all memory that devices may write while the guest stands still."""

NotCounted = Literal["too-large", "size-unknown", "unreadable", "records-missing"]
"""The bitmap is longer than bpf/bitmap.h walks in one call; the slot was made before the trace began; the bitmap
was not in memory; parts of it did not arrive."""


@dataclass(frozen=True, slots=True)
class Vm:
    """A process with a KVM VM fd. `key` is the UUID, else `pid-N`."""

    key: str
    pid: int
    uuid: str | None
    name: str | None
    vmm: str | None
    started_at_ns: int | None
    running: bool | None
    """Whether its vCPUs run; None if not known."""
    devices: tuple["VmDevice", ...] = ()
    placement: "Placement" = field(default_factory=lambda: Placement())


@dataclass(frozen=True, slots=True)
class Loss:
    """What is missing of a VM, by why.

    `records`: the ring buffer had no room for them, or the VM had used up its share. `bitmap_parts`: the same of parts
    of dirty bitmaps, or the reader dropped them because it held too many; they only make numbers of pages unknown.
    `uncounted`: calls and sends for which a table of the kernel side had no room.
    """

    records: int = 0
    bitmap_parts: int = 0
    uncounted: int = 0

    def __bool__(self) -> bool:
        return bool(self.records or self.bitmap_parts or self.uncounted)

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(
            self.records + other.records,
            self.bitmap_parts + other.bitmap_parts,
            self.uncounted + other.uncounted,
        )

    def since(self, before: "Loss") -> "Loss":
        """Return what is missing more than before."""
        return Loss(
            max(0, self.records - before.records),
            max(0, self.bitmap_parts - before.bitmap_parts),
            max(0, self.uncounted - before.uncounted),
        )


@dataclass(frozen=True, slots=True)
class VmLoss:
    """What is missing of one VMM process since it was first seen; `key` as of `Vm`."""

    key: str
    pid: int
    first_seen_ns: int
    loss: Loss


@dataclass(frozen=True, slots=True)
class Placement:
    """A VM in the words of its orchestrator: KubeVirt's namespace, VirtualMachineInstance and pod, Proxmox VE's number;
    None where not known."""

    namespace: str | None = None
    vmi: str | None = None
    pod_uid: str | None = None
    vmid: str | None = None


@dataclass(frozen=True, slots=True)
class VmDevice:
    """A passed-through device of a VM, and its state; None where not seen."""

    address: str
    id: str | None
    driver: str | None
    state: str | None


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """A phase and when it was; `end_at_ns` None while it lasts."""

    name: Phase
    role: Role
    start_at_ns: int
    end_at_ns: int | None


@dataclass(frozen=True, slots=True)
class SlotRound:
    """One slot in one sweep."""

    slot: int
    new_pages: int | None
    logged_pages: int | None
    pages: int | None = None
    """Pages of the slot."""
    heat: tuple[int, ...] | None = None
    """New pages in each of up to 128 equal parts of the slot (`dirty.heat`)."""
    not_counted: NotCounted | None = None
    """Why `logged_pages` is None."""


@dataclass(frozen=True, slots=True)
class Round:
    """One sweep over all logged slots, and what was sent until the next."""

    at_ns: int
    duration_ns: int
    new_pages: int | None
    redirtied_pages: int | None
    logged_pages: int | None
    sent_bytes: int | None
    slots: tuple[SlotRound, ...]
    burst_bytes: int | None = None
    burst_ns: int | None = None
    """What was sent while the VMM did not hold itself back, and the time that took: their ratio is what the
    channel can carry. None in recordings that do not have it."""
    syncs: int = 1
    """How many dirty syncs this entry stands for: of very many, older ones are merged."""
    vfio_pages: int | None = None
    """Pages that devices reported with this sweep, as in `Dirty`; None where none did, or a part is not known."""
    iommu_pages: int | None = None


@dataclass(frozen=True, slots=True)
class Dirty:
    """Totals. `new_pages` sums the rounds after the first (dirty ring: all rounds), `distinct_pages` counts each
    page once; rates are in `figures`."""

    new_pages: int | None
    distinct_pages: int | None
    page_size: int
    kvm_pages: int | None
    ring: bool = False
    """Whether the VM uses dirty rings: each reset of them by the migration thread is a round."""
    counted_until_ns: int | None = None
    """Until when new pages are counted, where that is not the last round: other threads reset rings too."""
    vfio_pages: int | None = None
    """Pages that devices reported by their DMA logging, of the size each uses."""
    iommu_pages: int | None = None
    """Pages that a container or an iommufd reported."""
    dma: DmaSource | None = None
    """None where the source is not seen, or it is not known yet."""


@dataclass(frozen=True, slots=True)
class ChannelUse:
    """The migration channel: kind tcp, unix, pipe, file or unknown; `error` an errno name, first at `error_at_ns`.

    `state_bytes` are those of `bytes` sent after the state was read: vCPUs and devices. QEMU 7.2 leaves them
    out of its `transferred`, QEMU 10.0 counts them.
    """

    kind: str
    bytes: int | None
    state_bytes: int | None
    error: str | None
    error_at_ns: int | None = None
    peer: str | None = None
    """The address of the other end of a TCP channel, as the source's kernel has it: `192.0.2.7:49152`."""


@dataclass(frozen=True, slots=True)
class CheckpointTime:
    """One step of the blackout: when it was passed, and how long since the one before."""

    name: Checkpoint
    at_ns: int | None
    ns: int | None


@dataclass(frozen=True, slots=True)
class DeviceDowntime:
    """A device leaves RUNNING or is unplugged at `from_ns`; `ns` later its successor runs or is there."""

    address: str
    id: str | None
    from_ns: int | None
    ns: int | None


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A state of enum vfio_device_mig_state and when it was reached."""

    state: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A VMM's requests to map guest memory for a device, from the first to the end of the last; `took_ns` within
    them."""

    start_at_ns: int
    end_at_ns: int
    took_ns: int
    maps: int


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """A device that transfers its state: its states during the migration, and the bytes saved or loaded.

    `address` is a PCI address or a mediated device's UUID, `id` QEMU's, `state_ns` the time in each state.
    """

    address: str
    id: str | None
    role: Role
    driver: str | None
    peer_address: str | None
    states: tuple[DeviceState, ...]
    state_ns: tuple[tuple[str, int], ...]
    bytes: int | None
    mapping: Mapping | None = None
    iommu_tracks: bool | None = None
    """Whether its iommufd's page table can mark the pages that it writes; None without an iommufd, or if unseen."""


@dataclass(frozen=True, slots=True)
class VfPhase:
    """What a virtual function was: unplugged or reset, absent, probing, configuring, ready."""

    name: str
    start_at_ns: int
    end_at_ns: int | None


@dataclass(frozen=True, slots=True)
class VfUse:
    """A virtual function around a migration: number `vf` of the card `pf`, of the VM's source or destination."""

    pf: str
    vf: int
    address: str | None
    role: Role
    phases: tuple[VfPhase, ...]
    mapping_at_ns: int | None = None
    """When the VMM began to map the guest's memory for it: while it does its main loop stands still."""
    mapped_at_ns: int | None = None
    """When that was done, where it followed the VF's opening: a container maps before, an iommufd after."""


@dataclass(frozen=True, slots=True)
class Downtime:
    """`vcpu_ns` is the sum of the checkpoints' `ns`; `set_by` names the largest.

    `devices` has each device's own, `slowest_device` the address of the one that was away longest.
    """

    vcpu_ns: int | None
    set_by: Checkpoint | None
    checkpoints: tuple[CheckpointTime, ...]
    devices: tuple[DeviceDowntime, ...] = ()

    @property
    def times(self) -> dict[Checkpoint, int]:
        """When each checkpoint was passed, by name; those that were not are left out."""
        return {c.name: c.at_ns for c in self.checkpoints if c.at_ns is not None}

    @property
    def slowest_device(self) -> str | None:
        """The address of the device with the longest downtime; None if no time is known."""
        timed = [device for device in self.devices if device.ns is not None]
        return max(timed, key=lambda device: device.ns or 0).address if timed else None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on."""

    event: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class StrategyCost:
    """One way to do it. Times in ns, None where not known.

    `total_ns` from the migration's beginning; `downtime_ns` that of the vCPUs; `device_ns` how long the guest is
    without its VF, as far as the migration sets it: the drivers' own unplugging and probing come on top.
    """

    strategy: str
    converges: bool | None
    total_ns: int | None
    downtime_ns: int | None
    device_ns: int | None


LimitFrom = Literal["default", "given", "rounds"]
"""Where the downtime limit of a forecast is from: it is QEMU's default; whoever asked gave it; the rounds refute the
default, and imply this one: while the guest runs they show that the limit is below it."""

Undecided = Literal["downtime-limit", "dirty-rate"]
"""What decides whether precopy converges and is not known well enough: the limit lies between bounds of which one
converges and the other does not; the guest dirties memory more and more slowly."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Made from the first `after_sweeps` sweeps. None: not known (yet).

    `rounds_left` are sweeps still to come while the guest runs; `total_ns` counts from the migration's beginning,
    and is None where precopy does not converge. `limit_assumed`: the downtime limit is QEMU's default.
    `undecided`: why `converges` is None although the rounds are known.
    """

    after_sweeps: int
    at_ns: int
    converges: bool | None
    rounds_left: int | None
    total_ns: int | None
    downtime_ns: int | None
    remaining_bytes: int | None
    bandwidth_bytes_per_second: float | None
    link_bytes_per_second: float | None
    downtime_limit_ns: int
    limit_assumed: bool
    limit_from: LimitFrom
    undecided: Undecided | None
    strategies: tuple[StrategyCost, ...]


@dataclass(frozen=True, slots=True)
class Save:
    """Where a save goes, or a load comes from: channel file, pipe, snapshot or unknown.

    `path` is the file's, or the name of the snapshot inside the VM's own images; `program` holds the other end of
    a pipe.
    """

    channel: str
    path: str | None
    program: str | None


@dataclass(frozen=True, slots=True)
class Migration:
    """One attempt. `pid` is the source's, `peer_pid` the destination's, where both are seen."""

    key: str
    attempt: int
    pid: int
    peer_pid: int | None
    uuid: str | None
    name: str | None
    role: Role
    strategy: Strategy
    strategy_evidence: tuple[Evidence, ...]
    outcome: Outcome | None
    """None while it runs."""
    cause: Cause | None
    was_paused: bool | None
    postcopy: bool
    incomplete: bool
    missed_beginning: bool
    """vftrace started in the middle of it."""
    started_at_ns: int
    ended_at_ns: int | None
    phases: tuple[PhaseSpan, ...]
    rounds: tuple[Round, ...]
    dirty: Dirty
    channel: ChannelUse
    downtime: Downtime
    stopped_at_ns: int | None
    """Latest vCPU exit of the blackout that lasts or has been."""
    forecast: Forecast | None = None
    cause_detail: str | None = None
    """The cause in words: `vf0: RESUMING refused, -22`."""
    devices: tuple[DeviceUse, ...] = ()
    vfs: tuple[VfUse, ...] = ()
    guest_clock_ns: int | None = None
    """The guest's kvmclock as the source read it last and the destination set it: both know the attempt by it."""
    stopped_before: tuple[int, int] | None = None
    """The last vCPU exit and the clock read of a stop shortly before the migration of a paused guest, which may have
    been made for it: whether it was depends on how soon the destination runs."""
    contested: bool = False
    """Another VM with the same UUID may have been the destination, or this one only claims to be it."""
    kind: Kind = Kind.MOVE
    save: Save | None = None
    """What a save is written to, or a load read from."""
    throttled: bool = False
    """The VMM kept the vCPUs out of the guest for a good part of the time when it stopped them (auto-converge)."""
    vcpu_pause_ns: int | None = None
    """The longest time that a vCPU stayed out of the guest before the stop: a throttled one sleeps so long."""
    calls: BlackoutCalls | None = None
    """What the VMMs' threads did in the blackout; None where that was not traced at all."""
    brownout: Brownout | None = None
    """How slow the guest was while it ran; None where its vCPUs were not followed."""
    awaits_device: bool = False
    """A device left before it began, and none has come for it yet: whether this is an unplug is still open."""
    internal_error: str | None = None
    """Where vftrace itself failed on it (`faults.place_of`): figures are missing or may be wrong."""
    loss: Loss = Loss()
    """What is missing of its VM while it went on, of both sides where both are seen."""


def bare_migration(
    *,
    key: str,
    attempt: int,
    pid: int,
    peer_pid: int | None,
    uuid: str | None,
    name: str | None,
    role: Role,
    outcome: Outcome | None,
    cause: Cause | None,
    started_at_ns: int,
    ended_at_ns: int | None,
    page_size: int,
    internal_error: str,
) -> Migration:
    """A migration on which vftrace failed: who and when, without any figure."""
    return Migration(
        key=key,
        attempt=attempt,
        pid=pid,
        peer_pid=peer_pid,
        uuid=uuid,
        name=name,
        role=role,
        strategy=Strategy.PLAIN,
        strategy_evidence=(),
        outcome=outcome,
        cause=cause,
        was_paused=None,
        postcopy=False,
        incomplete=True,
        missed_beginning=False,
        started_at_ns=started_at_ns,
        ended_at_ns=ended_at_ns,
        phases=(),
        rounds=(),
        dirty=Dirty(None, None, page_size, None),
        channel=ChannelUse("unknown", None, None, None),
        downtime=Downtime(
            None, None, tuple(CheckpointTime(name, None, None) for name in Checkpoint)
        ),
        stopped_at_ns=None,
        internal_error=internal_error,
    )


def without_figures(migration: Migration, internal_error: str) -> Migration:
    """The same migration for an output that failed on it."""
    return bare_migration(
        key=migration.key,
        attempt=migration.attempt,
        pid=migration.pid,
        peer_pid=migration.peer_pid,
        uuid=migration.uuid,
        name=migration.name,
        role=migration.role,
        outcome=migration.outcome,
        cause=migration.cause,
        started_at_ns=migration.started_at_ns,
        ended_at_ns=migration.ended_at_ns,
        page_size=migration.dirty.page_size,
        internal_error=internal_error,
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything known at `at_ns`, the time of the newest event."""

    at_ns: int
    vms: tuple[Vm, ...]
    migrations: tuple[Migration, ...]
    events: int
    lost: int
    unknown_records: int
    clock: tuple[tuple[int, int, int], ...]
    """(at_ns, realtime_offset_ns, error_ns) of the clock samples that differ."""
    vfs: tuple[VfHistory, ...] = ()
    """Virtual functions, by their mailboxes."""
    transitions: tuple[tuple[str, str, str, int], ...] = ()
    """How often each passed-through device, gone ones too, went from one state to another."""
    vfs_incomplete: bool = False
    """Records of mailboxes are missing."""
    network: tuple[NetAddress | NetLink, ...] = ()
    """What changed of the host's interfaces and bridges, the latest."""
    network_missed: int = 0
    stalls: tuple[tuple[int, int], ...] = ()
    """From when to when the collector, which marks time every 100 ms, was not run: the host was too busy."""
    tables_full: tuple[tuple[str, int], ...] = ()
    """By table of the kernel side: how often it had no room for an entry."""
    losses: tuple[VmLoss, ...] = ()
    """VMs of which something is missing, the one that lost most first."""
