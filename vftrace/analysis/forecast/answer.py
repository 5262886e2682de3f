# SPDX-License-Identifier: MIT
"""The parts that forecasts and replays share: assumptions, the setting of the played rounds, the answer."""

import math

import msgspec
from msgspec.structs import replace

from vftrace.analysis.forecast.channel import Channel, page_bytes
from vftrace.analysis.forecast.costs import Fitted, strategy_costs
from vftrace.analysis.forecast.history import History
from vftrace.analysis.forecast.limit import DOWNTIME_LIMIT_NS
from vftrace.analysis.forecast.rounds import Run, Setting, Start
from vftrace.analysis.forecast.working_set import WorkingSet
from vftrace.model.migration import Forecast, StrategyCost, Undecided
from vftrace.uapi import PAGE_SIZE

MAX_ROUNDS = 30
"""The most rounds: a precopy that would need more does not converge."""


class Assumptions(msgspec.Struct, frozen=True):
    """The assumptions of a forecast. None: as measured, or the default of this package."""

    bandwidth_bytes_per_second: float | None = None
    """The rate of the rounds."""
    link_bytes_per_second: float | None = None
    """The rate that the channel can carry if nothing limits it."""
    downtime_limit_ns: int | None = None
    device_state_bytes: int | None = None
    """The bytes that VFIO devices have to transfer while stopped; None: not known."""
    max_rounds: int = MAX_ROUNDS


def unknown(history: History, channel: Channel | None, assumed: Assumptions) -> Forecast:
    """Return the forecast before any round is played."""
    given = assumed.downtime_limit_ns
    return Forecast(
        after_sweeps=history.sweeps,
        at_ns=history.at_ns,
        converges=None,
        rounds_left=None,
        total_ns=None,
        downtime_ns=None,
        remaining_bytes=None,
        bandwidth_bytes_per_second=channel.rate if channel else None,
        link_bytes_per_second=channel.link if channel else None,
        downtime_limit_ns=given or DOWNTIME_LIMIT_NS,
        limit_assumed=given is None,
        limit_from="default" if given is None else "given",
        undecided=None,
        strategies=(),
    )


def with_limit(answer: Forecast, threshold: float, channel: Channel) -> Forecast:
    """Return the answer with the limit that the rounds imply."""
    limit_ns = max(1, round(threshold * 1e9 / channel.rate))
    return replace(answer, downtime_limit_ns=limit_ns, limit_assumed=False, limit_from="rounds")


def undecided_answer(answer: Forecast, undecided: Undecided) -> Forecast:
    """Return the answer if it is not certain whether precopy converges: only post-copy's cost is known."""
    costs = tuple(
        cost if cost.strategy == "postcopy" else StrategyCost(cost.strategy, None, None, None, None)
        for cost in answer.strategies
    )
    return replace(
        answer,
        converges=None,
        rounds_left=None,
        total_ns=None,
        downtime_ns=None,
        undecided=undecided,
        strategies=costs,
    )


def with_run(
    answer: Forecast,
    run: Run,
    start: Start,
    passed_ns: float,
    channel: Channel,
    assumed: Assumptions,
    fitted: Fitted,
) -> Forecast:
    """Return the answer with the figures of a run that was played from `start`, `passed_ns` after the beginning."""
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


def assumed_channel(measured: Channel | None, assumed: Assumptions) -> Channel | None:
    """Return the measured channel with the assumptions applied."""
    if measured is None:
        return None
    return measured.limited_to(assumed.bandwidth_bytes_per_second, assumed.link_bytes_per_second)


def setting_of(
    history: History, channel: Channel, known: WorkingSet, threshold: float, max_rounds: int
) -> Setting:
    """Return the setting of the played rounds."""
    threshold = max(1.0, threshold)
    cost = page_bytes(history.later, unsent_before_sweep(threshold, channel))
    return Setting(known, channel, cost, threshold, max_rounds)


def unsent_before_sweep(threshold: float, channel: Channel) -> float:
    """Return the bytes left when a sweep begins: below the threshold, which QEMU checks only after a whole quota."""
    return max(0.0, threshold - channel.quota / 2)


def unsent_after_first(history: History, threshold: float, quota: float) -> float:
    """Return the bytes that QEMU still counts as unsent at the end of the first round.

    Zero pages count as whole pages and take almost no time: the emptier the memory, the more of it a quota covers. It
    is not known whether they are at the end of the round; the square root is between a full tail and the mean.
    """
    logged, sent = history.memory_pages, history.first.sent_bytes if history.first else 0
    if logged is None or not sent:
        return max(0.0, threshold - quota / 2)
    memory = logged * float(PAGE_SIZE)
    density = min(1.0, sent / max(memory - threshold, float(sent), 1.0))
    unsent = threshold - quota / math.sqrt(max(density, 1e-6)) / 2
    return min(max(0.0, unsent), max(0.0, memory - sent))
