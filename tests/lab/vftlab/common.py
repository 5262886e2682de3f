# SPDX-License-Identifier: MIT
"""Paths, errors, progress and subprocesses shared by the lab's outside half."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

LAB = Path(__file__).resolve().parent.parent
TREE = LAB.parent.parent

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANNOT = 3


class LabError(Exception):
    """The lab cannot continue; the message is one line for the user, `code` the exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


def cache_dir() -> Path:
    """Where images are kept: $VFTRACE_LAB_CACHE, else vftrace/lab in the user's cache."""
    own = os.environ.get("VFTRACE_LAB_CACHE")
    if own:
        return Path(own).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vftrace" / "lab"


def digest(*parts: str | bytes) -> str:
    """A short hash of all parts, for names of cached things."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:16]


def digest_files(paths: Sequence[Path]) -> str:
    """A short hash of the files' names and contents."""
    parts: list[str | bytes] = []
    for path in sorted(paths):
        parts += [path.name, path.read_bytes()]
    return digest(*parts)


class Progress:
    """One line when a step starts, one when it ends, and a sign of life in between.

    Lines go to standard error with the seconds since the start of the program.
    """

    HEARTBEAT_S = 15.0

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        with self._lock:
            seconds = time.monotonic() - self._start
            print(f"lab {seconds:6.1f}s  {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        begun = time.monotonic()
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.HEARTBEAT_S):
                self.say(f"{text}: still at it after {time.monotonic() - begun:.0f} s")

        self.say(text)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        self.say(f"{text}: done in {time.monotonic() - begun:.1f} s")


def run(command: Sequence[str | Path], log: Path, cwd: Path | None = None) -> None:
    """Run `command` with its output appended to `log`.

    Raises LabError that names the command and the end of its output if it fails.
    """
    words = [str(word) for word in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        out.write(("$ " + " ".join(words) + "\n").encode())
        out.flush()
        try:
            result = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd, check=False
            )
        except FileNotFoundError:
            raise LabError(f"{words[0]} is not installed", EXIT_CANNOT) from None
    if result.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        start = max(i for i, line in enumerate(lines) if line.startswith("$ "))
        errors = [line for line in lines[start:] if re.search(r"\berror\b|^E:", line)]
        said = (errors or lines)[0 if errors else -1].strip()
        raise LabError(f"{Path(words[0]).name} failed ({result.returncode}): {said} (see {log})")


def output(command: Sequence[str | Path]) -> str:
    """Standard output of `command`; LabError with its last line of error if it fails."""
    words = [str(word) for word in command]
    try:
        result = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise LabError(f"{words[0]} is not installed", EXIT_CANNOT) from None
    if result.returncode:
        said = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise LabError(f"{Path(words[0]).name} failed ({result.returncode}): {said}")
    return result.stdout
