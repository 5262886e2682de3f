# SPDX-License-Identifier: MIT
"""QEMU's monitor: commands, and events with the time they were read."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vftlab.job import JobError, boottime_ns

ANSWER_S = 60.0


@dataclass(frozen=True)
class Event:
    """A QMP event; `at_ns` is CLOCK_BOOTTIME when it was read."""

    at_ns: int
    name: str
    data: dict[str, Any]


class RefusedError(JobError):
    """QEMU answered a command with an error."""


class Monitor:
    """A connection to one QEMU's monitor socket."""

    def __init__(self, path: Path, seconds: float = 30.0) -> None:
        self._socket = self._connect(path, seconds)
        self._lines = self._socket.makefile("r")
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events: list[Event] = []
        json.loads(self._lines.readline())
        threading.Thread(target=self._read, daemon=True).start()
        self("qmp_capabilities")

    @staticmethod
    def _connect(path: Path, seconds: float) -> socket.socket:
        end = time.monotonic() + seconds
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > end:
                    raise JobError(f"QEMU did not open {path} within {seconds:.0f} s") from None
                time.sleep(0.05)

    def _read(self) -> None:
        try:
            for line in self._lines:
                message = json.loads(line)
                if "event" in message:
                    event = Event(boottime_ns(), message["event"], message.get("data", {}))
                    self.events.append(event)
                else:
                    self._answers.put(message)
        except (OSError, ValueError):
            pass
        self._answers.put({"error": {"desc": "QEMU has gone"}})

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Execute a command; what it returned, or RefusedError."""
        message = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
            answer = self._answers.get(timeout=ANSWER_S)
        except (OSError, queue.Empty):
            raise RefusedError(f"{command}: no answer") from None
        if "error" in answer:
            raise RefusedError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name: str, seconds: float) -> Event:
        """The first event of that name, past or to come; JobError after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            for event in list(self.events):
                if event.name == name:
                    return event
            if time.monotonic() > end:
                raise JobError(f"no event {name} within {seconds:.0f} s")
            time.sleep(0.02)

    def wait_running(self, seconds: float) -> None:
        """Wait until the VM runs; JobError after `seconds`."""
        end = time.monotonic() + seconds
        while self("query-status")["status"] != "running":
            if time.monotonic() > end:
                raise JobError(f"the VM does not run within {seconds:.0f} s")
            time.sleep(0.02)
