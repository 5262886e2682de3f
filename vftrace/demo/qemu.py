# SPDX-License-Identifier: MIT
"""Starts QEMU, talks to it, and keeps its own account of its migrations.

Every QEMU started here is killed by the kernel when its parent dies (PR_SET_PDEATHSIG) and by its
context manager otherwise. QMP runs over a socket pair that QEMU inherits, so there is no socket
file to clean up or to wait for. All times are CLOCK_BOOTTIME nanoseconds; QMP's own event times are
wall-clock and are converted on arrival.
"""

import asyncio
import ctypes
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError

from vftrace.errors import MachineError, VftraceError

# A QEMU that is killed on purpose is an error to the library; it must not print that on the user's
# terminal.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

_BINARIES = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm", "qemu-kvm")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_TIMEOUT = 30.0
"""Seconds after which anything waited for here counts as never coming."""


class QemuError(VftraceError):
    """QEMU ended, refused a command or never did what was waited for."""


def boottime_ns() -> int:
    """Now, CLOCK_BOOTTIME nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def find_qemu() -> Path:
    """The installed QEMU for x86-64. Raises MachineError, with what to install, when it or /dev/kvm
    is missing.
    """
    found = next((path for name in _BINARIES if (path := shutil.which(name))), None)
    if found is None:
        raise MachineError("QEMU is not installed", "apt-get install qemu-system-x86")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise MachineError(
            "/dev/kvm is missing or not accessible", "modprobe kvm; run as root or in group kvm"
        )
    return Path(found)


def qemu_version(binary: Path) -> tuple[int, int, int]:
    """Major, minor and micro version that the program prints of itself."""
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if match is None:
        raise QemuError(f"{binary} --version prints no version")
    return int(match[1]), int(match[2]), int(match[3])


class QmpEvent(msgspec.Struct, frozen=True):
    """An event QEMU sent, at QEMU's own time."""

    at_ns: int
    pid: int
    name: str
    data: Mapping[str, Any]


class MigrationFigures(msgspec.Struct, frozen=True):
    """One answer to query-migrate: times in milliseconds and sizes in bytes as QEMU gives them,
    None where it is silent.
    """

    at_ns: int
    status: str | None
    dirty_sync_count: int | None
    downtime_ms: int | None
    expected_downtime_ms: int | None
    setup_time_ms: int | None
    total_time_ms: int | None
    transferred_bytes: int | None
    remaining_bytes: int | None
    dirty_pages_rate: int | None
    normal_pages: int | None
    duplicate_pages: int | None
    postcopy_requests: int | None
    error_desc: str | None

    @classmethod
    def of(cls, at_ns: int, answer: Mapping[str, Any]) -> "MigrationFigures":
        """Make it from query-migrate's answer (qapi/migration.json, MigrationInfo)."""
        ram: Mapping[str, Any] = answer.get("ram", {})
        return cls(
            at_ns=at_ns,
            status=answer.get("status"),
            dirty_sync_count=ram.get("dirty-sync-count"),
            downtime_ms=answer.get("downtime"),
            expected_downtime_ms=answer.get("expected-downtime"),
            setup_time_ms=answer.get("setup-time"),
            total_time_ms=answer.get("total-time"),
            transferred_bytes=ram.get("transferred"),
            remaining_bytes=ram.get("remaining"),
            dirty_pages_rate=ram.get("dirty-pages-rate"),
            normal_pages=ram.get("normal"),
            duplicate_pages=ram.get("duplicate"),
            postcopy_requests=ram.get("postcopy-requests"),
            error_desc=answer.get("error-desc"),
        )


