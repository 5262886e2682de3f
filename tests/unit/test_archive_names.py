# SPDX-License-Identifier: MIT
"""Names of kept recordings are safe, sort by time, and are read back as they were made."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vftrace.archive.names import OUTCOMES, RUNNING, FileName, safe_vm
from vftrace.model.migration import Outcome

AT = datetime(2026, 11, 29, 22, 55, 6, 123_000, UTC)


def test_a_name_shows_when_who_and_how() -> None:
    name = FileName(AT, "web-1", RUNNING, "1f0c9a3e")
    assert str(name) == "20261129T225506.123Z-web-1-running-1f0c9a3e.vft.gz"
    assert name.running
    assert str(name.ended("failed")) == "20261129T225506.123Z-web-1-failed-1f0c9a3e.vft.gz"
    assert not name.ended("failed").running


def test_another_zone_is_the_same_time() -> None:
    there = AT.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert str(FileName(there, "a", RUNNING, "00000000")).startswith("20261129T225506.123Z-")


def test_every_outcome_has_a_name() -> None:
    assert set(OUTCOMES) == {str(outcome) for outcome in Outcome}


@given(
    st.text(max_size=200),
    st.sampled_from((RUNNING, *OUTCOMES)),
    st.integers(0, 0xFFFF_FFFF),
    st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_a_name_is_read_back_whatever_a_vm_is_called(
    vm: str, outcome: str, unique: int, at: datetime
) -> None:
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    made = FileName(at, safe_vm(vm, None, 7), outcome, f"{unique:08x}")
    text = str(made)
    assert FileName.parse(text) == made
    assert "/" not in text
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 128


@pytest.mark.parametrize(
    ("name", "uuid", "safe"),
    [
        ("../../etc/passwd", None, "etc_passwd"),
        ("web 1", None, "web_1"),
        ("-rf", None, "rf"),
        ("\x1b[31m", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "31m"),
        ("…", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810"),
        (None, None, "pid-7"),
    ],
)
def test_a_vm_is_named_safely(name: str | None, uuid: str | None, safe: str) -> None:
    assert safe_vm(name, uuid, 7) == safe


@pytest.mark.parametrize(
    "name",
    [
        "index.json",
        "trace.vft.gz",
        "20261129T225506.123Z-web-lost-1f0c9a3e.vft.gz",
        "20261329T225506.123Z-web-failed-1f0c9a3e.vft.gz",
        "20261129T225506.123Z-web-failed-1f0c9a3e.vft.gz.part",
        "20261129T225506.123Z-../web-failed-1f0c9a3e.vft.gz",
    ],
)
def test_another_file_is_not_ours(name: str) -> None:
    assert FileName.parse(name) is None
