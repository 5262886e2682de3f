# SPDX-License-Identifier: MIT
"""tinyvmm, a VMM of our own that makes the requests of a migration in a given order.

Used in the emulated machine, where the image has it, and by tests on a real one, which compile it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "tinyvmm/tinyvmm.c"
HEADER = SOURCE.with_name("iommufd.h")
INSTALLED = Path("/usr/bin/tinyvmm")
COMPILE = ("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread")

Answer = dict[str, Any]


class TinyError(Exception):
    """tinyvmm ended; the message is its last output."""


def compiled(into: Path) -> Path:
    """The program, compiled into a directory with this machine's gcc."""
    program = into / "tinyvmm"
    subprocess.run([*COMPILE, "-o", str(program), str(SOURCE)], check=True)
    return program


class TinyVmm:
    """One process. `log` has all its answers, in order: what it did, when, and what came of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.log: list[Answer] = []
        self.pid = process.pid

    def begin(self, line: str) -> None:
        """Tell it one act and do not wait for the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.answer()

    def answer(self) -> Answer:
        """The answer to the earliest act that has none. Raises TinyError if the program has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise TinyError(self._process.stderr.read().strip())
        found: Answer = json.loads(line)
        self.log.append(found)
        return found

    def __call__(self, line: str) -> Answer:
        """Tell it one act and wait for the answer."""
        self.begin(line)
        return self.answer()

    def did(self, what: str) -> list[Answer]:
        """The answers to acts of one kind."""
        return [answer for answer in self.log if answer["what"] == what]

    def peek(self, offset: int) -> int:
        """A register of its device's first BAR; kept out of the log, as poke is."""
        return int(self._register(f"peek {offset}")["value"])

    def poke(self, offset: int, value: int) -> None:
        """Write a register of its device's first BAR."""
        self._register(f"poke {offset} {value}")

    def _register(self, line: str) -> Answer:
        found = self(line)
        if found["ret"]:
            raise TinyError(f"{line} gave {found['ret']}")
        return self.log.pop()

    def end(self) -> None:
        """No more lines: it ends."""
        if self._process.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate(timeout=20)


@contextlib.contextmanager
def tiny_vmm(
    program: Path = INSTALLED, *, memory_mib: int = 16, protect: int = 3
) -> Iterator[TinyVmm]:
    """Start one; `protect` is its KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. It is ended with the context."""
    with subprocess.Popen(
        [str(program), str(memory_mib), str(protect)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            machine = TinyVmm(process)
            machine.answer()
            yield machine
            machine.end()
        finally:
            process.kill()


def join(source: TinyVmm, destination: TinyVmm, port: int) -> None:
    """Connect them, and have the destination wait for a state."""
    destination(f"listen {port}")
    source(f"connect {port}")
    destination("accept")
    destination.begin("receive")


def hand_over(source: TinyVmm, destination: TinyVmm) -> None:
    """Stop the source, send what is left, and run the destination."""
    source("stop")
    source("round")
    source("save")
    destination.answer()
    destination("load")
    destination("run")


def cloud_hypervisor(source: TinyVmm, destination: TinyVmm, port: int, rounds: int = 3) -> None:
    """A migration in the order of Cloud Hypervisor's requests, which is not at hand here.

    By its documentation and code (docs/live_migration.md; vmm/src/lib.rs, send_migration and do_memory_migration;
    vmm/src/vm.rs, pause): all memory is sent before the log is first read, the clock is read once, with the pause,
    the log is read before and after the vCPUs' state, and logging goes off once the destination runs.
    """
    join(source, destination, port)
    source("log on")
    source("copy")
    for _ in range(rounds):
        source("round")
    source("stop")
    source("round")
    source("snapshot")
    source("round")
    source("send")
    destination.answer()
    destination("load")
    destination("run")
    source("log off")


def cloud_hypervisor_local(source: TinyVmm, destination: TinyVmm, name: str) -> None:
    """The same with `--local`: memory is passed on as a file descriptor, and nothing is logged."""
    destination(f"listen @{name}")
    source(f"connect @{name}")
    destination("accept")
    source("share")
    destination("adopt")
    destination.begin("receive")
    source("stop")
    source("snapshot")
    source("send")
    destination.answer()
    destination("load")
    destination("run")
