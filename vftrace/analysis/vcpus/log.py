# SPDX-License-Identifier: MIT
"""Keeps the samples of one process's vCPUs: totals that only grow, with interpolation between two samples."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

from vftrace import events
from vftrace.model.brownout import STATES, FaultWaits, HeldStop, VcpuSpan, VcpuState

VcpuEvent = events.VcpuTime | events.VcpuBaseline

MAX_SAMPLES = 16_384
"""How many samples are kept of one process; if there are more, every other one is dropped."""
MAX_THREADS = 4096
MAX_NS = 1 << 62
"""The largest total of a valid sample."""

_FIELDS = tuple("ring_ns" if state == VcpuState.RING_FULL else f"{state}_ns" for state in STATES)
_NO_NUMBER = 0xFFFF_FFFF
_HELD = {
    events.VcpuTime.THROTTLE: VcpuState.THROTTLE,
    events.VcpuTime.LIMIT: VcpuState.LIMIT,
}

Times = tuple[int, ...]


class VcpuSamples(msgspec.Struct):
    """The samples of one thread: when, and its totals since it was first followed."""

    number: int | None = None
    begun_ns: int = -1
    at_ns: list[int] = msgspec.field(default_factory=list)
    times: list[Times] = msgspec.field(default_factory=list)
    base: Times = (0,) * len(STATES)
    """The totals when it was followed anew: the kernel side counts from zero then."""
    first: events.VcpuTime | None = None
    last: events.VcpuTime | None = None
    holds: list[HeldStop] = msgspec.field(default_factory=list)
    """The latest times that the VMM held the thread, as the samples show them."""

    def feed(self, event: events.VcpuTime) -> None:
        """Take a sample; one that is older than the last, or makes no sense, is ignored."""
        times = tuple(getattr(event, name) for name in _FIELDS)
        if event.until_ns > MAX_NS or max(times) > MAX_NS:
            return
        if self.at_ns and event.until_ns <= self.at_ns[-1]:
            return
        if event.begun_ns != self.begun_ns:
            self.begun_ns = event.begun_ns
            self.base = self.times[-1] if self.times else (0,) * len(STATES)
            self.first = None
            if event.begun_ns < event.until_ns and (
                not self.at_ns or event.begun_ns > self.at_ns[-1]
            ):
                self.at_ns.append(event.begun_ns)
                self.times.append(self.base)
        total = tuple(a + b for a, b in zip(self.base, times, strict=True))
        if self._contradicts(total) and sum(times) == event.until_ns - event.begun_ns:
            # The last sample counted a state for longer than it lasted, as older recordings do now and then.
            self.at_ns.pop()
            self.times.pop()
        if self._contradicts(total):
            return
        self.number = None if event.vcpu == _NO_NUMBER else event.vcpu
        self.at_ns.append(event.until_ns)
        self.times.append(total)
        self.first = self.first or event
        self.last = event
        self._hold(event)

    def _contradicts(self, total: Times) -> bool:
        """Whether the last sample has more of a state than `total`, which is later."""
        return bool(self.times) and any(a < b for a, b in zip(total, self.times[-1], strict=True))

    def between(self, start_ns: int, end_ns: int) -> VcpuSpan:
        """Return the thread's time by state between two times, as far as it was followed."""
        return self.pieces((start_ns, end_ns))[0]

    def pieces(self, edges: Sequence[int]) -> list[VcpuSpan]:
        """Return `between` each edge and the next, which is cheaper for all of them at once."""
        totals = [self._at(edge) for edge in edges]
        return [
            VcpuSpan(start, end, tuple([b - a if b > a else 0 for a, b in zip(*both, strict=True)]))
            for (start, end), both in zip(pairwise(edges), pairwise(totals), strict=True)
        ]

    @property
    def waits(self) -> FaultWaits:
        """Return the page faults in which the thread slept."""
        last = self.last
        if last is None:
            return FaultWaits(0, 0, 0, ())
        return FaultWaits(last.waits, last.wait_ns, last.longest_wait_ns, last.wait)

    def thin(self) -> None:
        """Drop every other sample, except the last."""
        self.at_ns = [*self.at_ns[:-1:2], self.at_ns[-1]]
        self.times = [*self.times[:-1:2], self.times[-1]]

    def _hold(self, event: events.VcpuTime) -> None:
        by = _HELD.get(event.held_state)
        if by is None or not event.held_from_ns:
            return
        until = event.held_until_ns or event.until_ns
        hold = HeldStop(by, event.thread, event.held_from_ns, max(until, event.held_from_ns))
        if self.holds and self.holds[-1].from_ns == hold.from_ns:
            self.holds[-1] = hold
        else:
            self.holds.append(hold)
            del self.holds[:-64]

    def _at(self, at_ns: int) -> Times:
        """The totals at a time: those of the samples around it, in proportion."""
        if not self.at_ns:
            return self.base
        index = bisect_left(self.at_ns, at_ns)
        if index == 0:
            return self.times[0]
        if index == len(self.at_ns):
            return self.times[-1]
        before, after = self.at_ns[index - 1], self.at_ns[index]
        part, whole = at_ns - before, after - before
        pairs = zip(self.times[index - 1], self.times[index], strict=True)
        return tuple([a + (b - a) * part // whole if b != a else a for a, b in pairs])


class VcpuLog(msgspec.Struct):
    """Fed with what the collector wrote of one process's vCPUs. `version` changes with everything that comes."""

    version: int = 0
    vcpus: dict[int, VcpuSamples] = msgspec.field(default_factory=dict)
    """By thread."""
    baselines: dict[int, events.VcpuBaseline] = msgspec.field(default_factory=dict)
    made: tuple[object, Any] | None = None
    """The latest result, with the state of the logs that it was made of."""
    _samples: int = 0

    def feed(self, event: VcpuEvent) -> None:
        """Take an event."""
        if event.thread not in self.vcpus and len(self.vcpus) >= MAX_THREADS:
            return
        self.version += 1
        if isinstance(event, events.VcpuBaseline):
            self.baselines[event.thread] = event
            return
        samples = self.vcpus.setdefault(event.thread, VcpuSamples())
        samples.feed(event)
        self._samples += 1
        if self._samples > MAX_SAMPLES:
            for each in self.vcpus.values():
                if each.at_ns:
                    each.thin()
            self._samples = sum(len(each.at_ns) for each in self.vcpus.values())
