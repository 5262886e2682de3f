# SPDX-License-Identifier: MIT
"""Limits the log lines of migrations, by process and in total; lines that are not logged are counted. Pure."""

from collections import Counter

import msgspec

WINDOW_NS = 60_000_000_000
PER_PROCESS = 20
"""The most lines of one process in a window: no useful VM migrates more often."""
ALWAYS = 2
"""The lines of one process in a window that are always allowed: a migration's beginning and end."""
IN_ALL = 1000
"""The most lines in a window beyond those: the evacuation of a host needs fewer."""
MAX_PROCESSES = 5000
"""How many processes are counted separately in a window; further ones are counted together."""


class Window(msgspec.Struct):
    """One process's lines since the window began; `more` counts by word the lines that were not logged."""

    who: str | None
    lines: int = 0
    more: Counter[str] = msgspec.field(default_factory=Counter)


class Limit:
    """Counts lines in windows of a minute."""

    def __init__(self) -> None:
        self._since_ns: int | None = None
        self._windows: dict[int, Window] = {}
        self._others = Window(None)
        self._lines = 0

    def admits(self, pid: int, who: str, now_ns: int, what: str) -> bool:
        """Whether one more line about this process is written; if not, `what` is counted."""
        if self._since_ns is None:
            self._since_ns = now_ns
        window = self._windows.get(pid)
        if window is None:
            if len(self._windows) >= MAX_PROCESSES:
                self._others.more[what] += 1
                return False
            window = self._windows[pid] = Window(who)
        below = window.lines < PER_PROCESS and self._lines < IN_ALL
        if window.lines >= ALWAYS and not below:
            window.more[what] += 1
            return False
        window.lines += 1
        self._lines += 1
        return True

    def over(self, now_ns: int, *, finish: bool = False) -> list[Window]:
        """Return the windows with lines that were not logged, once the minute is over; the next line begins a new
        window.

        Only the first 20 are returned one by one; the others are added up.
        """
        since = self._since_ns
        if since is None or (now_ns - since < WINDOW_NS and not finish):
            return []
        found = [window for window in self._windows.values() if window.more]
        rest = self._others
        for window in found[PER_PROCESS:]:
            rest.more += window.more
        self._since_ns, self._windows, self._others, self._lines = None, {}, Window(None), 0
        return found[:PER_PROCESS] + ([rest] if rest.more else [])
