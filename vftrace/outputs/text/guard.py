# SPDX-License-Identifier: MIT
"""Draws a part so that an error in it does not affect the other parts."""

from collections.abc import Callable, Iterable, Sequence

from rich.console import RenderableType
from rich.text import Text

from vftrace.faults import FAULTS, Where

STYLE = "bold yellow"


def guarded(
    what: str, render: Callable[[], Iterable[RenderableType]], where: Where = Where.REPORT
) -> Sequence[RenderableType]:
    """Return the part, or one line with the reason why it could not be drawn; the error is counted."""
    try:
        return tuple(render())
    except Exception as error:
        FAULTS.contained(where, error, f"{what} is not drawn")
        said = (
            f"! {what}: not shown, because of an error in vftrace ({type(error).__name__}: {error})"
        )
        return (Text(said, STYLE),)
