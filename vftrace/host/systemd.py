"""What systemd gives a service in its environment (systemd.exec(5))."""

import os
from pathlib import Path


def directory(variable: str) -> Path | None:
    """The directory that a variable such as `STATE_DIRECTORY` names, the first if it names several; None without."""
    first = os.environ.get(variable, "").split(":")[0]
    return Path(first) if first else None
