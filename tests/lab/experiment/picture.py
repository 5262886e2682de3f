# SPDX-License-Identifier: MIT
"""The longest gap of every run as one picture: a bar for each, in the colours of what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from experiment.cases import CASES
from experiment.table import MS, Result

COLOURS = {
    "VF attached": "#d95f02",
    "blackout": "#222222",
    "destination's resume": "#777777",
    "wait for unplug": "#e7298a",
    "VF gone": "#e6ab02",
    "VF probing": "#7570b3",
    "VF configuring": "#a6a2d6",
    "VF's link": "#1b9e77",
    "guest not heard yet": "#66a61e",
    "host busy": "#b3cde3",
    "answers late": "#fbb4ae",
    "network, not seen from the hosts": "#eeeeee",
}
LEFT, RIGHT, WIDTH, ROW, BAR, TOP = 310, 60, 1000, 26, 16, 64
LEGEND_COLUMNS = 4
SVG = "http://www.w3.org/2000/svg"


def svg(results: Sequence[Result]) -> str:
    """Time runs to the right, on one scale; the mark on each bar is as far as QEMU's downtime goes."""
    longest = max(result.gap["ns"] for result in results)
    scale = (WIDTH - LEFT - RIGHT) / longest
    legend = -(-len(COLOURS) // LEGEND_COLUMNS)
    height = TOP + ROW * len(results) + 30 + 18 * legend
    parts = [
        f'<svg xmlns="{SVG}" width="{WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(10, 20, "Longest time without answers, and what the hosts saw meanwhile", size=15),
        _text(
            10, 40, "| as long as QEMU's downtime. Seconds of an emulation: their structure counts."
        ),
    ]
    for number, result in enumerate(results):
        y = TOP + ROW * number
        gap, truth = result.gap, result.truth
        title = f"{CASES[truth['case']].title}, {truth['run'].rpartition('-')[2]}"
        parts.append(_text(LEFT - 8, y + 12, title, anchor="end"))
        for span in gap["spans"]:
            x = LEFT + (span["start_at_ns"] - gap["start_at_ns"]) * scale
            width = max((span["end_at_ns"] - span["start_at_ns"]) * scale, 0.5)
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"'
                f' fill="{COLOURS[span["name"]]}"><title>{escape(span["name"])}</title></rect>'
            )
        qemu = LEFT + truth["migration"]["query_migrate"]["downtime"] * MS * scale
        parts.append(f'<path d="M{qemu:.1f} {y - 3}v{BAR + 6}" stroke="#e41a1c" stroke-width="2"/>')
        end = LEFT + gap["ns"] * scale + 4
        parts.append(_text(end, y + 12, f"{gap['ns'] / 1e9:.1f} s"))
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = 10 + number % LEGEND_COLUMNS * (WIDTH // LEGEND_COLUMNS)
        y = TOP + ROW * len(results) + 20 + 18 * (number // LEGEND_COLUMNS)
        parts.append(
            f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}" stroke="#999"/>'
        )
        parts.append(_text(x + 18, y + 10, name))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
    )
