# SPDX-License-Identifier: MIT
"""Bounds the downtime limit, which cannot be seen from outside, by QEMU's behaviour.

QEMU sweeps when the unsent bytes are below `threshold` = bandwidth x downtime limit, and begins another round if the
unsent bytes after the sweep exceed it (migration/migration.c, migration_iteration_run). So each further round shows
that the threshold is below the bytes that were left after its sweep. Each sweep shows that the threshold is above the
bytes that were left before it, and below those that were left one window earlier.
"""

import math

import msgspec

from vftrace.analysis.forecast.channel import PAGE_ON_WIRE, WINDOW_NS, Channel
from vftrace.analysis.forecast.history import History, Step
from vftrace.analysis.forecast.working_set import RECENT
from vftrace.uapi import PAGE_SIZE

DOWNTIME_LIMIT_NS = 300_000_000
"""QEMU's default (migration/options.c, downtime-limit)."""

_SLOW = 0.8
"""A round this much slower than the others was disturbed. QEMU, which knows only the last window's speed, may have
continued for that reason."""

_IRREGULAR = 1.25
"""A window may send this much more than its quota."""

_MORE = 1.05
"""A guest that does the same in each round dirties a few pages more or less."""

_SLOWER = 1.1
"""A guest that is this much slower than before is throttled, or does something else."""


class Bounds(msgspec.Struct, frozen=True):
    """The bounds of the threshold in bytes; `high` is infinite if no round bounds it."""

    low: float = 0.0
    high: float = math.inf

    @property
    def middle(self) -> float:
        """Return the threshold in the middle of finite bounds."""
        return max(1.0, (min(self.low, self.high) + self.high) / 2)

    def recorded(self, threshold: float, sent_at_stop: float) -> float:
        """Return the threshold of a recorded migration: this one, unless the rounds or the stop refute it. QEMU stopped
        the guest when `sent_at_stop` bytes were left."""
        if threshold > self.high:
            return max(self.middle, sent_at_stop)
        return max(threshold, sent_at_stop)


def threshold_bounds(history: History, channel: Channel) -> Bounds:
    """Return the bounds that the rounds give."""
    return Bounds(_low(history) * PAGE_SIZE, _high(history, channel) * PAGE_SIZE)


def _low(history: History) -> float:
    """Return the pages that had not been sent at a sweep.

    A round cannot send more than was unsent before it and what its sweep found; nor can several.
    """
    low = unsent = 0.0
    for step in reversed(history.later):
        if step.began_with is None:
            unsent = 0.0
            continue
        sent = step.sent_bytes / PAGE_ON_WIRE
        low = max(low, step.began_with - sent)
        unsent = max(0.0, unsent + sent - step.began_with)
        low = max(low, unsent)
    return low


def _high(history: History, channel: Channel) -> float:
    """Return the fewest pages that exceeded the limit: those left after a sweep that another round followed, and those
    left one window before a sweep.

    After a sweep there are the pages it found, and of those that had not been sent at most those that did not become
    dirty again: pages dirtied before, and in the beginning the rest of the first round.
    """
    high = unsent = math.inf
    if history.first is None:
        return high
    window = _IRREGULAR * channel.quota / PAGE_ON_WIRE
    fresh = _never_sent(history, channel)
    distinct = 0 if history.whole else None
    for before, step in zip(history.steps, history.later, strict=False):
        found = step.began_with
        again = before.redirtied_pages
        if found is None or again is None:
            unsent, distinct = math.inf, None
            continue
        not_again = math.inf if distinct is None else max(0, distinct - again) + fresh
        distinct = found if distinct is None else max(found, distinct + found - again)
        left = found + min(unsent, not_again)
        sent = step.sent_bytes / PAGE_ON_WIRE
        fresh = max(0.0, fresh - sent)
        if sent > left + window:
            # The channel carried more than pages: the unsent bytes are not known.
            unsent = math.inf
            continue
        unsent = max(0.0, left - sent)
        if step.ns < WINDOW_NS / 2 or step.sent_bytes * 1e9 / step.ns >= _SLOW * channel.rate:
            high = min(high, left, unsent + window)
    return high


def _never_sent(history: History, channel: Channel) -> float:
    """Return the pages that the first round may have left: as many as the default limit allows."""
    if not history.whole:
        return 0.0
    left = channel.bytes_in(DOWNTIME_LIMIT_NS) / PAGE_SIZE
    if history.memory_pages is None:
        return left
    return min(left, max(0.0, history.memory_pages - history.sent_first / PAGE_ON_WIRE))


def falls(history: History) -> bool:
    """Whether the unsent bytes decrease from sweep to sweep, so that QEMU may stop although it did not stop before.

    They certainly do if the last two rounds sent more than their sweeps found, and may if the latest sweep found
    clearly fewer pages than each of those before it.
    """
    latest = history.later[-2:]
    if all(step.new_pages is not None for step in latest):
        sent = sum(step.sent_bytes for step in latest) / PAGE_ON_WIRE
        if len(latest) == 2 and sent > _MORE * sum(step.new_pages or 0 for step in latest):
            return True
    found = [step.new_pages for step in history.steps[-RECENT:]]
    known = [pages for pages in found if pages is not None]
    return len(known) > 1 and known[-1] * _MORE < min(known[:-1])


def slows(history: History) -> bool:
    """Whether the guest dirties memory more slowly than it did: all latest rounds found fewer pages for their time than
    all of the oldest ones known, although they are no longer.

    auto-converge does that (QEMU migration/ram.c, mig_throttle_guest_down), and continues until precopy converges.
    """
    steps = [step for step in history.later if step.new_pages is not None]
    old, new = steps[:RECENT], steps[-RECENT:]
    if len(steps) < 2 * RECENT or sum(s.ns for s in new) > _MORE * sum(s.ns for s in old):
        return False
    return max(_rate(s) for s in new) * _SLOWER < min(_rate(s) for s in old)


def _rate(step: Step) -> float:
    return (step.new_pages or 0) / step.ns
