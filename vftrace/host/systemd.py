# SPDX-License-Identifier: MIT
"""Reads the variables that systemd sets in a service's environment (systemd.exec(5))."""

import os
from pathlib import Path


def directory(variable: str) -> Path | None:
    """Return the directory that a variable such as `STATE_DIRECTORY` names, or the first of several; None without
    one."""
    first = os.environ.get(variable, "").split(":")[0]
    return Path(first) if first else None
