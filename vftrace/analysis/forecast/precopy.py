"""Forecasts whether a precopy migration converges, when, and what each strategy would cost.

Where nothing is known yet the answer is None. docs/forecast.md has the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vftrace.analysis.forecast.channel import (
    WINDOW_NS,
    Channel,
    measured_channel,
    page_bytes,
)
from vftrace.analysis.forecast.costs import FITTED, Fitted, strategy_costs
from vftrace.analysis.forecast.history import History
from vftrace.analysis.forecast.rounds import Run, Setting, Start, play
from vftrace.analysis.forecast.working_set import WorkingSet
from vftrace.model.migration import Forecast, Round
from vftrace.uapi import PAGE_SIZE

DOWNTIME_LIMIT_NS = 300_000_000
"""QEMU's default (migration/options.c, downtime-limit); the one in use cannot be seen from outside QEMU."""

MAX_ROUNDS = 30
"""A precopy that would need more rounds does not converge."""

AFTER_SWEEPS = 3
"""The second round is over with the third sweep."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a forecast rests on beside what was seen. None: as seen, or as given in this package."""

    bandwidth_bytes_per_second: float | None = None
    downtime_limit_ns: int | None = None
    device_state_bytes: int | None = None
    """What VFIO devices have to transfer while stopped; None: not known."""
    max_rounds: int = MAX_ROUNDS


def forecast(
    rounds: Sequence[Round],
    started_at_ns: int,
    assumptions: Assumptions | None = None,
    fitted: Fitted = FITTED,
) -> Forecast | None:
    """Forecasts from these rounds, the last of them a sweep with the guest still running.

    Bytes sent after the last sweep are not looked at. None before the first sweep.
    """
    history = History.of(rounds, started_at_ns)
    return None if history is None else _forecast(history, assumptions or Assumptions(), fitted)


def of_migration(
    rounds: Sequence[Round],
    started_at_ns: int,
    stopped_at_ns: int | None,
    *,
    ended: bool,
    device_state_bytes: int | None = None,
) -> Forecast | None:
    """Forecasts a migration: from all sweeps while the guest runs. Afterwards: from those until the second round was
    over, to compare with what happened."""
    sweeps = _sweeps_before(rounds, stopped_at_ns)
    if ended or stopped_at_ns is not None:
        sweeps = min(sweeps, AFTER_SWEEPS)
    history = History.of(rounds, started_at_ns, sweeps)
    if history is None:
        return None
    return _forecast(history, Assumptions(device_state_bytes=device_state_bytes), FITTED)


def of_replay(
    rounds: Sequence[Round], started_at_ns: int, stopped_at_ns: int | None, assumptions: Assumptions
) -> Forecast | None:
    """Replays a migration that is over: the rounds after the stop show nothing of the guest."""
    history = History.of(rounds, started_at_ns, _sweeps_before(rounds, stopped_at_ns))
    return None if history is None else _replay(history, assumptions, FITTED)


def replay(
    rounds: Sequence[Round],
    started_at_ns: int,
    assumptions: Assumptions,
    fitted: Fitted = FITTED,
) -> Forecast | None:
    """Moves the same guest from the beginning under other assumptions; all rounds make its working set.

    None where the rounds do not show enough.
    """
    history = History.of(rounds, started_at_ns)
    return None if history is None else _replay(history, assumptions, fitted)


def _sweeps_before(rounds: Sequence[Round], stopped_at_ns: int | None) -> int:
    """How many sweeps were made while the guest ran."""
    count = len(rounds)
    while stopped_at_ns is not None and count and rounds[count - 1].at_ns >= stopped_at_ns:
        count -= 1
    return count


