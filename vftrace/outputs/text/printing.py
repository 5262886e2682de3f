# SPDX-License-Identifier: MIT
"""Prints rich's output: unchanged on a terminal, elsewhere without blanks at the ends of lines."""

import io
import sys

from rich.console import Console, RenderableType


def show(what: RenderableType, *, soft_wrap: bool = False) -> None:
    """Print on standard output. `soft_wrap` leaves long lines whole if there is no terminal."""
    if sys.stdout.isatty():
        Console(highlight=False).print(what)
        return
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(what, soft_wrap=soft_wrap)
    sys.stdout.write(without_trailing_blanks(captured.get()))


def as_text(what: RenderableType, width: int) -> str:
    """Return the text for a file: lines of at most `width` columns, without colours."""
    text = io.StringIO()
    Console(file=text, highlight=False, width=width, color_system=None).print(what)
    return without_trailing_blanks(text.getvalue())


def without_trailing_blanks(text: str) -> str:
    """Return the text without blanks at the ends of lines."""
    return (
        "".join(f"{line.rstrip()}\n" for line in text.split("\n")[:-1]) + text.rpartition("\n")[2]
    )
