# SPDX-License-Identifier: MIT
"""Plays future rounds as QEMU makes them.

QEMU (migration/migration.c, migration_iteration_run, and migration/ram.c, ram_save_pending, 7.2;
ram_state_pending_exact from 8.0 on) sends pages until the unsent bytes are below `threshold` = bandwidth x downtime
limit. Then a sweep adds the pages that became dirty meanwhile. If the unsent bytes are still below the threshold, QEMU
stops the guest, else the next round begins.
"""

import math

import msgspec

from vftrace.analysis.forecast.channel import TURN_NS, WINDOW_NS, Channel
from vftrace.analysis.forecast.working_set import WorkingSet

LONGEST_NS = 30 * 86_400 * 1_000_000_000
"""The longest play: a migration of a month does not converge."""


class Setting(msgspec.Struct, frozen=True):
    """The values that stay the same in all played rounds."""

    known: WorkingSet
    channel: Channel
    page_bytes: float
    threshold: float
    """The bytes that may be left when the guest is stopped."""
    max_rounds: int


class Start(msgspec.Struct, frozen=True):
    """The start of the play: after a sweep, or at the beginning of the first round."""

    left: float
    """Bytes to send."""
    fresh: float
    """The part of them that the destination does not have yet."""
    used: float = 0.0
    """The part of the window's quota that is already spent."""
    since_ns: float = 0.0
    """The time since this round began."""
    blind_ns: float = 0.0
    """The time until QEMU knows its bandwidth; before that it stops only when all bytes are sent."""


class Run(msgspec.Struct, frozen=True):
    """A precopy that was played to its end."""

    converges: bool
    rounds: int
    ns: float
    """The time until the guest is stopped, or if precopy does not converge, until the end of the play."""
    last_bytes: float
    last_fresh: float
    """The part of them that the destination does not have yet."""
    last_round_ns: float


class _State(msgspec.Struct):
    """The migration while it is played."""

    setting: Setting
    left: float
    fresh: float
    used: float
    since_ns: float
    rounds: int = 0
    ns: float = 0.0
    """The number of finished rounds."""

    @property
    def fits(self) -> bool:
        """Whether the unsent bytes may be sent while the guest is stopped."""
        return self.left < self.setting.threshold

    def send(self) -> None:
        """Send as much as the window allows, and wait for the next window if the quota is used up."""
        channel = self.setting.channel
        quota = channel.quota
        window_ns = WINDOW_NS if channel.held_back else TURN_NS
        if self.used == 0.0:
            # All windows after which more than the threshold is left are alike.
            whole = max(0, math.floor((self.left - self.setting.threshold) / quota) - 1)
            self._sent(whole * quota)
            self.since_ns += whole * window_ns
        now = min(self.left, max(0.0, quota - self.used))
        self._sent(now)
        self.used += now
        self.since_ns += now * 1e9 / channel.link
        if self.left > 0:
            self.since_ns += max(0.0, window_ns - self.used * 1e9 / channel.link)
            self.used = 0.0

    def _sent(self, bytes_: float) -> None:
        self.left = max(0.0, self.left - bytes_)
        self.fresh = max(0.0, self.fresh - bytes_)

    def sweep(self) -> float:
        """Add the pages that became dirty in this round, and begin the next; returns how long this round lasted."""
        new = self.dirtied()
        largest = self.setting.known.largest * self.setting.page_bytes
        # Unsent pages stay, except those that became dirty again and are counted there.
        again = max(0.0, self.left - self.fresh)
        self.left = new + again * (1 - min(1.0, new / largest)) + self.fresh
        lasted, self.since_ns = self.since_ns, 0.0
        self.ns += lasted
        self.rounds += 1
        return lasted

    def dirtied(self) -> float:
        """Return the bytes that became dirty in this round."""
        return self.setting.known.pages(self.since_ns) * self.setting.page_bytes

    def end(self, *, converges: bool, lasted: float) -> Run:
        """Return the play's result, after a sweep."""
        return Run(converges, self.rounds, self.ns, self.left, self.fresh, lasted)


def first_round_ns(start: Start, setting: Setting) -> float:
    """Return the length of the play's first round."""
    state = _State(setting, start.left, start.fresh, start.used, start.since_ns)
    while state.left > 0 and (state.since_ns < start.blind_ns - 1 or not state.fits):
        if state.since_ns > LONGEST_NS:
            break
        state.send()
    return state.since_ns


def play(start: Start, setting: Setting) -> Run:
    """Send and sweep until the unsent bytes are below the threshold, or the rounds or the time are used up."""
    state = _State(setting, start.left, start.fresh, start.used, start.since_ns)
    lasted = 0.0
    if start.blind_ns == 0.0 and state.fits:
        return state.end(converges=True, lasted=lasted)
    while state.rounds < setting.max_rounds and state.ns + state.since_ns <= LONGEST_NS:
        state.send()
        if state.ns + state.since_ns < start.blind_ns - 1:
            if state.left == 0.0:
                # All bytes are sent: QEMU stops the guest without another sweep.
                ns = state.since_ns
                return Run(True, 0, ns, state.dirtied(), 0.0, ns)
        elif state.fits:
            lasted = state.sweep()
            if state.fits:
                return state.end(converges=True, lasted=lasted)
    return state.end(converges=False, lasted=lasted)
