# SPDX-License-Identifier: MIT
"""Reads moments such as `2h` (ago), `yesterday` and `2026-11-29 02:10`."""

import re
from datetime import UTC, datetime, timedelta

from vftrace.errors import UsageError
from vftrace.units import parse_duration

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))?", re.ASCII)


def parse_when(text: str, now: datetime) -> int:
    """Read a moment as nanoseconds since the Unix epoch.

    A duration is that long before `now`; `now`, `today`, `yesterday` and dates without a time mean their first
    moment, a time of day without a date is today's. Local time is that of `now`, unless the text ends with `Z` or
    an offset. Raises UsageError for anything else.
    """
    word = text.strip()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    moment = named.get(word.lower()) or _time_of_day(word, now) or _date(word, now)
    if moment is None:
        try:
            moment = now - timedelta(microseconds=parse_duration(word) // 1000)
        except (UsageError, OverflowError):
            raise UsageError(
                f"not a time: {text!r} (such as 2h, 1h30m, 7d, yesterday, 02:10, 2026-11-29 02:10)"
            ) from None
    return round((moment - _EPOCH) / timedelta(microseconds=1)) * 1000


def _time_of_day(word: str, now: datetime) -> datetime | None:
    found = _TIME_OF_DAY.fullmatch(word)
    if found is None:
        return None
    hour, minute, second = (int(part or 0) for part in found.groups())
    try:
        return now.replace(hour=hour, minute=minute, second=second, microsecond=0)
    except ValueError:
        return None


def _date(word: str, now: datetime) -> datetime | None:
    # A bare number is a duration in seconds, not a date.
    if "-" not in word:
        return None
    try:
        moment = datetime.fromisoformat(word)
    except ValueError:
        return None
    if moment.tzinfo is not None:
        return moment
    # A local date may have another UTC offset than now (summer time).
    local = now.tzinfo is not UTC
    return moment.astimezone() if local else moment.replace(tzinfo=UTC)
