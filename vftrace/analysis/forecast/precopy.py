"""What a migration that runs will come to, and what another way of doing it would cost.

The rounds to come are played as QEMU makes them (migration/migration.c, migration_iteration_run, and
migration/ram.c, ram_save_pending, 7.2; ram_state_pending_exact from 8.0 on): pages are sent until what is left
fits `threshold` = bandwidth x downtime limit; then a sweep adds what became dirty meanwhile; if that fits too,
the guest is stopped, else the next round begins. The last pages are sent as fast as the channel can.

Where nothing is known yet the answer is None. docs/forecast.md has the model and its measured error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from vftrace.analysis.forecast.working_set import Shape, WorkingSet, intervals
from vftrace.model.migration import Forecast, Round, StrategyCost
from vftrace.uapi import PAGE_SIZE

PAGE_ON_WIRE = PAGE_SIZE + 8
"""A page and its header (QEMU migration/ram.c, save_page_header)."""

DOWNTIME_LIMIT_NS = 300_000_000
"""QEMU's default (migration/options.c, downtime-limit); what is set cannot be seen from outside QEMU."""

FIXED_DOWNTIME_NS = 7_000_000
"""Of a blackout without pages to send: stop, final sync, save and load of vCPUs and devices, start. Measured on
one machine with plain QEMU devices; devices of your own add theirs."""

WINDOW_NS = 100_000_000
"""QEMU sends a tenth of a second's worth at once and then sleeps (migration.c, BUFFER_DELAY)."""

TURN_NS = 50_000_000
"""So long it sends at most without looking, where nothing holds it back (migration/ram.c, MAX_WAIT)."""

MAX_ROUNDS = 30
"""A precopy that would need more is called one that does not converge."""

LONGEST_NS = 30 * 86_400 * 1_000_000_000
"""A migration of a month does not converge either."""

AFTER_SWEEPS = 3
"""The second round is over with the third sweep."""

_HELD_BACK = 1.25
"""A channel that can carry so much more than is sent is held back by max-bandwidth."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was fitted on real migrations (benchmarks/forecast_grid.py)."""

    shape: Shape = field(default_factory=Shape)
    fixed_downtime_ns: int = FIXED_DOWNTIME_NS
    sustained: float = 1.0
    """How much faster than in its bursts a channel is that is held back no more: at the begin of each the receiver
    has to wake up."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a forecast rests on beside what was seen. None: as seen, or as given in this module."""

    bandwidth_bytes_per_second: float | None = None
    downtime_limit_ns: int | None = None
    device_state_bytes: int | None = None
    """What VFIO devices have to transfer while stopped; None: not known."""
    max_rounds: int = MAX_ROUNDS


@dataclass(frozen=True, slots=True)
class _Channel:
    """Bytes per second over time, and while the channel is not held back."""

    rate: float
    link: float
    held_back: bool
    fresh: float
    """As `link`, for pages that the destination gets for the first time: it has to find memory for them."""

    @property
    def quota(self) -> float:
        """Bytes QEMU sends before it looks how much is left: a window's worth, or what ram_save_iterate sends
        in its longest turn."""
        bytes_ = self.rate * WINDOW_NS if self.held_back else self.link * TURN_NS
        return max(float(PAGE_ON_WIRE), bytes_ / 1e9)


@dataclass(frozen=True, slots=True)
class _Run:
    """A precopy as it is played to its end."""

    converges: bool
    rounds: int
    ns: float
    """Until the guest is stopped; until it was given up where it does not converge."""
    last_bytes: float
    last_fresh: float
    """Which part of them goes for the first time."""
    last_round_ns: float


FITTED = Fitted(Shape(full=1.5), sustained=1.25)


