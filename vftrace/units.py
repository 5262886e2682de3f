# SPDX-License-Identifier: MIT
"""Reading and writing quantities: durations in nanoseconds, sizes in bytes, rates per second."""

import re
from decimal import ROUND_HALF_EVEN, Decimal

from vftrace.errors import UsageError

_NS_PER_UNIT = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60 * 1_000_000_000,
    "h": 3600 * 1_000_000_000,
    "d": 24 * 3600 * 1_000_000_000,
}
_BITS_PER_UNIT = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

_PART = r"(\d+(?:\.\d*)?|\.\d+)\s*(ns|us|µs|μs|ms|s|m|h|d)"
_DURATION = re.compile(rf"{_PART}?", re.ASCII)
_DURATION_PART = re.compile(_PART, re.ASCII)
_DURATIONS = re.compile(rf"(?:{_PART}\s*)+", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_BIT_RATE = re.compile(
    r"(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgt]?)(?:bits?|bps)|([kmgt]))(?:/s)?",
    re.ASCII | re.IGNORECASE,
)

# Ten years: a longer time is a typing error, and 2**63 ns (292 years) is never reached.
_LONGEST_NS = 10 * 365 * 24 * _NS_PER_UNIT["h"]


def parse_duration(text: str) -> int:
    """Read a duration such as `250ms`, `6s`, `2m`, `1h30m`, `7d` or `1.5` as integer nanoseconds.

    Units: ns, us, ms, s, m, h, d; a bare number is seconds. Raises `UsageError` for anything else,
    negative values and more than ten years.
    """
    stripped = text.strip()
    match = _DURATION.fullmatch(stripped)
    if match is None and _DURATIONS.fullmatch(stripped) is None:
        raise UsageError(
            f"not a duration: {text!r} (such as 250ms, 6s, 2m, 1h30m; a bare number is seconds)"
        )
    parts = [match.groups()] if match else _DURATION_PART.findall(stripped)
    exact = Decimal(0)
    for number, unit in parts:
        plain = (unit or "s").replace("µ", "u").replace("μ", "u")
        exact += Decimal(number) * _NS_PER_UNIT[plain]
    if exact > _LONGEST_NS:
        raise UsageError(f"duration too long: {text!r} (at most ten years)")
    return int(exact.to_integral_value(ROUND_HALF_EVEN))


def parse_size(text: str) -> int:
    """Read a size such as `512M`, `1G`, `1.5GiB` or `4096` as bytes; prefixes are binary, as systemd's.

    Raises `UsageError` for anything else and for zero.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a size: {text!r} (such as 512M, 1G; a bare number is bytes)")
    number, prefix = match.groups()
    size = int(Decimal(number) * 1024 ** " kmgt".index(prefix.lower() or " "))
    if size == 0:
        raise UsageError(f"a size must be more than zero: {text!r}")
    return size


def parse_bits_per_second(text: str) -> int:
    """Read a link speed such as `25Gbit`, `100Mbit/s`, `1.5gbps` or `64bit` as bits per second.

    Prefixes are decimal (k, M, G, T). Raises `UsageError` for anything else, a number without a unit, and zero.
    """
    match = _BIT_RATE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a bit rate: {text!r} (a number with a unit: 25Gbit, 100Mbit)")
    number, *prefixes = match.groups(default="")
    bits = int(Decimal(number) * _BITS_PER_UNIT["".join(prefixes).lower()])
    if bits == 0:
        raise UsageError(f"bit rate must be more than zero: {text!r}")
    return bits


def format_ns(ns: int) -> str:
    """Nanoseconds for people, three digits under a minute: `850 ns`, `12.3 ms`, `4m05s`."""
    if ns < 0:
        return "-" + format_ns(-ns)
    if ns < 1_000:
        return f"{ns} ns"
    for unit, limit in (("us", 1_000), ("ms", 1_000), ("s", 60)):
        # Compared after rounding, so that 999.96 us reads 1.00 ms and never 1000 us.
        text = _three_digits(ns / _NS_PER_UNIT[unit])
        if float(text) < limit:
            return f"{text} {unit}"
    seconds = (ns + _NS_PER_UNIT["s"] // 2) // _NS_PER_UNIT["s"]
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02}m{seconds:02}s" if hours else f"{minutes}m{seconds:02}s"


def format_bytes(count: float) -> str:
    """A size in bytes with binary prefixes, three digits: `512 B`, `1.50 KiB`, `2.00 MiB`."""
    if count < 0:
        return "-" + format_bytes(-count)
    if count < 1_023.5:
        return f"{count:.0f} B"
    value = count / 1_024
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        text = _three_digits(value)
        if float(text) < 1_024:
            return f"{text} {unit}"
        value /= 1_024
    return f"{_three_digits(value)} EiB"


def format_rate(bytes_per_second: float) -> str:
    """A rate given in bytes per second, as `format_bytes` writes sizes: `1.50 MiB/s`."""
    return f"{format_bytes(bytes_per_second)}/s"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
