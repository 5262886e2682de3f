# SPDX-License-Identifier: MIT
"""The characters for bars and lines, in Unicode and in ASCII."""

from collections.abc import Sequence

import msgspec


class Glyphs(msgspec.Struct, frozen=True):
    """A set of characters. `levels` rise from an empty to a full cell."""

    ascii: bool
    full: str
    thin: str
    track: str
    levels: str
    rule: str
    cursor: str
    arrow: str
    ellipsis: str
    up: str
    down: str


UNICODE = Glyphs(
    ascii=False,
    full="█",
    thin="▏",
    track="·",
    levels=" ▁▂▃▄▅▆▇█",
    rule="─",
    cursor="▶",
    arrow="→",
    ellipsis="…",
    up="↑",
    down="↓",
)
ASCII = Glyphs(
    ascii=True,
    full="#",
    thin="|",
    track=".",
    levels=" .:-=+*#@",
    rule="-",
    cursor=">",
    arrow="->",
    ellipsis="...",
    up="^",
    down="v",
)


def glyphs(*, ascii: bool) -> Glyphs:  # noqa: A002
    """Return the set for this terminal."""
    return ASCII if ascii else UNICODE


def clean(text: str, g: Glyphs) -> str:
    """Return a name from a command line without control characters, and in ASCII if needed."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown.encode("ascii", "replace").decode() if g.ascii else shown


def shorten(text: str, width: int, g: Glyphs) -> str:
    """Cut a text to at most `width` characters, with an ellipsis at the end."""
    if len(text) <= width:
        return text
    return (text[: max(0, width - len(g.ellipsis))] + g.ellipsis)[:width]


def shorten_middle(text: str, width: int, g: Glyphs) -> str:
    """Cut a text to at most `width` characters in the middle, because names often differ in their ends."""
    if len(text) <= width or width < len(g.ellipsis) + 2:
        return text[:width]
    kept = width - len(g.ellipsis)
    return text[: kept - kept // 2] + g.ellipsis + text[len(text) - kept // 2 :]


def span(start: float, end: float, width: int, g: Glyphs) -> str:
    """Draw an interval on a line of `width` cells; `start` and `end` are fractions of the line.

    An interval shorter than half a cell gets a thin mark, so that it is visible.
    """
    if width <= 0:
        return ""
    if (end - start) * width < 0.5:
        at = min(width - 1, max(0, int(start * width)))
        return g.track * at + g.thin + g.track * (width - at - 1)
    first = min(width - 1, max(0, round(start * width)))
    last = min(width, max(first + 1, round(end * width)))
    return g.track * first + g.full * (last - first) + g.track * (width - last)


def sparkline(values: Sequence[float | None], width: int, g: Glyphs) -> str:
    """Draw the last `width` values, each as high as its share of the largest; `?` if not known."""
    shown = values[-width:] if width > 0 else ()
    largest = max((v for v in shown if v is not None), default=0)
    return "".join(level(value, largest, g) for value in shown)


def level(value: float | None, largest: float, g: Glyphs) -> str:
    """Draw one cell as high as a value's share of the largest; `?` if it is not known."""
    if value is None:
        return "?"
    if value <= 0 or largest <= 0:
        return g.levels[0]
    steps = len(g.levels) - 1
    return g.levels[max(1, min(steps, round(value / largest * steps)))]
