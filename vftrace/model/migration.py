# SPDX-License-Identifier: MIT
"""The results of the tracker: immutable, ready for any output. Times are CLOCK_BOOTTIME nanoseconds, None if they are
not known."""

from enum import StrEnum
from typing import Literal

import msgspec

from vftrace.events import NetAddress, NetLink
from vftrace.model.brownout import Brownout
from vftrace.model.calls import BlackoutCalls
from vftrace.model.checkpoint import Checkpoint as Checkpoint
from vftrace.model.vf import VfHistory


class Role(StrEnum):
    """The side of a migration that was seen; `stitched`: both sides, joined to one migration."""

    SOURCE = "source"
    DESTINATION = "destination"
    STITCHED = "stitched"


class Kind(StrEnum):
    """What the VMM did: a move to another process, or a save to a file and a load from one."""

    MOVE = "move"
    SAVE = "save"
    LOAD = "load"


class Outcome(StrEnum):
    """How a migration ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Strategy(StrEnum):
    """How the passed-through devices of a VM migrated (docs/reference/devices.md)."""

    PLAIN = "plain"
    VFIO = "vfio"
    UNPLUG = "unplug"
    LATE_UNPLUG = "late-unplug"
    FAILOVER = "failover"
    MAILBOX = "mailbox"


class Cause(StrEnum):
    """Why a migration did not complete, or why its end is not known."""

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
"""Who reports the pages that devices wrote. none: the VM has no device. guest: the guest's driver writes to the pages
itself, as in a mailbox-assisted migration. device: the device's own DMA logging. iommu: an IOMMU driver or a container.
untracked: the VMM requested no log, so it has to send all memory that devices may write while the guest is stopped."""

NotCounted = Literal["too-large", "size-unknown", "unreadable", "records-missing"]
"""Why pages were not counted: the bitmap is longer than bpf/bitmap.h walks in one call; the slot was made before the
trace began; the bitmap was not in memory; parts of it did not arrive."""


class Vm(msgspec.Struct, frozen=True):
    """A process with a KVM VM fd. `key` is the UUID, else `pid-N`."""

    key: str
    pid: int
    uuid: str | None
    name: str | None
    vmm: str | None
    started_at_ns: int | None
    running: bool | None
    """Whether the VM's vCPUs run; None if not known."""
    devices: tuple["VmDevice", ...] = ()
    placement: "Placement" = msgspec.field(default_factory=lambda: Placement())


class Loss(msgspec.Struct, frozen=True):
    """The losses of a VM, by reason.

    `records`: the ring buffer had no room for them, or the VM had used up its share. `bitmap_parts`: parts of dirty
    bitmaps, lost in the same way or dropped by the reader because it held too many; their loss only makes numbers of
    pages unknown. `uncounted`: calls and sends for which a table of the kernel side had no room, and sends whose
    return the kernel did not show.
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
        """Return the losses since an earlier state."""
        return Loss(
            max(0, self.records - before.records),
            max(0, self.bitmap_parts - before.bitmap_parts),
            max(0, self.uncounted - before.uncounted),
        )


class VmLoss(msgspec.Struct, frozen=True):
    """The losses of one VMM process since it was first seen; `key` as in `Vm`."""

    key: str
    pid: int
    first_seen_ns: int
    loss: Loss


class Placement(msgspec.Struct, frozen=True):
    """An orchestrator's names for a VM: KubeVirt's namespace, VirtualMachineInstance and pod, Proxmox VE's number;
    None where not known."""

    namespace: str | None = None
    vmi: str | None = None
    pod_uid: str | None = None
    vmid: str | None = None


class VmDevice(msgspec.Struct, frozen=True):
    """A passed-through device of a VM, and its state; None if not seen."""

    address: str
    id: str | None
    driver: str | None
    state: str | None


class PhaseSpan(msgspec.Struct, frozen=True):
    """A phase and its times; `end_at_ns` None while it lasts."""

    name: Phase
    role: Role
    start_at_ns: int
    end_at_ns: int | None


class SlotRound(msgspec.Struct, frozen=True):
    """The pages of one slot in one sweep."""

    slot: int
    new_pages: int | None
    logged_pages: int | None
    pages: int | None = None
    """The slot's size in pages."""
    heat: tuple[int, ...] | None = None
    """New pages in each of up to 128 equal parts of the slot (`dirty.heat`)."""
    not_counted: NotCounted | None = None
    """The reason if `logged_pages` is None."""


