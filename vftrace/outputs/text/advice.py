# SPDX-License-Identifier: MIT
"""Advice in words, and its part of the text report."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vftrace.analysis.advice.advise import advise
from vftrace.model.advice import Advice, Effect
from vftrace.model.report import MigrationReport
from vftrace.outputs.text.glyphs import Glyphs, clean
from vftrace.units import format_ns

TITLE = "What to do about it"

_FIGURES = {
    "downtime": "downtime",
    "total": "time in total",
    "postcopy": "post-copy phase",
    "held": "time that a vCPU was held or waited",
    "service": "time without answers",
    "device": "time without the VF",
}


def effect_words(effect: Effect) -> str:
    """`downtime 924 ms, then about 21.3 ms (10.6 to 51.9 ms; the rest ...)`."""
    name = _FIGURES[effect.figure]
    was = f"{name} " if effect.was_ns is None else f"{name} {format_ns(effect.was_ns)}, then "
    bounds = f"{format_ns(effect.least_ns)} to {format_ns(effect.most_ns)}"
    if effect.expected_ns is None:
        return f"{was}{bounds} ({effect.error})"
    return f"{was}about {format_ns(effect.expected_ns)} ({bounds}: {effect.error})"


def advice_rows(advice: Advice) -> Iterator[tuple[str, str]]:
    """Yield the parts of an advice with their headings."""
    yield "because", "; ".join(advice.evidence)
    yield "change", advice.setting
    for effect in advice.effects:
        yield "expect", effect_words(effect)


def advice_part(found: MigrationReport, g: Glyphs) -> Iterator[RenderableType]:
    """The part of the report; nothing where there is no advice."""
    given = advise(found)
    if not given:
        return
    yield Text()
    yield Text(TITLE, "bold")
    for advice in given:
        yield Text(f"{advice.rule}: {clean(advice.cause, g)}")
        table = Table.grid(padding=(0, 2, 0, 0))
        for head, words in advice_rows(advice):
            table.add_row(Text(f"  {head}", "dim"), Text(clean(words, g), overflow="fold"))
        yield table
