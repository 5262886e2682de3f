"""Prints what rich renders: on a terminal as it is, elsewhere without blanks at the ends of lines."""

import io
import sys

from rich.console import Console, RenderableType


def show(what: RenderableType, *, soft_wrap: bool = False) -> None:
    """Print on standard output. `soft_wrap` leaves long lines whole where there is no terminal."""
    if sys.stdout.isatty():
        Console(highlight=False).print(what)
        return
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(what, soft_wrap=soft_wrap)
    sys.stdout.write(without_trailing_blanks(captured.get()))


def as_text(what: RenderableType, width: int) -> str:
    """The same for a file: lines of at most `width` columns, without colours."""
    text = io.StringIO()
    Console(file=text, highlight=False, width=width, color_system=None).print(what)
    return without_trailing_blanks(text.getvalue())


def without_trailing_blanks(text: str) -> str:
    """The text with no blank before the end of a line."""
    return (
        "".join(f"{line.rstrip()}\n" for line in text.split("\n")[:-1]) + text.rpartition("\n")[2]
    )