class Qemu:
    """A running QEMU. Made by `start`; `events` grows as QEMU reports."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        command: tuple[str, ...],
        started_at_ns: int,
        log: Path,
    ) -> None:
        self.process = process
        self.command = command
        self.started_at_ns = started_at_ns
        self.log = log
        self.ended_at_ns: int | None = None
        self.events: list[QmpEvent] = []
        self._qmp = QMPClient()
        self._changed = asyncio.Event()

    @property
    def pid(self) -> int:
        """Process id, in this program's pid namespace."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is still there."""
        return self.ended_at_ns is None

    async def command_qmp(self, command: str, **arguments: object) -> Any:
        """Run a QMP command ("_" in argument names stands for "-") and return its answer. Raises
        QemuError.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await self._qmp.execute(command, named)
        except ExecuteError as error:
            raise QemuError(f"QEMU {self.pid} refused {command}: {error}") from error
        except (QMPError, EOFError, OSError) as error:
            raise QemuError(
                f"QEMU {self.pid} ended while asked to {command}{self._last_words()}"
            ) from error
        except TimeoutError as error:
            raise QemuError(
                f"QEMU {self.pid} did not answer {command} within {_TIMEOUT:.0f} s"
            ) from error

    async def wait_event(
        self, wanted: Callable[[QmpEvent], bool], what: str, since: int = 0
    ) -> QmpEvent:
        """The first `wanted` one of `events[since:]`, or to come. Raises QemuError when QEMU ends
        or time is up.
        """
        seen = since
        try:
            async with asyncio.timeout(_TIMEOUT):
                while True:
                    for event in self.events[seen:]:
                        if wanted(event):
                            return event
                    seen = len(self.events)
                    if not self.alive:
                        raise QemuError(f"QEMU {self.pid} ended before {what}{self._last_words()}")
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError as error:
            raise QemuError(f"QEMU {self.pid}: no {what} within {_TIMEOUT:.0f} s") from error

    async def query_migrate(self) -> MigrationFigures:
        """QEMU's figures now."""
        answer = await self.command_qmp("query-migrate")
        return MigrationFigures.of(boottime_ns(), answer)

    async def read_u32(self, address: int) -> int:
        """A little-endian word of guest physical memory, read by the monitor: the vCPU is not
        disturbed.
        """
        text = await self.command_qmp("human-monitor-command", command_line=f"xp/1xw {address:#x}")
        match = re.search(r": 0x([0-9a-f]{8})", str(text))
        if match is None:
            raise QemuError(
                f"QEMU {self.pid} cannot read guest memory at {address:#x}: {str(text).strip()}"
            )
        return int(match[1], 16)

    async def wait_u32(self, address: int, wanted: Callable[[int], bool], what: str) -> int:
        """Read a word of guest memory every 5 ms until it is `wanted`. Raises QemuError when time
        is up.
        """
        try:
            async with asyncio.timeout(_TIMEOUT):
                while not wanted(value := await self.read_u32(address)):
                    await asyncio.sleep(0.005)
                return value
        except TimeoutError as error:
            raise QemuError(f"QEMU {self.pid}: no {what} within {_TIMEOUT:.0f} s") from error

    async def pass_file(self, name: str, descriptor: int) -> None:
        """Give QEMU an open file under `name`, for a "fd:NAME" address."""
        self._qmp.send_fd_scm(descriptor)
        await self.command_qmp("getfd", fdname=name)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; a process that is gone already does not count as an error."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the process to end; returns `ended_at_ns`."""
        await self.process.wait()
        if self.ended_at_ns is None:
            self.ended_at_ns = boottime_ns()
            self._changed.set()
        return self.ended_at_ns

    async def _read_events(self, listener: EventListener) -> None:
        async for message in listener:
            self.events.append(_event(message, self.pid))
            self._changed.set()

    def _last_words(self) -> str:
        lines = (
            self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        )
        return f": {lines[-1]}" if lines else ""


@asynccontextmanager
async def start(binary: Path, arguments: tuple[str, ...], log: Path) -> AsyncIterator[Qemu]:
    """A QEMU with `arguments` and a QMP monitor of its own; killed at the end, whatever happened.
    `log` gets its messages.
    """
    ours, theirs = socket.socketpair()
    qmp = ("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control")
    command = (str(binary), *arguments, *qmp)
    with theirs, log.open("wb") as messages:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=(theirs.fileno(),),
            # A group of its own, so that Ctrl-C in the terminal reaches us and not QEMU: we end it
            # in order.
            start_new_session=True,
            preexec_fn=_die_with_parent(os.getpid()),
        )
    qemu = Qemu(process, command, boottime_ns(), log)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_end, qemu)
        listener = EventListener()
        qemu._qmp.register_listener(listener)
        try:
            async with asyncio.timeout(_TIMEOUT):
                await qemu._qmp.connect(ours)
        except (QMPError, EOFError, OSError) as error:
            await qemu.ended()
            raise QemuError(f"QEMU did not start{qemu._last_words()}") from error
        stack.push_async_callback(_disconnect, qemu)
        for background in (qemu._read_events(listener), qemu.ended()):
            stack.push_async_callback(_cancel, asyncio.ensure_future(background))
        yield qemu


def _event(message: Message, pid: int) -> QmpEvent:
    content: dict[str, Any] = dict(message)
    stamp = content["timestamp"]
    wall_ns = stamp["seconds"] * 1_000_000_000 + stamp["microseconds"] * 1000
    at_ns = wall_ns - time.time_ns() + boottime_ns()
    return QmpEvent(at_ns, pid, content["event"], content.get("data", {}))


def _die_with_parent(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # died in between: nobody will signal us
            os._exit(1)

    return before_exec


async def _end(qemu: Qemu) -> None:
    qemu.kill(signal.SIGKILL)
    await qemu.ended()


async def _disconnect(qemu: Qemu) -> None:
    with suppress(QMPError, EOFError, OSError):
        await qemu._qmp.disconnect()


async def _cancel(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
