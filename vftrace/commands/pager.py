# SPDX-License-Identifier: MIT
"""Shows a long text on a terminal through a pager, as git and systemctl do."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys

DEFAULT = "less -FRSX"


def is_wanted(*, no_pager: bool) -> bool:
    """Whether a pager is used: standard output is a terminal, and no option or variable turns the pager off."""
    return not no_pager and sys.stdout.isatty() and command() is not None


def command() -> list[str] | None:
    """Return $VFTRACE_PAGER, else $PAGER, else less; None if that is empty, `cat`, or not installed."""
    chosen = next(
        (os.environ[name] for name in ("VFTRACE_PAGER", "PAGER") if name in os.environ), DEFAULT
    )
    try:
        words = shlex.split(chosen)
    except ValueError:
        return None
    if not words or words == ["cat"] or shutil.which(words[0]) is None:
        return None
    return words


def page(text: str) -> None:
    """Show a text in the pager, until the user leaves it."""
    words = command()
    environment = {"LESS": "FRSX", **os.environ}
    if "SUDO_UID" in os.environ:
        # less(1) can run commands and write files, so it must not run as another user.
        environment["LESSSECURE"] = "1"
    process = None
    if words is not None:
        with contextlib.suppress(OSError):
            process = subprocess.Popen(words, stdin=subprocess.PIPE, env=environment)
    if process is None or process.stdin is None:
        sys.stdout.write(text)
        return
    # Ctrl-C is for the pager: it ends a search.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(text.encode(sys.stdout.encoding or "utf-8", "replace"))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
