# SPDX-License-Identifier: MIT
"""Moments as people name them. Expected values are written out by hand."""

import time
from datetime import UTC, datetime

import pytest

from vftrace.archive.when import parse_when
from vftrace.errors import UsageError

NOW = datetime(2026, 11, 29, 22, 55, 6, tzinfo=UTC)
"""`date -u -d "2026-11-29 22:55:06" +%s` prints NOW_S."""
NOW_S = 1_795_992_906


def test_the_clock_of_these_tests() -> None:
    assert NOW.timestamp() == NOW_S


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", NOW_S),
        ("2h", NOW_S - 7_200),
        ("1h30m", NOW_S - 5_400),
        ("7d", NOW_S - 604_800),
        ("90", NOW_S - 90),
        ("today", NOW_S - 22 * 3600 - 55 * 60 - 6),
        ("Yesterday", NOW_S - 22 * 3600 - 55 * 60 - 6 - 86_400),
        ("02:10", NOW_S - 20 * 3600 - 45 * 60 - 6),
        ("02:10:06", NOW_S - 20 * 3600 - 45 * 60),
        ("2026-11-29", NOW_S - 22 * 3600 - 55 * 60 - 6),
        ("2026-11-29 22:55", NOW_S - 6),
        ("2026-11-29T22:55:06Z", NOW_S),
        ("2026-11-30T00:55:06+02:00", NOW_S),
    ],
)
def test_moments(text: str, seconds: int) -> None:
    assert parse_when(text, NOW) == seconds * 10**9


def test_a_local_date_has_the_offset_of_that_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Berlin a day in July is two hours ahead of UTC, whatever November is."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        now = datetime.fromtimestamp(NOW_S).astimezone()
        july = datetime(2026, 7, 1, 10, 0, tzinfo=UTC).timestamp()
        november = datetime(2026, 11, 1, 11, 0, tzinfo=UTC).timestamp()
        assert parse_when("2026-07-01 12:00", now) == july * 10**9
        assert parse_when("2026-11-01 12:00", now) == november * 10**9
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "2026-13-01", "-1h", "2026-11-29 25:00", "1w", "10y", "٢h"]
)
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        parse_when(text, NOW)