def forecast(
    rounds: Sequence[Round],
    started_at_ns: int,
    assumptions: Assumptions | None = None,
    fitted: Fitted = FITTED,
) -> Forecast | None:
    """What follows from these rounds, the last of them a sweep with the guest still running.

    Bytes sent after the last sweep are not looked at. None before the first sweep.
    """
    if not rounds:
        return None
    assumed = assumptions or Assumptions()
    limit_ns = assumed.downtime_limit_ns or DOWNTIME_LIMIT_NS
    channel = _channel(rounds, assumed)
    known = WorkingSet.of(intervals(rounds, started_at_ns), fitted.shape)
    answer = Forecast(
        after_sweeps=len(rounds),
        at_ns=rounds[-1].at_ns,
        converges=None,
        rounds_left=None,
        total_ns=None,
        downtime_ns=None,
        remaining_bytes=None,
        bandwidth_bytes_per_second=channel.rate if channel else None,
        link_bytes_per_second=channel.link if channel else None,
        downtime_limit_ns=limit_ns,
        limit_assumed=assumed.downtime_limit_ns is None,
        strategies=(),
    )
    new_pages = rounds[-1].new_pages
    if channel is None or known is None or new_pages is None:
        return answer
    page_bytes = _page_bytes(rounds, channel, limit_ns)
    threshold = max(1.0, channel.rate * limit_ns / 1e9)
    # A sweep came when less than the threshold was left, and that was seen only after a whole quota.
    unsent = max(0.0, threshold - channel.quota / 2)
    at_first = _unsent_at_first(rounds[0], threshold, channel.quota)
    # QEMU goes on where it stopped: what was never sent goes first.
    fresh = max(0.0, at_first - sum(r.sent_bytes or 0 for r in rounds[1:-1]))
    if len(rounds) == 2:
        unsent = at_first
    again = max(0.0, unsent - fresh)
    left = new_pages * page_bytes + again * (1 - _overlap(rounds)) + fresh
    used = channel.quota * (0.5 if threshold < channel.quota else 1.0)
    run = _play(left, fresh, used, page_bytes, threshold, known, channel, assumed.max_rounds)
    passed = rounds[-1].at_ns - started_at_ns
    costs = _costs(run, left, passed, channel, assumed, fitted)
    plain = costs[0]
    return replace(
        answer,
        converges=run.converges,
        rounds_left=run.rounds if run.converges else None,
        total_ns=plain.total_ns,
        downtime_ns=plain.downtime_ns,
        remaining_bytes=round(left),
        strategies=costs,
    )


def of_migration(
    rounds: Sequence[Round],
    started_at_ns: int,
    stopped_at_ns: int | None,
    *,
    ended: bool,
    device_state_bytes: int | None = None,
) -> Forecast | None:
    """While the guest runs: from all sweeps. Afterwards: as it was foretold when the second round was over, so
    that it can be held against what happened."""
    running = [r for r in rounds if stopped_at_ns is None or r.at_ns < stopped_at_ns]
    if ended or stopped_at_ns is not None:
        running = running[:AFTER_SWEEPS]
    return forecast(running, started_at_ns, Assumptions(device_state_bytes=device_state_bytes))


def of_replay(
    rounds: Sequence[Round], started_at_ns: int, stopped_at_ns: int | None, assumptions: Assumptions
) -> Forecast | None:
    """`replay` from the rounds of a migration that is over: those after the stop tell nothing of the guest."""
    running = [r for r in rounds if stopped_at_ns is None or r.at_ns < stopped_at_ns]
    return replay(running, started_at_ns, assumptions)


