"""Text in HTML."""

import html

from vftrace.model import figures


def escape(text: str) -> str:
    """Text for HTML and its attributes: no markup, nothing that steers a terminal or turns the writing around, and
    nothing that UTF-8 cannot encode (a recording may hold lone surrogates)."""
    return html.escape(figures.printable(text))
