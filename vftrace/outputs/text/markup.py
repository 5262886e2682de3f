# SPDX-License-Identifier: MIT
"""Escapes text for HTML."""

import html

from vftrace.model import figures


def escape(text: str) -> str:
    """Escape a text for HTML and its attributes: without markup, control characters, marks that change the direction of
    writing, and characters that UTF-8 cannot encode (a recording may hold lone surrogates)."""
    return html.escape(figures.printable(text))
