# SPDX-License-Identifier: MIT
"""Replays a recorded migration from its beginning under other assumptions (`report --what-if`).

Without an assumption, a value is taken from the recording: the bandwidth, the limit that the rounds imply, the length
of the first round, and the cost of the stop.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from vftrace.analysis.forecast.answer import (
    MAX_ROUNDS,
    Assumptions,
    assumed_channel,
    setting_of,
    unknown,
    unsent_after_first,
    with_limit,
    with_run,
)
from vftrace.analysis.forecast.channel import PAGE_ON_WIRE, WINDOW_NS, Channel, measured_channel
from vftrace.analysis.forecast.costs import FITTED, Fitted, Stop
from vftrace.analysis.forecast.history import History, sweeps_before
from vftrace.analysis.forecast.limit import threshold_bounds
from vftrace.analysis.forecast.rounds import Run, Start, first_round_ns, play
from vftrace.analysis.forecast.working_set import WorkingSet
from vftrace.model.migration import Forecast, Migration, Outcome, Round

_AT_ONCE_NS = 10_000_000
"""The final sweep follows QEMU's own stop within this time; a guest that a user stopped waits for the round's end."""

_LIMITS = tuple(2 ** (step / 2) for n in range(1, 17) for step in (-n, n))
"""Limits that are tried in place of the assumed one, nearest first: from a 256th of it to 256 times it."""


class Recorded(msgspec.Struct, frozen=True):
    """The data that a replay takes from a finished migration."""

    rounds: tuple[Round, ...]
    started_at_ns: int
    stopped_at_ns: int | None
    downtime_ns: int | None
    """None if it did not complete, or if its memory followed the guest (post-copy)."""
    state_bytes: int = 0
    has_devices: bool = False
    """Whether devices transferred their state."""

    @classmethod
    def of(cls, migration: Migration) -> "Recorded":
        """Take the data from the model."""
        m = migration
        moved = m.outcome is Outcome.COMPLETED and not m.postcopy
        down, state = m.downtime.vcpu_ns if moved else None, m.channel.state_bytes or 0
        return cls(m.rounds, m.started_at_ns, m.stopped_at_ns, down, state, bool(m.devices))

    def sweeps(self) -> int:
        """Return how many sweeps ended a round while the guest ran. If all was sent before a second sweep, the sweep
        after the stop ended the first round."""
        return max(sweeps_before(self.rounds, self.stopped_at_ns), min(2, len(self.rounds)))

    def stop(self) -> Stop | None:
        """Return the stop of the guest; None if QEMU did not stop it by its own rule."""
        sweeps = sweeps_before(self.rounds, self.stopped_at_ns)
        if self.downtime_ns is None or not 0 < sweeps < len(self.rounds):
            return None
        last, final = self.rounds[sweeps - 1], self.rounds[sweeps]
        if sweeps == 1:
            # All was sent before a second sweep: QEMU stopped the guest and swept at once.
            if final.at_ns - (self.stopped_at_ns or 0) > _AT_ONCE_NS:
                return None
            return Stop(max(0, final.new_pages or 0) * PAGE_ON_WIRE, self.downtime_ns, fixed=True)
        if last.sent_bytes:
            # QEMU continues to send after a sweep unless it stops the guest at once.
            return None
        if self.has_devices:
            # Nothing separates the last pages from the devices' state: at least what the last sweep found was sent.
            found = max(0, last.new_pages or 0) * PAGE_ON_WIRE
            return Stop(found, self.downtime_ns, fixed=True)
        sent = sum(max(0, r.sent_bytes or 0) for r in self.rounds[sweeps:])
        return Stop(max(0, sent - self.state_bytes), self.downtime_ns)


def of_replay(recorded: Recorded, assumptions: Assumptions) -> Forecast | None:
    """Replay a finished migration. None if its rounds do not show enough."""
    history = History.of(recorded.rounds, recorded.started_at_ns, recorded.sweeps())
    return None if history is None else _replay(history, assumptions, FITTED, recorded.stop())


def replay(
    rounds: Sequence[Round],
    started_at_ns: int,
    assumptions: Assumptions,
    fitted: Fitted = FITTED,
) -> Forecast | None:
    """Replay these rounds, in all of which the guest ran. None if they do not show enough."""
    history = History.of(rounds, started_at_ns)
    return None if history is None else _replay(history, assumptions, fitted, None)


def _replay(
    history: History, assumed: Assumptions, fitted: Fitted, stop: Stop | None
) -> Forecast | None:
    measured = measured_channel(history, fading=1.0)
    channel = assumed_channel(measured, assumed)
    known = WorkingSet.of(history.intervals(), fitted.shape)
    if known is None or measured is None or channel is None or not history.sent_first:
        return None
    guest = _Recording(history, measured, known, stop)
    answer = replace(
        unknown(history, channel, assumed),
        after_sweeps=1,
        at_ns=history.at_ns - history.passed_ns + history.setup_ns,
    )
    default = measured.bytes_in(answer.downtime_limit_ns)
    limit = guest.bounded(default)
    if assumed.downtime_limit_ns is None:
        limit = guest.implied(limit)
        if limit != default:
            answer = with_limit(answer, limit, measured)
    if stop is not None:
        fitted = stop.applied(measured, channel, fitted)
    threshold = channel.bytes_in(answer.downtime_limit_ns)
    run, start = guest.play(channel, threshold, limit, assumed.max_rounds)
    return with_run(answer, run, start, history.setup_ns, channel, assumed, fitted)


class _Recording(msgspec.Struct, frozen=True):
    """The guest and the channel that the recorded rounds show."""

    history: History
    measured: Channel
    known: WorkingSet
    stop: Stop | None

    def bounded(self, threshold: float) -> float:
        """Return the threshold, unless the recording's rounds or its stop refute it."""
        sent_at_stop = float(self.stop.bytes if self.stop else 0)
        return threshold_bounds(self.history, self.measured).recorded(threshold, sent_at_stop)

    def implied(self, threshold: float) -> float:
        """Return the threshold with which a replay makes as many rounds as the recording has: this one if it does, else
        the best one."""
        if self.stop is None or self.stop.fixed or not self.history.whole:
            return threshold
        best, least = threshold, self._off(threshold)
        for factor in _LIMITS:
            tried = max(float(self.stop.bytes), threshold * factor)
            off = self._off(tried)
            # As many rounds too few or too many are no reason to leave the assumed limit.
            if off[0] < least[0] or (off < least and best != threshold):
                best, least = tried, off
        return best

    def _off(self, threshold: float) -> tuple[int, float]:
        """Return the error of a replay with this threshold, in rounds and in time."""
        run, _ = self.play(self.measured, threshold, threshold, self.history.sweeps + MAX_ROUNDS)
        lasted = self.history.passed_ns - self.history.setup_ns
        return abs(run.rounds - (self.history.sweeps - 1)), abs(run.ns - lasted)

    def play(
        self, channel: Channel, threshold: float, recorded: float, rounds: int
    ) -> tuple[Run, Start]:
        """Play the migration on this channel with this threshold; it was recorded with `recorded`."""
        start = self._start(channel, recorded)
        return play(start, setting_of(self.history, channel, self.known, threshold, rounds)), start

    def _start(self, channel: Channel, recorded: float) -> Start:
        memory = self.history.sent_first + self._unsent(recorded)
        start = Start(memory, memory, blind_ns=float(WINDOW_NS))
        if self.history.first is None:
            return start
        lasted = self.history.first.ns
        as_recorded = setting_of(self.history, self.measured, self.known, recorded, MAX_ROUNDS)
        more = max(0.0, lasted - first_round_ns(start, as_recorded))
        return replace(start, since_ns=_at_other_rate(more, lasted, self.measured, channel))

    def _unsent(self, threshold: float) -> float:
        """Return the bytes left at the end of the first round: those sent later besides the pages that sweeps
        found."""
        history = self.history
        if self.stop is None:
            quota = self.measured.quota
            return unsent_after_first(history, threshold, quota) if history.later else 0.0
        sent = self.stop.bytes + sum(step.sent_bytes for step in history.later)
        found = sum(step.new_pages or 0 for step in history.steps) * float(PAGE_ON_WIRE)
        return max(0.0, sent - found)


def _at_other_rate(more: float, first_ns: int, measured: Channel, channel: Channel) -> float:
    """Return how much longer than its pages the first round takes on `channel`, where it took `more` in the recording.

    Zero pages take time, send no bytes and count as left. Within one window the time is that of scanning them, which
    does not depend on the bandwidth.
    """
    return more if first_ns <= WINDOW_NS else more * measured.rate / channel.rate