class Round(msgspec.Struct, frozen=True):
    """One sweep over all logged slots, and the bytes sent until the next sweep."""

    at_ns: int
    duration_ns: int
    new_pages: int | None
    redirtied_pages: int | None
    logged_pages: int | None
    sent_bytes: int | None
    slots: tuple[SlotRound, ...]
    burst_bytes: int | None = None
    burst_ns: int | None = None
    """The bytes sent while the VMM did not limit itself, and the time that took: their ratio is the bandwidth that the
    channel can carry. None in recordings without these figures."""
    syncs: int = 1
    """How many dirty syncs this entry stands for: the older ones of very many syncs are merged."""
    vfio_pages: int | None = None
    """Pages that devices reported with this sweep, as in `Dirty`; None if none reported, or if a part is not known."""
    iommu_pages: int | None = None


class Dirty(msgspec.Struct, frozen=True):
    """Totals of dirty pages. `new_pages` sums the rounds after the first (dirty ring: all rounds), `distinct_pages`
    counts each page once; rates are in `figures`."""

    new_pages: int | None
    distinct_pages: int | None
    page_size: int
    kvm_pages: int | None
    ring: bool = False
    """Whether the VM uses dirty rings: each reset of them by the migration thread is a round."""
    counted_until_ns: int | None = None
    """With dirty rings, the time up to which new pages are known; None: the last round."""
    vfio_pages: int | None = None
    """Pages that devices reported by their DMA logging, in each device's own page size."""
    iommu_pages: int | None = None
    """Pages that a container or an iommufd reported."""
    dma: DmaSource | None = None
    """None if the source is not seen, or if this is not known yet."""


class ChannelUse(msgspec.Struct, frozen=True):
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


class CheckpointTime(msgspec.Struct, frozen=True):
    """A checkpoint of the blackout: its time, and the time since the checkpoint before."""

    name: Checkpoint
    at_ns: int | None
    ns: int | None


class DeviceDowntime(msgspec.Struct, frozen=True):
    """The downtime of a device: it leaves RUNNING or is unplugged at `from_ns`; `ns` later its successor runs or is
    plugged."""

    address: str
    id: str | None
    from_ns: int | None
    ns: int | None


class DeviceState(msgspec.Struct, frozen=True):
    """A state of enum vfio_device_mig_state and the time at which the device reached it."""

    state: str
    at_ns: int


class Mapping(msgspec.Struct, frozen=True):
    """A VMM's requests to map guest memory for a device, from the first to the end of the last; `took_ns` is the time
    within the requests."""

    start_at_ns: int
    end_at_ns: int
    took_ns: int
    maps: int


class DeviceUse(msgspec.Struct, frozen=True):
    """A device with a transferable state: its states during the migration, and the bytes saved or loaded.

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
    """Whether its iommufd's page table can mark the pages that the device writes; None without an iommufd, or if not
    seen."""


class VfPhase(msgspec.Struct, frozen=True):
    """A phase of a virtual function: unplugged or reset, absent, probing, configuring, ready."""

    name: str
    start_at_ns: int
    end_at_ns: int | None


class VfUse(msgspec.Struct, frozen=True):
    """A virtual function around a migration: number `vf` of the card `pf`, of the VM's source or destination."""

    pf: str
    vf: int
    address: str | None
    role: Role
    phases: tuple[VfPhase, ...]
    mapping_at_ns: int | None = None
    """When the VMM began to map the guest's memory for it: meanwhile the VMM's main loop does not run."""
    mapped_at_ns: int | None = None
    """When the mapping ended, if it followed the VF's opening: a container maps before it, an iommufd after it."""


class Downtime(msgspec.Struct, frozen=True):
    """`vcpu_ns` is the sum of the checkpoints' `ns`; `set_by` names the largest.

    `devices` has each device's own, `slowest_device` the address of the one with the longest downtime.
    """

    vcpu_ns: int | None
    set_by: Checkpoint | None
    checkpoints: tuple[CheckpointTime, ...]
    devices: tuple[DeviceDowntime, ...] = ()

    @property
    def times(self) -> dict[Checkpoint, int]:
        """The time of each checkpoint that was passed, by name."""
        return {c.name: c.at_ns for c in self.checkpoints if c.at_ns is not None}

    @property
    def slowest_device(self) -> str | None:
        """The address of the device with the longest downtime; None if no time is known."""
        timed = [device for device in self.devices if device.ns is not None]
        return max(timed, key=lambda device: device.ns or 0).address if timed else None


class Evidence(msgspec.Struct, frozen=True):
    """An event that supports a verdict."""

    event: str
    at_ns: int


class StrategyCost(msgspec.Struct, frozen=True):
    """The forecast cost of one way to migrate. Times in ns, None if not known.

    `total_ns` counts from the migration's beginning; `downtime_ns` is the vCPUs'. `device_ns` is the time that the
    guest is without its VF because of the migration, without the drivers' own unplugging and probing.
    """

    strategy: str
    converges: bool | None
    total_ns: int | None
    downtime_ns: int | None
    device_ns: int | None


