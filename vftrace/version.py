# SPDX-License-Identifier: MIT
"""Finds the versions that run: vftrace's version and commit, Python, and the BCC that compiles the BPF programs."""

import platform
import subprocess
from pathlib import Path

_COMMIT_FILE = "_commit"
"""A file beside this module in a wheel; tools/hatch_build.py writes it when it builds the wheel."""


def version_line() -> str:
    """Return the version, with the commit, Python's and BCC's versions where they are known."""
    # here, so that tools/hatch_build.py can use this file before there is a package
    from vftrace import __version__

    commit = commit_of(Path(__file__).parent)
    parts = [f"commit {commit}"] if commit else []
    parts += [f"Python {platform.python_version()}", f"BCC {bcc_version() or 'not found'}"]
    return f"vftrace {__version__} ({', '.join(parts)})"


def commit_of(package: Path) -> str | None:
    """Return the commit that a package was built from, or the commit of its checkout; None if neither is known.

    A checkout with changes has a `+` behind its commit.
    """
    try:
        return (package / _COMMIT_FILE).read_text().strip()
    except OSError:
        return _checked_out(package.parent)


def _checked_out(root: Path) -> str | None:
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def bcc_version() -> str | None:
    """Return the version of BCC's Python bindings; None without them."""
    from vftrace.errors import MachineError
    from vftrace.probes.bcc import process

    try:
        return process.version()
    except MachineError:
        return None
