"""What the tracker says: immutable, ready for any output. Times are CLOCK_BOOTTIME nanoseconds,
None where they are not known."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["source", "destination", "stitched"]
Outcome = Literal["completed", "cancelled", "failed", "unknown"]
Strategy = Literal["plain", "vfio", "unplug", "late-unplug", "failover", "mailbox"]
Cause = Literal[
    "cancelled",
    "channel-error",
    "destination-ended",
    "resumed-after-stop",
    "source-ended",
    "trace-ended",
]

CHECKPOINTS = (
    "vcpus-stopped",
    "devices-stopped",
    "clock-read",
    "final-sync-done",
    "state-saved",
    "devices-loaded",
    "held",
    "clock-set",
    "vcpus-running",
)
"""In the order in which QEMU passes them. `held` ends when somebody said `cont`: kvmclock is set only then
(QEMU hw/i386/kvm/clock.c, kvmclock_vm_state_change), so it stands before `clock-set`."""


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


@dataclass(frozen=True, slots=True)
class Phase:
    """An interval of one role; `end_at_ns` None while it lasts."""

    name: str
    role: str
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


@dataclass(frozen=True, slots=True)
class Dirty:
    """Totals. `new_pages` sums the rounds after the first (dirty ring: all rounds), `distinct_pages` counts each
    page once."""

    new_pages: int | None
    distinct_pages: int | None
    rate_bytes_per_second: float | None
    page_size: int
    kvm_pages: int | None


@dataclass(frozen=True, slots=True)
class ChannelUse:
    """The migration channel: kind tcp, unix, pipe, file or unknown; `error` an errno name.

    `state_bytes` are those of `bytes` sent after the state was read: vCPUs and devices. QEMU 7.2 leaves them
    out of its `transferred`, QEMU 10.0 counts them.
    """

    kind: str
    bytes: int | None
    state_bytes: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One step of the blackout: when it was passed, and how long since the one before."""

    name: str
    at_ns: int | None
    ns: int | None


@dataclass(frozen=True, slots=True)
class Downtime:
    """`vcpu_ns` is the sum of the checkpoints' `ns`; `set_by` names the largest."""

    vcpu_ns: int | None
    set_by: str | None
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on."""

    event: str
    at_ns: int


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
    phases: tuple[Phase, ...]
    rounds: tuple[Round, ...]
    dirty: Dirty
    channel: ChannelUse
    downtime: Downtime
    stopped_at_ns: int | None
    """Latest vCPU exit of the blackout that lasts or has been."""


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
