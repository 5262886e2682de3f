# SPDX-License-Identifier: MIT
"""Runs inside an emulated host: executes the commands of the outside in order, and keeps the clock.

Both go over virtio serial ports. `agent`: a JSON object a line, {"do": NAME, ...arguments}, answered by
{"returned": ...} or {"error": TEXT}; the host says {"returned": "hello"} first. `clock`: one byte asks,
eight bytes answer with the outside's CLOCK_REALTIME in ns.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from vftlab.job import JobError, say, wait_for

CLOCK_EVERY_S = 1.0
CLOCK_TRIES = 4
NANOSECONDS = struct.Struct("<q")
ADJ_MAXERROR, ADJ_STATUS, ADJ_SETOFFSET, ADJ_NANO = 0x0004, 0x0010, 0x0100, 0x2000
_BILLION = 10**9


class _Timex(ctypes.Structure):
    """struct timex (include/uapi/linux/timex.h)."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("fraction", ctypes.c_long),
        ("rest", ctypes.c_char * 128),
    ]


def _port(name: str) -> int:
    """The serial port of that name, opened."""

    def found() -> list[Path]:
        ports = Path("/sys/class/virtio-ports").glob("*/name")
        return [port for port in ports if port.read_text().strip() == name]

    wait_for(f"the port {name}", 20, found)
    return os.open(f"/dev/{found()[0].parent.name}", os.O_RDWR)


def _adjtimex(timex: _Timex) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(ctypes.byref(timex)) < 0:
        raise JobError(f"adjtimex: {os.strerror(ctypes.get_errno())}")


def _ask(port: int) -> tuple[int, int]:
    """How much the outside's wall clock shows more than ours, and the error of that, ns."""
    before = time.time_ns()
    os.write(port, b"?")
    answer = b""
    while len(answer) < NANOSECONDS.size:
        answer += os.read(port, NANOSECONDS.size - len(answer))
    after = time.time_ns()
    return NANOSECONDS.unpack(answer)[0] - (before + after) // 2, -(-(after - before) // 2)


def set_clock(port: int) -> int:
    """Have our wall clock follow the outside's; its error bound in ns, which the kernel then knows, as of any
    host that has NTP."""
    offset, error = min((_ask(port) for _ in range(CLOCK_TRIES)), key=lambda pair: pair[1])
    if abs(offset) > error:
        seconds, rest = divmod(offset, _BILLION)
        _adjtimex(_Timex(modes=ADJ_SETOFFSET | ADJ_NANO, seconds=seconds, fraction=rest))
        offset = 0
    bound = abs(offset) + error
    _adjtimex(_Timex(modes=ADJ_MAXERROR | ADJ_STATUS, maxerror=-(-bound // 1000), status=0))
    return bound


def _keep_clock(port: int) -> None:
    while True:
        set_clock(port)
        time.sleep(CLOCK_EVERY_S)


def serve(commands: Mapping[str, Callable[..., object]]) -> None:
    """Obey until the command `quit`."""
    clock, agent = _port("clock"), _port("agent")
    say(f"the clock is within {set_clock(clock) / 1e6:.2f} ms of the outside's")
    threading.Thread(target=_keep_clock, args=(clock,), daemon=True).start()
    with os.fdopen(agent, "rb", buffering=0) as lines:

        def answer(what: dict[str, object]) -> None:
            data = json.dumps(what).encode() + b"\n"
            while data:
                data = data[os.write(agent, data) :]

        answer({"returned": "hello"})
        while line := lines.readline():
            request = json.loads(line)
            name = request.pop("do")
            if name == "quit":
                answer({"returned": None})
                return
            try:
                answer({"returned": commands[name](**request)})
            except JobError as failure:
                answer({"error": str(failure)})
            except Exception as failure:
                answer({"error": f"{name}: {type(failure).__name__}: {failure}"})
                with contextlib.suppress(Exception):
                    say(f"{name} failed: {failure!r}")