def replay(
    rounds: Sequence[Round],
    started_at_ns: int,
    assumptions: Assumptions,
    fitted: Fitted = FITTED,
) -> Forecast | None:
    """The same guest moved from the beginning under other assumptions: all rounds make its working set.

    None where the rounds do not say enough.
    """
    measured = intervals(rounds, started_at_ns)
    known = WorkingSet.of(measured, fitted.shape)
    channel = _channel(rounds, assumptions)
    first = rounds[0].sent_bytes if rounds else None
    if known is None or channel is None or not first:
        return None
    limit_ns = assumptions.downtime_limit_ns or DOWNTIME_LIMIT_NS
    page_bytes = _page_bytes(rounds, channel, limit_ns)
    threshold = max(1.0, channel.rate * limit_ns / 1e9)
    left, passed, blind = float(first), float(rounds[0].at_ns - started_at_ns), 0
    once = first * 1e9 / channel.link
    if once < WINDOW_NS:
        # QEMU does not stop before it has measured its bandwidth once, a window long: one round at least.
        left, passed, blind = known.pages(once) * page_bytes, passed + once, 1
    fresh = left if blind == 0 else 0.0
    run = _play(left, fresh, 0.0, page_bytes, threshold, known, channel, assumptions.max_rounds)
    run = replace(run, rounds=run.rounds + blind)
    costs = _costs(run, left, passed, channel, assumptions, fitted)
    return Forecast(
        after_sweeps=1,
        at_ns=rounds[0].at_ns,
        converges=run.converges,
        rounds_left=run.rounds if run.converges else None,
        total_ns=costs[0].total_ns,
        downtime_ns=costs[0].downtime_ns,
        remaining_bytes=first,
        bandwidth_bytes_per_second=channel.rate,
        link_bytes_per_second=channel.link,
        downtime_limit_ns=limit_ns,
        limit_assumed=assumptions.downtime_limit_ns is None,
        strategies=costs,
    )


def _channel(rounds: Sequence[Round], assumed: Assumptions) -> _Channel | None:
    """What was sent between the sweeps and how fast, later rounds counting more; None if nothing was."""
    given = assumed.bandwidth_bytes_per_second
    if given is not None:
        return _Channel(given, given, False, given)
    sent = whole_bytes = whole_ns = burst_bytes = burst_ns = 0.0
    weight = 1.0
    for round_, after in pairwise(rounds):
        n, ns = round_.sent_bytes or 0, after.at_ns - round_.at_ns
        sent += n
        # Within one window nothing holds back: a short round tells nothing of the mean.
        if ns > WINDOW_NS:
            whole_bytes += weight * n
            whole_ns += weight * ns
        burst_bytes += weight * (round_.burst_bytes or 0)
        burst_ns += weight * (round_.burst_ns or 0)
        weight *= 2
    ns = rounds[-1].at_ns - rounds[0].at_ns
    if not sent or ns <= 0:
        return None
    mean = sent * 1e9 / ns
    rate = whole_bytes * 1e9 / whole_ns if whole_bytes else mean
    link = burst_bytes * 1e9 / burst_ns if burst_ns else mean
    if link < rate * _HELD_BACK:
        link = max(mean, link)
        return _Channel(mean, link, False, link)
    first = rounds[0]
    fresh = (
        first.burst_bytes * 1e9 / first.burst_ns if first.burst_bytes and first.burst_ns else link
    )
    return _Channel(rate, link, True, min(link, max(rate, fresh)))


def _page_bytes(rounds: Sequence[Round], channel: _Channel, limit_ns: int) -> float:
    """Bytes a dirty page costs on the channel: as the last whole round had it, else a page and its header.

    Compression and zero pages make it less; the first round, which sends all memory, tells nothing of it. A round
    leaves unsent what fits the limit.
    """
    unsent = max(0.0, channel.rate * limit_ns / 1e9 - channel.quota / 2) / PAGE_ON_WIRE
    for round_, after in reversed(list(pairwise(rounds[1:]))):
        enough = after.at_ns - round_.at_ns > WINDOW_NS
        pages = (round_.new_pages or 0) - unsent
        if round_.sent_bytes and enough and pages > 64:
            cost = max(16.0, round_.sent_bytes / pages)
            # How much was unsent is known to a quota only: a little less is no compression.
            return cost if cost < 0.7 * PAGE_ON_WIRE else float(PAGE_ON_WIRE)
    return float(PAGE_ON_WIRE)


def _unsent_at_first(first: Round, threshold: float, quota: float) -> float:
    """Bytes QEMU still counts as unsent at the end of the first round.

    Zero pages count as whole ones and go in no time: the emptier the memory, the more of it a quota covers. Whether
    they lie where the round ended is not seen; the square root is between a tail that is full and the mean.
    """
    logged, sent = first.logged_pages, first.sent_bytes
    if logged is None or sent is None:
        return max(0.0, threshold - quota / 2)
    memory = logged * float(PAGE_SIZE)
    density = min(1.0, sent / max(memory - threshold, float(sent), 1.0))
    unsent = threshold - quota / math.sqrt(max(density, 1e-6)) / 2
    return min(max(0.0, unsent), max(0.0, memory - sent))


