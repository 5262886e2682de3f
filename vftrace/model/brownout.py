# SPDX-License-Identifier: MIT
"""The brownout: how much slower a guest ran while it migrated, and the states of its vCPUs.

Times are CLOCK_BOOTTIME nanoseconds on the clock of the migration. Speeds and shares are parts of one.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum

import msgspec

from vftrace.model.calls import CallSide


class VcpuState(StrEnum):
    """The state of a vCPU. `guest`: in the guest. `idle`: the guest halted it. `exit`: KVM handles an exit, or
    emulates.

    `fault`: a page fault or dirty logging, with the wait for the page in postcopy. `user`: the VMM's own code, for an
    exit to it. `queue`: it waits for a CPU. `throttle`: held by auto-converge. `limit`: held by the dirty limit.
    `ring-full`: its dirty ring is emptied. `stopped`: it waits until the VMM runs it, or for a lock of the VMM.
    """

    GUEST = "guest"
    IDLE = "idle"
    FAULT = "fault"
    EXIT = "exit"
    USER = "user"
    QUEUE = "queue"
    THROTTLE = "throttle"
    LIMIT = "limit"
    RING_FULL = "ring-full"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


STATES = tuple(VcpuState)
COULD_RUN = frozenset({VcpuState.GUEST, VcpuState.IDLE, VcpuState.EXIT})
"""States in which the guest runs or is idle."""
HOLDS = (VcpuState.THROTTLE, VcpuState.LIMIT, VcpuState.RING_FULL)
"""States in which the VMM holds a vCPU because of the migration."""
HELD_BY = {
    VcpuState.THROTTLE: "auto-converge",
    VcpuState.LIMIT: "the dirty limit",
    VcpuState.RING_FULL: "full dirty rings",
}

_COULD_RUN_AT = tuple(at for at, state in enumerate(STATES) if state in COULD_RUN)


class VcpuSpan(msgspec.Struct, frozen=True):
    """A time span, and how long vCPUs were in each state in it, in the order of `STATES`."""

    start_ns: int
    end_ns: int
    ns: tuple[int, ...]

    @property
    def total_ns(self) -> int:
        """The accounted time of the vCPUs: the span's length times their number."""
        return sum(self.ns)

    def of(self, state: VcpuState) -> int:
        """Return how long the vCPUs were in a state."""
        return self.ns[STATES.index(state)]

    def share(self, state: VcpuState) -> float:
        """Return the part of the time that the vCPUs were in a state."""
        return self.of(state) / self.total_ns if self.total_ns else 0.0

    @property
    def could_run(self) -> float | None:
        """The part of the time in which the guest could run; None if no time is accounted for."""
        total = self.total_ns
        return sum(self.ns[at] for at in _COULD_RUN_AT) / total if total else None


def added(spans: Iterable[VcpuSpan]) -> VcpuSpan:
    """Return the sum of several spans, of several vCPUs or consecutive."""
    found = list(spans)
    if len(found) == 1:
        return found[0]
    columns = zip(*[span.ns for span in found], strict=True)
    return VcpuSpan(
        min([span.start_ns for span in found]),
        max([span.end_ns for span in found]),
        tuple(map(sum, columns)),
    )


class FaultWaits(msgspec.Struct, frozen=True):
    """Page faults in which a vCPU slept: entry i of `buckets` counts those shorter than 2**i us."""

    count: int
    ns: int
    longest_ns: int
    buckets: tuple[int, ...]

    def quantile_ns(self, part: float) -> int | None:
        """Return a bound that this part of the waits did not reach; None without waits."""
        seen = 0
        for at, count in enumerate(self.buckets):
            seen += count
            if count and seen >= part * self.count:
                return min(1000 << at, self.longest_ns)
        return None


def all_waits(waits: Iterable[FaultWaits]) -> FaultWaits:
    """Return the waits of several vCPUs."""
    found = list(waits)
    return FaultWaits(
        sum(each.count for each in found),
        sum(each.ns for each in found),
        max((each.longest_ns for each in found), default=0),
        tuple(sum(column) for column in zip(*(each.buckets for each in found), strict=True)),
    )


class VcpuUse(msgspec.Struct, frozen=True):
    """One vCPU on one side: its thread, its number if that is known, and its time while the guest ran.

    `spans` are pieces of it for drawings, empty if there are too many vCPUs.
    """

    side: CallSide
    thread: int
    number: int | None
    total: VcpuSpan
    spans: tuple[VcpuSpan, ...]
    exits: int
    faults: int
    ring_full: int
    waits: FaultWaits


class Baseline(msgspec.Struct, frozen=True):
    """The VM before it migrated, by /proc: the part of the time in which the guest could run, and the states of the
    rest."""

    from_ns: int
    until_ns: int
    could_run: float
    queue: float
    user: float


class VmSpan(msgspec.Struct, frozen=True):
    """A piece of the time line: all vCPUs of one side, and the guest's speed relative to before."""

    side: CallSide
    vcpus: VcpuSpan
    speed: float | None


class Hold(msgspec.Struct, frozen=True):
    """The VMM held the vCPUs: by which means, since when and which round (the first is 1), and for which part of the
    time from then on."""

    by: VcpuState
    since_ns: int
    round: int | None
    share: float

    @property
    def words(self) -> str:
        """`auto-converge held the vCPUs 99 % of the time from round 4 on`."""
        since = "" if self.round is None else f" from round {self.round} on"
        return f"{HELD_BY[self.by]} held the vCPUs {self.share * 100:.0f} % of the time{since}"


class HeldStop(msgspec.Struct, frozen=True):
    """The VMM held the vCPUs when it stopped the guest: the blackout began with the hold, and not with the stop."""

    by: VcpuState
    thread: int
    from_ns: int
    until_ns: int

    @property
    def ns(self) -> int:
        """How long the VMM had held the guest."""
        return self.until_ns - self.from_ns


class Brownout(msgspec.Struct, frozen=True):
    """The brownout of one migration, without the blackout.

    `speed` is over the whole time that the guest ran while it migrated, `rounds` by round (None: the round was too
    short). For `slow_ns` of that time the guest was slower than SLOW, at `slow_least` to `slow_most`.
    """

    baseline: Baseline | None
    timeline: tuple[VmSpan, ...]
    vcpus: tuple[VcpuUse, ...]
    rounds: tuple[float | None, ...]
    speed: float | None
    slow_ns: int
    slow_least: float | None
    slow_most: float | None
    holds: tuple[Hold, ...]
    stop: HeldStop | None

    @property
    def waits(self) -> FaultWaits | None:
        """The waits for pages of all vCPUs; None without waits."""
        found = all_waits(use.waits for use in self.vcpus) if self.vcpus else None
        return found if found is not None and found.count else None

    @property
    def total(self) -> VcpuSpan | None:
        """The time of all vCPUs by state."""
        return added(use.total for use in self.vcpus) if self.vcpus else None


RECENT_NS = 2_000_000_000
"""The least time over which a speed is computed: a guest at 1 % runs for 10 ms in a second, so the speed over less time
varies too much."""

SLOW = 0.9
"""Below this part of its speed before, a guest counts as slow."""


def lost_to(total: VcpuSpan, least: float = 0.01) -> Iterator[tuple[VcpuState, float]]:
    """Yield what kept the guest from running, the largest first, with its part of the time."""
    shares = [(state, total.share(state)) for state in STATES if state not in COULD_RUN]
    yield from sorted((each for each in shares if each[1] >= least), key=lambda each: -each[1])