LimitFrom = Literal["default", "given", "rounds"]
"""The source of a forecast's downtime limit: QEMU's default; the user's `--what-if`; or the rounds, which refute the
default: that the guest still runs shows that the real limit is lower."""

Undecided = Literal["downtime-limit", "dirty-rate"]
"""The unknown that decides whether precopy converges: the limit, if precopy converges with its upper bound and not with
its lower one; or the guest, if it dirties memory more and more slowly."""


class Forecast(msgspec.Struct, frozen=True):
    """A forecast from the first `after_sweeps` sweeps. None: not known (yet).

    `rounds_left` are future sweeps while the guest runs. `total_ns` counts from the migration's beginning,
    and is None if precopy does not converge. `limit_assumed`: the downtime limit is QEMU's default.
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


class Save(msgspec.Struct, frozen=True):
    """The target of a save or the source of a load: channel file, pipe, snapshot or unknown.

    `path` is the file's path, or the name of the snapshot inside the VM's own images; `program` is at the other end
    of a pipe.
    """

    channel: str
    path: str | None
    program: str | None


class Migration(msgspec.Struct, frozen=True):
    """One attempt to migrate. If both sides are seen, `pid` is the source's and `peer_pid` the destination's."""

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
    """None while the migration runs."""
    cause: Cause | None
    was_paused: bool | None
    postcopy: bool
    incomplete: bool
    missed_beginning: bool
    """Whether vftrace started in the middle of the migration."""
    started_at_ns: int
    ended_at_ns: int | None
    phases: tuple[PhaseSpan, ...]
    rounds: tuple[Round, ...]
    dirty: Dirty
    channel: ChannelUse
    downtime: Downtime
    stopped_at_ns: int | None
    """The latest vCPU exit of the blackout, which may still last."""
    forecast: Forecast | None = None
    cause_detail: str | None = None
    """The cause in words: `vf0: RESUMING refused, -22`."""
    devices: tuple[DeviceUse, ...] = ()
    vfs: tuple[VfUse, ...] = ()
    guest_clock_ns: int | None = None
    """The guest's kvmclock that the source read last and the destination set: it identifies the attempt on both
    sides."""
    stopped_before: tuple[int, int] | None = None
    """The last vCPU exit and the clock read of a stop shortly before the migration of a paused guest. The stop may
    belong to the migration: that depends on how soon the destination runs."""
    contested: bool = False
    """Another VM with the same UUID may have been the destination, or this one only claims to be it."""
    kind: Kind = Kind.MOVE
    save: Save | None = None
    """The target of a save, or the source of a load."""
    throttled: bool = False
    """Whether the VMM held the vCPUs for a large part of the time when it stopped them (auto-converge)."""
    vcpu_pause_ns: int | None = None
    """The longest time that a vCPU was outside the guest before the stop: a throttled vCPU sleeps that long."""
    calls: BlackoutCalls | None = None
    """The calls of the VMMs' threads in the blackout; None if they were not traced."""
    brownout: Brownout | None = None
    """How slow the guest was while it ran; None if its vCPUs were not followed."""
    awaits_device: bool = False
    """Whether a device left before the migration began, and no other has replaced it yet: it may be an unplug."""
    internal_error: str | None = None
    """The place where vftrace itself failed on the migration (`faults.place_of`): figures are missing or may be
    wrong."""
    loss: Loss = Loss()
    """The losses of its VM during the migration, of both sides if both are seen."""
    missed_runs: tuple[tuple[str, int], ...] = ()
    """By probe: runs that the kernel skipped while it went on. Whose calls they would have seen is not known."""


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
    """Return a migration on which vftrace failed: its VM and its times, without figures."""
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
    """Return the same migration without figures, for an output that failed on it."""
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


class Snapshot(msgspec.Struct, frozen=True):
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
    """How often each passed-through device, removed ones included, changed from one state to another."""
    vfs_incomplete: bool = False
    """Whether records of mailboxes are missing."""
    network: tuple[NetAddress | NetLink, ...] = ()
    """The latest changes of the host's interfaces and bridges."""
    network_missed: int = 0
    stalls: tuple[tuple[int, int], ...] = ()
    """The times in which the collector, which writes a tick every 100 ms, did not run: the host was too busy."""
    tables_full: tuple[tuple[str, int], ...] = ()
    """For each table of the kernel side: how often it had no room for an entry."""
    untraced: tuple[tuple[int, int], ...] = ()
    """By user (uid): VMs that are not traced, because the table of VMs had no room for them."""
    losses: tuple[VmLoss, ...] = ()
    """The VMs with losses, the one that lost most first."""
    missed_runs: tuple[tuple[str, str, int], ...] = ()
    """By probe and reason (`events.MissedRuns`): runs of its programs that the kernel skipped."""
