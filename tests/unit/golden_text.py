# SPDX-License-Identifier: MIT
"""Compares rendered text with files that a person has checked once.

VFTRACE_UPDATE_TEXT=1 writes the files anew (recordings were made again, the drawing was changed on
purpose); look at the difference before you commit it.
"""

import os
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDINGS = GOLDEN / "recordings"


def recording(name: str) -> Path:
    """The recording of a scenario."""
    return RECORDINGS / f"{name}.vft.gz"


def check(name: str, text: str) -> None:
    """Compare with tests/golden/text/NAME.txt; spaces at the ends of lines do not count."""
    shown = "\n".join(line.rstrip() for line in text.splitlines()).rstrip() + "\n"
    path = GOLDEN / "text" / f"{name}.txt"
    if os.environ.get("VFTRACE_UPDATE_TEXT"):
        path.write_text(shown)
    assert shown == path.read_text()