def _overlap(rounds: Sequence[Round]) -> float:
    """Which part of the pages that were not sent before the last sweep became dirty again by then.

    After the first round those are any of the guest's memory; later they come from what is dirtied over and over.
    """
    last = rounds[-1]
    if len(rounds) < 3 or not last.new_pages or last.redirtied_pages is None:
        return 0.0
    before = max((r.new_pages or 0 for r in rounds[1:-1]), default=0)
    return min(1.0, last.redirtied_pages / before) if before else 0.0


def _play(
    left: float,
    fresh: float,
    used: float,
    page_bytes: float,
    threshold: float,
    known: WorkingSet,
    channel: _Channel,
    max_rounds: int,
) -> _Run:
    """Sends `left` bytes, `used` of the quota being spent, and sweeps until what is left fits the threshold."""
    quota = channel.quota
    window_ns = WINDOW_NS if channel.held_back else TURN_NS
    largest = known.largest * page_bytes
    ns = since_ns = 0.0
    rounds = 0
    while left >= threshold:
        if rounds >= max_rounds or ns + since_ns > LONGEST_NS:
            return _Run(False, rounds, ns, left, fresh, since_ns)
        now = min(left, max(0.0, quota - used))
        left -= now
        fresh = max(0.0, fresh - now)
        used += now
        since_ns += now * 1e9 / channel.link
        if left >= threshold or (left > 0 and used < quota):
            # Whole windows that cannot be the last are taken at once.
            whole = max(0, math.ceil((left - threshold) / quota) - 1)
            before = left
            left = max(threshold, left - whole * quota)
            fresh = max(0.0, fresh - (before - left))
            since_ns += max(0.0, window_ns - used * 1e9 / channel.link) + whole * window_ns
            used = 0.0
            continue
        rounds += 1
        new = known.pages(since_ns) * page_bytes
        # What was not sent stays, unless it became dirty again and is counted there.
        again = max(0.0, left - fresh)
        left = new + again * (1 - min(1.0, new / largest)) + fresh
        ns, last_ns, since_ns = ns + since_ns, since_ns, 0.0
        if left < threshold:
            return _Run(True, rounds, ns, left, fresh, last_ns)
    return _Run(True, rounds, ns, left, fresh, 0.0)


def _costs(
    run: _Run,
    left: float,
    passed: float,
    channel: _Channel,
    assumed: Assumptions,
    fitted: Fitted,
) -> tuple[StrategyCost, ...]:
    """Every strategy; plain precopy first."""
    fixed = fitted.fixed_downtime_ns
    again = run.last_bytes - run.last_fresh
    wire = 1e9 * (again / channel.link + run.last_fresh / channel.fresh)
    if channel.held_back:
        wire /= fitted.sustained
    down = round(fixed + wire) if run.converges else None
    total = None if down is None else round(passed + run.ns + down)
    # The guest is stopped now and runs at once over there; the rest follows while it runs.
    postcopy = round(passed + fixed + left * 1e9 / channel.rate)
    device = assumed.device_state_bytes
    device_ns = None if device is None else round(device * 1e9 / channel.link)
    with_device = None if down is None or device_ns is None else down + device_ns
    late = None if down is None else round(run.last_round_ns + down)
    return (
        StrategyCost("plain", run.converges, total, down, None),
        StrategyCost("postcopy", True, postcopy, fixed, None),
        StrategyCost("unplug", run.converges, total, down, total),
        StrategyCost("late-unplug", run.converges, total, down, late),
        StrategyCost("failover", run.converges, total, down, total),
        StrategyCost(
            "vfio",
            run.converges,
            None if total is None or device_ns is None else total + device_ns,
            with_device,
            with_device,
        ),
    )
