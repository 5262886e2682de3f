# SPDX-License-Identifier: MIT
"""Quantities as people write them. Expected values are arithmetic done by hand."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vftrace.errors import UsageError
from vftrace.units import (
    format_bytes,
    format_ns,
    format_rate,
    parse_bits_per_second,
    parse_duration,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("250ms", 250_000_000),
        ("6s", 6_000_000_000),
        ("2m", 120_000_000_000),
        ("1.5", 1_500_000_000),
        (".5", 500_000_000),
        ("3", 3_000_000_000),
        ("10us", 10_000),
        ("10µs", 10_000),
        ("7ns", 7),
        ("1h", 3_600_000_000_000),
        (" 1 s ", 1_000_000_000),
        ("0", 0),
        ("0.1s", 100_000_000),
        ("1.000000001s", 1_000_000_001),
        ("1d", 86_400_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("2m 5s", 125_000_000_000),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        ".",
        "abc",
        "-1s",
        "+1",
        "1 2",
        "1e3",
        "nan",
        "1w",
        "1h30",
        "1sec",
        "5M",
        "٣s",
        "1" * 40,
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_duration(text) >= 0


@given(st.integers(min_value=0, max_value=10**16))
def test_whole_nanoseconds_are_read_exactly(ns: int) -> None:
    assert parse_duration(f"{ns}ns") == ns
    assert parse_duration(f"{ns // 10**9}.{ns % 10**9:09}") == ns


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("25Gbit", 25_000_000_000),
        ("25gbit/s", 25_000_000_000),
        ("100Mbit", 100_000_000),
        ("1.5gbps", 1_500_000_000),
        ("10kbits", 10_000),
        ("1T", 1_000_000_000_000),
        ("25G/s", 25_000_000_000),
        ("64bit", 64),
    ],
)
def test_bit_rates(text: str, bits: int) -> None:
    assert parse_bits_per_second(text) == bits


@pytest.mark.parametrize(
    "text", ["", "0", "25", "0Gbit", "0.1bit", "25/s", "Gbit", "-1Gbit", "25GB", "25Gib", "fast"]
)
def test_what_is_no_bit_rate(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bits_per_second(text)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (850, "850 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (12_340, "12.3 us"),
        (999_960, "1.00 ms"),
        (9_996_000, "10.0 ms"),
        (250_000_000, "250 ms"),
        (1_000_000_000, "1.00 s"),
        (59_900_000_000, "59.9 s"),
        (59_990_000_000, "1m00s"),
        (245_000_000_000, "4m05s"),
        (3_600_000_000_000, "1h00m00s"),
        (-1_500, "-1.50 us"),
    ],
)
def test_nanoseconds_for_people(ns: int, text: str) -> None:
    assert format_ns(ns) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1_023, "1023 B"),
        (1_024, "1.00 KiB"),
        (1_536, "1.50 KiB"),
        (1_048_575, "1.00 MiB"),
        (64 * 2**30, "64.0 GiB"),
        (2**60, "1.00 EiB"),
        (-2_048, "-2.00 KiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_rates_for_people() -> None:
    assert format_rate(1.5 * 2**20) == "1.50 MiB/s"
    assert format_rate(0.4) == "0 B/s"


@given(st.integers(min_value=0, max_value=10**18))
def test_a_size_for_people_is_within_half_a_percent(count: int) -> None:
    number, unit = format_bytes(count).split()
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(float(number) * factor - count) <= 0.005 * count
