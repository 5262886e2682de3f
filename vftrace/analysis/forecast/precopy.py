"""Forecasts whether a precopy migration converges, when, and what each strategy would cost.

Where nothing is known yet the answer is None. docs/forecast.md has the model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vftrace.analysis.forecast.channel import (
    PAGE_ON_WIRE,
    WINDOW_NS,
    Channel,
    measured_channel,
    page_bytes,
)
from vftrace.analysis.forecast.costs import FITTED, Fitted, Stop, strategy_costs
from vftrace.analysis.forecast.history import History
from vftrace.analysis.forecast.limit import DOWNTIME_LIMIT_NS, falls, slows, threshold_bounds
from vftrace.analysis.forecast.rounds import Run, Setting, Start, first_round_ns, play
from vftrace.analysis.forecast.working_set import WorkingSet
from vftrace.model.migration import Forecast, Migration, Outcome, Round, StrategyCost, Undecided
from vftrace.uapi import PAGE_SIZE

MAX_ROUNDS = 30
"""A precopy that would need more rounds does not converge."""

_AT_ONCE_NS = 10_000_000
"""The final sweep follows QEMU's own stop within this time; a guest that somebody else stopped waits for the round's
end."""

AFTER_SWEEPS = 3
"""The second round is over with the third sweep."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a forecast rests on beside what was seen. None: as seen, or as given in this package."""

    bandwidth_bytes_per_second: float | None = None
    """The rate of the rounds."""
    link_bytes_per_second: float | None = None
    """What the channel can carry once nothing holds it back."""
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
    device_state_bytes: int | None = None,
) -> Forecast | None:
    """Forecasts a migration: from all sweeps while the guest runs, or where it was never stopped. Afterwards: from
    those until the second round was over, to compare with what happened."""
    sweeps = _sweeps_before(rounds, stopped_at_ns)
    if stopped_at_ns is not None:
        sweeps = min(sweeps, AFTER_SWEEPS)
    history = History.of(rounds, started_at_ns, sweeps)
    if history is None:
        return None
    return _forecast(history, Assumptions(device_state_bytes=device_state_bytes), FITTED)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a replay takes from a migration that is over."""

    rounds: tuple[Round, ...]
    started_at_ns: int
    stopped_at_ns: int | None
    downtime_ns: int | None
    """None where it did not complete, or where its memory followed the guest (post-copy)."""
    state_bytes: int = 0
    has_devices: bool = False
    """Whether devices transferred their state."""

    @classmethod
    def of(cls, migration: Migration) -> "Recorded":
        """Takes it from the model."""
        m = migration
        moved = m.outcome is Outcome.COMPLETED and not m.postcopy
        down, state = m.downtime.vcpu_ns if moved else None, m.channel.state_bytes or 0
        return cls(m.rounds, m.started_at_ns, m.stopped_at_ns, down, state, bool(m.devices))

    def sweeps(self) -> int:
        """How many sweeps ended a round of the guest's. Where all was sent before a second one, the sweep after the
        stop ended the first round."""
        return max(_sweeps_before(self.rounds, self.stopped_at_ns), min(2, len(self.rounds)))

    def stop(self) -> Stop | None:
        """How the guest was stopped; None where QEMU did not stop it by its own rule."""
        sweeps = _sweeps_before(self.rounds, self.stopped_at_ns)
        if self.downtime_ns is None or not 0 < sweeps < len(self.rounds):
            return None
        last, final = self.rounds[sweeps - 1], self.rounds[sweeps]
        if sweeps == 1:
            # All was sent before a second sweep: QEMU stopped the guest and swept at once.
            if final.at_ns - (self.stopped_at_ns or 0) > _AT_ONCE_NS:
                return None
            return Stop(max(0, final.new_pages or 0) * PAGE_ON_WIRE, self.downtime_ns, fixed=True)
        if last.sent_bytes:
            # It goes on sending after a sweep unless it stops the guest at once.
            return None
        if self.has_devices:
            # The last pages and the devices' state are not told apart: at least what the last sweep found was sent.
            found = max(0, last.new_pages or 0) * PAGE_ON_WIRE
            return Stop(found, self.downtime_ns, fixed=True)
        sent = sum(max(0, r.sent_bytes or 0) for r in self.rounds[sweeps:])
        return Stop(max(0, sent - self.state_bytes), self.downtime_ns)


def of_replay(recorded: Recorded, assumptions: Assumptions) -> Forecast | None:
    """Replays a migration that is over under other assumptions. What they leave open is as in the recording: the
    bandwidth that was used, and the limit that the rounds imply."""
    history = History.of(recorded.rounds, recorded.started_at_ns, recorded.sweeps())
    return None if history is None else _replay(history, assumptions, FITTED, recorded.stop())


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
    return None if history is None else _replay(history, assumptions, fitted, None)


def _sweeps_before(rounds: Sequence[Round], stopped_at_ns: int | None) -> int:
    """How many sweeps were made while the guest ran."""
    count = len(rounds)
    while stopped_at_ns is not None and count and rounds[count - 1].at_ns >= stopped_at_ns:
        count -= 1
    return count


def _forecast(history: History, assumed: Assumptions, fitted: Fitted) -> Forecast:
    """Goes on behind the latest sweep."""
    measured = measured_channel(history)
    channel = _channel(measured, assumed)
    answer = _unknown(history, channel, assumed)
    known = WorkingSet.of(history.intervals(), fitted.shape)
    new_pages = history.steps[-1].new_pages if history.steps else None
    if measured is None or channel is None or known is None or new_pages is None:
        return answer

    def played(threshold: float) -> tuple[Run, Start]:
        setting = _setting(history, channel, known, threshold, assumed.max_rounds)
        start = _after_sweep(history, setting, new_pages)
        return play(start, setting), start

    threshold = channel.bytes_in(answer.downtime_limit_ns)
    bounds = threshold_bounds(history, measured)
    refuted = assumed.downtime_limit_ns is None and bounds.high < threshold
    undecided: Undecided | None = None
    if refuted:
        answer = _with_limit(answer, bounds.high, measured)
        run, start = played(bounds.middle)
        if run.converges and not falls(history):
            # The rounds go on as those did after which QEMU did not stop.
            run = replace(run, converges=False)
        elif run.converges and not played(bounds.low)[0].converges:
            undecided = "downtime-limit"
    else:
        run, start = played(threshold)
    if not run.converges and slows(history):
        undecided = "dirty-rate"
    answer = _with_run(answer, run, start, history.passed_ns, channel, assumed, fitted)
    return answer if undecided is None else _open(answer, undecided)


def _unknown(history: History, channel: Channel | None, assumed: Assumptions) -> Forecast:
    """The forecast before anything is played."""
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


def _with_limit(answer: Forecast, threshold: float, channel: Channel) -> Forecast:
    """The answer with the limit that the rounds imply."""
    limit_ns = max(1, round(threshold * 1e9 / channel.rate))
    return replace(answer, downtime_limit_ns=limit_ns, limit_assumed=False, limit_from="rounds")


def _open(answer: Forecast, undecided: Undecided) -> Forecast:
    """The answer where it is not known well enough whether precopy converges: only post-copy's cost is."""
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