def _forecast(history: History, assumed: Assumptions, fitted: Fitted) -> Forecast:
    limit_ns = assumed.downtime_limit_ns or DOWNTIME_LIMIT_NS
    channel = _channel(history, assumed)
    answer = Forecast(
        after_sweeps=history.sweeps,
        at_ns=history.at_ns,
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
    known = WorkingSet.of(history.intervals(), fitted.shape)
    new_pages = history.steps[-1].new_pages if history.steps else None
    if channel is None or known is None or new_pages is None:
        return answer
    setting = _setting(history, channel, known, limit_ns, assumed.max_rounds)
    start = _after_sweep(history, setting, new_pages)
    return _with_run(
        answer, play(start, setting), start, history.passed_ns, channel, assumed, fitted
    )


def _replay(history: History, assumed: Assumptions, fitted: Fitted) -> Forecast | None:
    known = WorkingSet.of(history.intervals(), fitted.shape)
    channel = _channel(history, assumed)
    first = history.sent_first
    if known is None or channel is None or not first:
        return None
    limit_ns = assumed.downtime_limit_ns or DOWNTIME_LIMIT_NS
    setting = _setting(history, channel, known, limit_ns, assumed.max_rounds)
    start, passed, blind = Start(float(first), float(first)), float(history.setup_ns), 0
    once = first * 1e9 / channel.link
    if once < WINDOW_NS:
        # QEMU does not stop before it has measured its bandwidth once, a window long: one round at least.
        left = known.pages(once) * setting.page_bytes
        start, passed, blind = Start(left, 0.0), passed + once, 1
    run = play(start, setting)
    run = replace(run, rounds=run.rounds + blind)
    answer = Forecast(
        after_sweeps=1,
        at_ns=history.at_ns - history.passed_ns + history.setup_ns,
        converges=None,
        rounds_left=None,
        total_ns=None,
        downtime_ns=None,
        remaining_bytes=None,
        bandwidth_bytes_per_second=channel.rate,
        link_bytes_per_second=channel.link,
        downtime_limit_ns=limit_ns,
        limit_assumed=assumed.downtime_limit_ns is None,
        strategies=(),
    )
    answer = _with_run(answer, run, start, passed, channel, assumed, fitted)
    return replace(answer, remaining_bytes=first)


def _with_run(
    answer: Forecast,
    run: Run,
    start: Start,
    passed_ns: float,
    channel: Channel,
    assumed: Assumptions,
    fitted: Fitted,
) -> Forecast:
    """The answer with the figures of a run that was played from `start`, `passed_ns` after the beginning."""
    costs = strategy_costs(run, start.left, passed_ns, channel, assumed.device_state_bytes, fitted)
    return replace(
        answer,
        converges=run.converges,
        rounds_left=run.rounds if run.converges else None,
        total_ns=costs[0].total_ns,
        downtime_ns=costs[0].downtime_ns,
        remaining_bytes=round(start.left),
        strategies=costs,
    )


def _channel(history: History, assumed: Assumptions) -> Channel | None:
    given = assumed.bandwidth_bytes_per_second
    return measured_channel(history) if given is None else Channel(given, given, False, given)


def _setting(
    history: History, channel: Channel, known: WorkingSet, limit_ns: int, max_rounds: int
) -> Setting:
    threshold = max(1.0, channel.bytes_in(limit_ns))
    cost = page_bytes(history.later, _unsent(threshold, channel))
    return Setting(known, channel, cost, threshold, max_rounds)


def _unsent(threshold: float, channel: Channel) -> float:
    """Bytes left when a sweep begins: less than the threshold, and QEMU sees that only after a whole quota."""
    return max(0.0, threshold - channel.quota / 2)


def _after_sweep(history: History, setting: Setting, new_pages: int) -> Start:
    """What is to be sent after the latest sweep, which found `new_pages`."""
    channel, threshold = setting.channel, setting.threshold
    at_first = _unsent_at_first(history, threshold, channel.quota)
    # QEMU goes on where it stopped: what was never sent goes first.
    sent = sum(step.sent_bytes for step in history.later)
    fresh = max(0.0, at_first - sent) if history.whole else 0.0
    unsent = _unsent(threshold, channel) if history.later else at_first
    again = max(0.0, unsent - fresh)
    left = new_pages * setting.page_bytes + again * (1 - _overlap(history)) + fresh
    used = channel.quota * (0.5 if threshold < channel.quota else 1.0)
    return Start(left, fresh, used)


def _unsent_at_first(history: History, threshold: float, quota: float) -> float:
    """Bytes that QEMU still counts as unsent at the end of the first round.

    Zero pages count as whole ones and go in no time: the emptier the memory, the more of it a quota covers. Whether
    they lie where the round ended is not seen; the square root is between a tail that is full and the mean.
    """
    logged, sent = history.memory_pages, history.first.sent_bytes if history.first else 0
    if logged is None or not sent:
        return max(0.0, threshold - quota / 2)
    memory = logged * float(PAGE_SIZE)
    density = min(1.0, sent / max(memory - threshold, float(sent), 1.0))
    unsent = threshold - quota / math.sqrt(max(density, 1e-6)) / 2
    return min(max(0.0, unsent), max(0.0, memory - sent))


def _overlap(history: History) -> float:
    """The part of the pages unsent before the latest sweep that became dirty again by then.

    After the first round those are any of the guest's memory; later they come from what is dirtied over and over.
    """
    if not history.later:
        return 0.0
    again = history.later[-1].redirtied_pages
    before = max((step.began_with or 0 for step in history.later), default=0)
    return min(1.0, again / before) if again and before else 0.0
