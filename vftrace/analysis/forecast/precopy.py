# SPDX-License-Identifier: MIT
"""Forecasts whether a precopy migration converges, when, and the cost of each strategy.

The answer is None if nothing is known yet. docs/explanation/forecast.md has the model.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from vftrace.analysis.forecast.answer import (
    Assumptions,
    assumed_channel,
    setting_of,
    undecided_answer,
    unknown,
    unsent_after_first,
    unsent_before_sweep,
    with_limit,
    with_run,
)
from vftrace.analysis.forecast.channel import measured_channel
from vftrace.analysis.forecast.costs import FITTED, Fitted
from vftrace.analysis.forecast.history import History, sweeps_before
from vftrace.analysis.forecast.limit import falls, slows, threshold_bounds
from vftrace.analysis.forecast.rounds import Run, Setting, Start, play
from vftrace.analysis.forecast.working_set import WorkingSet
from vftrace.model.migration import Forecast, Round, Undecided

AFTER_SWEEPS = 3
"""The second round is over with the third sweep."""

CONTRADICTIONS = 3
"""After this number of forecasts that QEMU would have stopped by now, the limit or the model counts as wrong."""


def forecast(
    rounds: Sequence[Round],
    started_at_ns: int,
    assumptions: Assumptions | None = None,
    fitted: Fitted = FITTED,
) -> Forecast | None:
    """Forecast from these rounds; the guest still ran at the last sweep.

    Bytes sent after the last sweep are not used. None before the first sweep.
    """
    return _forecast(rounds, started_at_ns, len(rounds), assumptions or Assumptions(), fitted)


def of_migration(
    rounds: Sequence[Round],
    started_at_ns: int,
    stopped_at_ns: int | None,
    *,
    device_state_bytes: int | None = None,
) -> Forecast | None:
    """Forecast a migration, from all sweeps while the guest runs, or if it was never stopped. After the stop, forecast
    from the sweeps until the end of the second round, to compare with the result."""
    sweeps = sweeps_before(rounds, stopped_at_ns)
    if stopped_at_ns is not None:
        sweeps = min(sweeps, AFTER_SWEEPS)
    assumed = Assumptions(device_state_bytes=device_state_bytes)
    return _forecast(rounds, started_at_ns, sweeps, assumed, FITTED)


def _forecast(
    rounds: Sequence[Round],
    started_at_ns: int,
    sweeps: int,
    assumed: Assumptions,
    fitted: Fitted,
) -> Forecast | None:
    """Forecast from the first `sweeps` rounds."""
    history = History.of(rounds, started_at_ns, sweeps)
    if history is None:
        return None
    answer = _behind(history, assumed, fitted)
    if not answer.converges or assumed.downtime_limit_ns is not None or falls(history):
        return answer
    for passed in range(2, 2 + CONTRADICTIONS):
        before = History.of(rounds, started_at_ns, sweeps - passed)
        if before is None or before.sweeps < AFTER_SWEEPS:
            return answer
        then = _behind(before, assumed, fitted).rounds_left
        if then is None or then >= passed:
            return answer
    return _behind(history, assumed, fitted, contradicted=True)


def _behind(
    history: History, assumed: Assumptions, fitted: Fitted, *, contradicted: bool = False
) -> Forecast:
    """Play the rounds after the latest sweep. `contradicted`: QEMU would have stopped by now if earlier forecasts were
    right, so rounds that continue as before do not converge."""
    measured = measured_channel(history)
    channel = assumed_channel(measured, assumed)
    answer = unknown(history, channel, assumed)
    known = WorkingSet.of(history.intervals(), fitted.shape)
    new_pages = history.steps[-1].new_pages if history.steps else None
    if measured is None or channel is None or known is None or new_pages is None:
        return answer

    def played(threshold: float) -> tuple[Run, Start]:
        setting = setting_of(history, channel, known, threshold, assumed.max_rounds)
        start = _after_sweep(history, setting, new_pages)
        return play(start, setting), start

    threshold = channel.bytes_in(answer.downtime_limit_ns)
    bounds = threshold_bounds(history, measured)
    refuted = assumed.downtime_limit_ns is None and bounds.high < threshold
    undecided: Undecided | None = None
    if refuted:
        answer = with_limit(answer, bounds.high, measured)
        run, start = played(bounds.middle)
        if run.converges and not falls(history):
            # The rounds continue like those after which QEMU did not stop.
            run = replace(run, converges=False)
        elif run.converges and not played(bounds.low)[0].converges:
            undecided = "downtime-limit"
    else:
        run, start = played(threshold)
        if contradicted:
            run = replace(run, converges=False)
    if not run.converges and slows(history):
        undecided = "dirty-rate"
    answer = with_run(answer, run, start, history.passed_ns, channel, assumed, fitted)
    return answer if undecided is None else undecided_answer(answer, undecided)


def _after_sweep(history: History, setting: Setting, new_pages: int) -> Start:
    """Return what is to be sent after the latest sweep, which found `new_pages`."""
    channel, threshold = setting.channel, setting.threshold
    at_first = unsent_after_first(history, threshold, channel.quota)
    # QEMU continues where it stopped: pages that were never sent are sent first.
    sent = sum(step.sent_bytes for step in history.later)
    fresh = max(0.0, at_first - sent) if history.whole else 0.0
    unsent = unsent_before_sweep(threshold, channel) if history.later else at_first
    again = max(0.0, unsent - fresh)
    left = new_pages * setting.page_bytes + again * (1 - _overlap(history)) + fresh
    used = channel.quota * (0.5 if threshold < channel.quota else 0.0)
    return Start(left, fresh, used)


def _overlap(history: History) -> float:
    """Return the part of the pages unsent before the latest sweep that became dirty again by then.

    After the first round these may be any pages of the guest; later they are among the pages that it dirties
    repeatedly.
    """
    if not history.later:
        return 0.0
    again = history.later[-1].redirtied_pages
    before = max((step.began_with or 0 for step in history.later), default=0)
    return min(1.0, again / before) if again and before else 0.0