def _replay(
    history: History, assumed: Assumptions, fitted: Fitted, stop: Stop | None
) -> Forecast | None:
    """Begins with the first round; `stop` is how the recorded migration's guest was stopped."""
    measured = measured_channel(history, fading=1.0)
    channel = _channel(measured, assumed)
    known = WorkingSet.of(history.intervals(), fitted.shape)
    if known is None or measured is None or channel is None or not history.sent_first:
        return None
    answer = replace(
        _unknown(history, channel, assumed),
        after_sweeps=1,
        at_ns=history.at_ns - history.passed_ns + history.setup_ns,
    )
    assumed_threshold = measured.bytes_in(answer.downtime_limit_ns)
    sent_at_stop = float(stop.bytes if stop else 0)
    recorded = threshold_bounds(history, measured).recorded(assumed_threshold, sent_at_stop)
    if assumed.downtime_limit_ns is None and recorded != assumed_threshold:
        answer = _with_limit(answer, recorded, measured)
    if stop is not None:
        fitted = stop.applied(measured, channel, fitted)
    memory = history.sent_first + _unsent_in_replay(history, recorded, measured, stop)
    start = Start(memory, memory, blind_ns=float(WINDOW_NS))
    if history.first is not None:
        as_recorded = _setting(history, measured, known, recorded, assumed.max_rounds)
        more = max(0.0, history.first.ns - first_round_ns(start, as_recorded))
        start = replace(start, since_ns=_at_other_rate(more, history.first.ns, measured, channel))
    threshold = channel.bytes_in(answer.downtime_limit_ns)
    run = play(start, _setting(history, channel, known, threshold, assumed.max_rounds))
    return _with_run(answer, run, start, history.setup_ns, channel, assumed, fitted)


def _at_other_rate(more: float, first_ns: int, measured: Channel, channel: Channel) -> float:
    """How much longer than its pages the first round takes on `channel`, where it took `more` in the recording.

    Zero pages take time, send nothing and count as left. Within one window the time is that of looking through them,
    which no bandwidth changes.
    """
    return more if first_ns <= WINDOW_NS else more * measured.rate / channel.rate


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


def _channel(measured: Channel | None, assumed: Assumptions) -> Channel | None:
    if measured is None:
        return None
    return measured.limited_to(assumed.bandwidth_bytes_per_second, assumed.link_bytes_per_second)


def _setting(
    history: History, channel: Channel, known: WorkingSet, threshold: float, max_rounds: int
) -> Setting:
    threshold = max(1.0, threshold)
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
    used = channel.quota * (0.5 if threshold < channel.quota else 0.0)
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


def _unsent_in_replay(
    history: History, threshold: float, measured: Channel, stop: Stop | None
) -> float:
    """Bytes that were left when the first round ended: what was sent afterwards beside the pages that sweeps found."""
    unsent = _unsent_at_first(history, threshold, measured.quota) if history.later else 0.0
    if stop is None:
        return unsent
    sent = stop.bytes + sum(step.sent_bytes for step in history.later)
    found = sum(step.new_pages or 0 for step in history.steps) * float(PAGE_ON_WIRE)
    return max(0.0, sent - found)


def _overlap(history: History) -> float:
    """The part of the pages unsent before the latest sweep that became dirty again by then.

    After the first round those are any of the guest's memory; later they come from what is dirtied over and over.
    """
    if not history.later:
        return 0.0
    again = history.later[-1].redirtied_pages
    before = max((step.began_with or 0 for step in history.later), default=0)
    return min(1.0, again / before) if again and before else 0.0
