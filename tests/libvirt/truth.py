# SPDX-License-Identifier: MIT
"""Reads the account of QEMU and libvirt about an operation from the daemons' monitor logs.

libvirtd logs every word of its QEMUs' monitors (QMP). Events carry QEMU's own time; that of a command
is libvirtd's. No figure here comes from vftrace.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

_LINE = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\+0000): (?P<thread>\d+): \w+ : (?P<text>.*)"
)
_MESSAGE = re.compile(
    r"QEMU_MONITOR_(?P<kind>SEND_MSG|RECV_REPLY|RECV_EVENT): mon=(?P<monitor>\w+)"
    r" (?:msg|reply|event)=(?P<json>\{.*\})"
)
# qemuProcessWaitForMonitor and qemuProcessReconnect name the domain before they open its monitor.
_OPENS = re.compile(r"onnect monitor to .*name='(?P<domain>[^']+)'")
_OPENED = re.compile(r"QEMU_MONITOR_NEW: mon=(?P<monitor>\w+)")

FINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Message:
    """One line of a monitor: `kind` is command, reply or event; `at_ns` is CLOCK_REALTIME."""

    at_ns: int
    host: str
    monitor: str
    domain: str
    kind: str
    body: dict[str, Any]


@dataclass
class Attempt:
    """One `migrate` command and QEMU's events of it; times are CLOCK_REALTIME ns."""

    host: str
    began_ns: int
    uri: str
    passes: int = 0
    status: str | None = None
    statuses: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    ended_ns: int | None = None
    stop_ns: int | None = None
    resume_ns: int | None = None
    resumed_on: str | None = None

    @property
    def downtime_ns(self) -> int | None:
        """From QEMU's event STOP on the source to RESUME, wherever that came."""
        if self.stop_ns is None or self.resume_ns is None:
            return None
        return self.resume_ns - self.stop_ns

    def to_json(self) -> dict[str, Any]:
        """The fields of cases' truth.json, with the times of STOP and RESUME beside."""
        ram = self.figures.get("ram", {})
        known: dict[str, Any] = {
            "h": self.host.upper(),
            "uri": self.uri,
            "status": self.status,
            "statuses": self.statuses,
            "passes": self.passes,
            "began_ns": self.began_ns,
            "ended_ns": self.ended_ns,
            "stop_ns": self.stop_ns,
            "resume_ns": self.resume_ns,
            "total-time": self.figures.get("total-time"),
            "downtime": self.figures.get("downtime"),
            "setup-time": self.figures.get("setup-time"),
            "transferred": ram.get("transferred"),
            "dirty-sync-count": ram.get("dirty-sync-count"),
            "postcopy-requests": ram.get("postcopy-requests"),
        }
        if self.downtime_ns is not None:
            known["stop_to_resume_ms"] = self.downtime_ns / 1e6
            assert self.resumed_on is not None
            # The star: not where it was stopped.
            known["resumed_on"] = self.resumed_on.upper() + "*" * (self.resumed_on != self.host)
        return {name: value for name, value in known.items() if value is not None}


class MonitorLog:
    """A daemon's log, read as it grows; `messages` has the monitors' messages so far."""

    def __init__(self, path: Path, host: str) -> None:
        self.path = path
        self.host = host
        self.messages: list[Message] = []
        self._at = 0
        self._rest = b""
        self._domain_of: dict[str, str] = {}
        self._opening: dict[str, str] = {}

    def poll(self) -> list[Message]:
        """All messages, those that came since included."""
        with self.path.open("rb") as log:
            log.seek(self._at)
            new = log.read()
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._take(line)
        return self.messages

    def _take(self, raw: bytes) -> None:
        # Most of the log is something else, and long.
        if b"onitor to " not in raw and b"QEMU_MONITOR_" not in raw:
            return
        line = _LINE.match(raw.decode(errors="replace"))
        if line is None:
            return
        if opens := _OPENS.search(line["text"]):
            self._opening[line["thread"]] = opens["domain"]
        elif opened := _OPENED.search(line["text"]):
            self._domain_of[opened["monitor"]] = self._opening.pop(line["thread"], "")
        elif said := _MESSAGE.search(line["text"]):
            message = _message(line["at"], self.host, self._domain_of, said)
            if message is not None:
                self.messages.append(message)


def _message(at: str, host: str, domains: dict[str, str], said: re.Match[str]) -> Message | None:
    try:
        body = json.loads(said["json"])
    except ValueError:
        return None
    kind = {"SEND_MSG": "command", "RECV_REPLY": "reply", "RECV_EVENT": "event"}[said["kind"]]
    stamp = body.get("timestamp")
    if stamp is not None:
        at_ns = stamp["seconds"] * 10**9 + stamp["microseconds"] * 1000
    else:
        at_ns = round(datetime.fromisoformat(at).timestamp() * 1000) * 10**6
    monitor = said["monitor"]
    return Message(at_ns, host, monitor, domains.get(monitor, ""), kind, body)


def attempts(said: Sequence[Message], names: Collection[str]) -> list[Attempt]:
    """Every migration and save that QEMU was told to make of the domain with these names."""
    ours = sorted((m for m in said if m.domain in names), key=lambda m: m.at_ns)
    found: list[Attempt] = []
    current: dict[tuple[str, str], Attempt] = {}
    for message in ours:
        body, at = message.body, (message.host, message.monitor)
        if message.kind == "command" and body.get("execute") == "migrate":
            arguments = body["arguments"]
            # A recovery continues the present attempt.
            if not arguments.get("resume"):
                current[at] = Attempt(message.host, message.at_ns, arguments["uri"])
                found.append(current[at])
        elif at in current:
            _take(current[at], message)
    ends = [attempt.began_ns for attempt in found[1:]]
    for attempt, until in zip_longest(found, ends):
        _set_stop_and_resume(attempt, ours, until)
    return found


def _take(attempt: Attempt, message: Message) -> None:
    body = message.body
    if message.kind == "event" and body["event"] == "MIGRATION_PASS":
        attempt.passes = body["data"]["pass"]
    elif message.kind == "event" and body["event"] == "MIGRATION":
        attempt.status = body["data"]["status"]
        attempt.statuses.append(body["data"]["status"])
        if attempt.status in FINAL:
            attempt.ended_ns = message.at_ns
    elif message.kind == "reply":
        answer = body.get("return")
        # Only query-migrate's answer has both; before the end its figures are those of some moment.
        if isinstance(answer, dict) and answer.get("status") == "completed" and "ram" in answer:
            attempt.figures = answer
            attempt.passes = answer["ram"]["dirty-sync-count"]
            attempt.status = attempt.status or "completed"


def _set_stop_and_resume(attempt: Attempt, said: Sequence[Message], until: int | None) -> None:
    """The stop that the attempt made or found, and the domain's first RESUME after it began."""
    for message in said:
        if until is not None and message.at_ns >= until:
            return
        if message.kind != "event" or message.body["event"] not in ("STOP", "RESUME"):
            continue
        if message.body["event"] == "STOP":
            if message.host == attempt.host:
                attempt.stop_ns = message.at_ns
        elif message.at_ns < attempt.began_ns:
            attempt.stop_ns = None
        elif attempt.stop_ns is not None:
            attempt.resume_ns, attempt.resumed_on = message.at_ns, message.host
            return


def events(said: Sequence[Message], domain: str, name: str) -> list[Message]:
    """A domain's events of one name."""
    return [m for m in said if m.domain == domain and m.kind == "event" and m.body["event"] == name]


_LABELS = {
    "time": "Time elapsed",
    "down": "Total downtime",
    "w/o net": "Downtime w/o network",
    "mem": "Memory processed",
    "iter": "Iteration",
}


def job_info(text: str) -> str | None:
    """Return the output of `virsh domjobinfo --completed` in one line; None without a job."""
    pairs = (line.partition(":") for line in text.splitlines())
    values = {name.strip(): " ".join(value.split()) for name, _, value in pairs if value.strip()}
    found = {short: values[label] for short, label in _LABELS.items() if label in values}
    return ", ".join(f"{short} {value}" for short, value in found.items()) or None
