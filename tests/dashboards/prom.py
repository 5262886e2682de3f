# SPDX-License-Identifier: MIT
"""A real Prometheus that scrapes real `vftrace serve` processes: for tests, and for pictures of the boards.

    python -m tests.dashboards.prom [--seconds N]      the stage below, until Ctrl-C; prints Prometheus's URL

A host of a `Stage` is a `vftrace serve`, either of this machine or of a recording (`--replay`), which
Prometheus knows by the name it is given as `instance`. Prometheus runs first, so that it sees every counter
begin.

Two things differ from an operator's Prometheus, both only in time: the scrape interval is half a second, and
`quick` makes the rules' clock faster. A recording has the wall clock of the day it was made; `fresh` moves
that to now, so that timestamps are in the range of the queries.
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from msgspec import structs

from tests.unit.two_hosts import write
from vftrace import events
from vftrace.collect.recording import Recording
from vftrace.events import wire
from vftrace.events.layout import Kind
from vftrace.units import parse_duration

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "dashboards" / "prometheus" / "vftrace.rules.yml"
GOLDEN = ROOT / "tests" / "golden"

SCRAPE = "500ms"

_START_SECONDS = 60
_NS = 1_000_000_000


@dataclass(frozen=True)
class Play:
    """A recording as one host's past: `speed` times as fast."""

    recording: Path
    speed: float = 1.0


STAGE: Mapping[str, Play] = {
    "alpha": Play(GOLDEN / "recordings" / "four-at-once.vft.gz", 0.25),
    "bravo": Play(GOLDEN / "recordings" / "completed-slow.vft.gz", 0.25),
    "charlie": Play(GOLDEN / "recordings" / "there-and-back.vft.gz", 0.25),
    "delta": Play(GOLDEN / "recordings" / "dest-killed-precopy.vft.gz", 0.25),
    "echo": Play(GOLDEN / "lab" / "6.12-fentry.vft.gz", 8),
    "foxtrot": Play(GOLDEN / "mailbox" / "6.12.vft.gz", 2),
    "golf": Play(GOLDEN / "libvirt" / "save-restore.vft.gz", 0.25),
}
"""Hosts with something for every panel, all over after `STAGE_SECONDS`. The VMs of all lab recordings have one
UUID: two of them at once would look like one VM that was moved between two hosts."""
STAGE_SECONDS = 20


@dataclass(frozen=True)
class Series:
    """One series of an answer: its labels, and (Unix time, value) pairs; one of them for an instant query."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float:
        """The latest value."""
        return self.points[-1][1]


class QueryError(Exception):
    """Prometheus refused a query; the message has its reason."""


class Stage:
    """Prometheus and the hosts it scrapes, as a context manager. `instances`: all hosts there will be.

    `rules`: rule files; `scrape`: scrape and evaluation interval; `addresses`: where the hosts are that are not
    on this one's loopback.
    """

    def __init__(
        self,
        directory: Path,
        instances: tuple[str, ...],
        rules: tuple[Path, ...] = (RULES,),
        scrape: str = SCRAPE,
        addresses: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.began = time.time()
        self._port, *ports = _free_ports(len(instances) + 1)
        self.addresses = {
            name: f"127.0.0.1:{port}" for name, port in zip(instances, ports, strict=True)
        } | dict(addresses or {})
        self._rules = rules
        self._scrape = scrape
        # What Grafana makes of $__rate_interval at least: four scrapes.
        self.rate_interval = f"{4 * parse_duration(scrape) // 1_000_000}ms"
        self._prometheus: subprocess.Popen[bytes] | None = None
        self._hosts: dict[str, subprocess.Popen[str]] = {}
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Hosts that had no time to get ready end badly: that must not hide why they had none.
        with suppress(*([] if kind is None else [RuntimeError])):
            self.close()

    def _start(self) -> None:
        config = self.directory / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config()))
        command = ["prometheus", f"--config.file={config}"]
        command += [f"--storage.tsdb.path={self.directory / 'tsdb'}"]
        command += [f"--web.listen-address=127.0.0.1:{self._port}"]
        # The viewer is a page of another origin; exemplars join metrics to traces.
        command += ["--web.cors.origin=.*", "--enable-feature=exemplar-storage"]
        with (self.directory / "prometheus.log").open("wb") as log:
            self._prometheus = subprocess.Popen(command, stdout=log, stderr=log)
        # It looks for new targets every five seconds only (discovery/manager.go, updatert).
        self.wait(f"count(up) >= {len(self.addresses)}", _START_SECONDS)

    def _config(self) -> dict[str, Any]:
        return {
            "global": {
                "scrape_interval": self._scrape,
                "scrape_timeout": self._scrape,
                "evaluation_interval": self._scrape,
            },
            "rule_files": [str(path) for path in self._rules],
            "scrape_configs": [
                {
                    "job_name": "vftrace",
                    "static_configs": [
                        {"targets": [address], "labels": {"instance": name}}
                        for name, address in self.addresses.items()
                    ],
                }
            ],
        }

    def close(self) -> None:
        """End everything that this stage has started, then report the hosts that ended with an error."""
        with ExitStack() as stack:
            if self._prometheus is not None:
                stack.callback(self._prometheus.wait, timeout=30)
                stack.callback(self._prometheus.terminate)
                self._prometheus = None
            for name in self._hosts:
                stack.callback(self._hosts[name].kill)
            for name in tuple(self._hosts):
                stack.callback(self.end, name)

    # -- hosts ----------------------------------------------------------------------------------

    def play(
        self, name: str, play: Play, start_seconds: float = 0, more: tuple[str, ...] = ()
    ) -> None:
        """Start a host that replays a recording, its wall clock moved to now.

        `start_seconds`: what a host needs until it begins; `more`: further arguments of serve.
        """
        path = self.directory / f"{name}.vft"
        fresh(play, path, start_seconds)
        self.serve(name, "--replay", str(path), "--speed", str(play.speed), *more)

    def serve(self, name: str, *arguments: str, inside: tuple[str, ...] = ()) -> None:
        """Start a host: `vftrace serve` with these arguments; without any it traces this machine. `inside`: a
        command that runs another one elsewhere."""
        command = [*inside, sys.executable, "-m", "vftrace", "serve", *arguments]
        command += ["--web.listen-address", self.addresses[name]]
        log = self.directory / f"{name}.log"
        with log.open("w") as file:
            self._hosts[name] = subprocess.Popen(command, stderr=file, text=True, cwd=ROOT)

    def wait_ready(self, name: str) -> None:
        """Wait until a host reports that it traces."""
        log = self.directory / f"{name}.log"
        deadline = time.monotonic() + _START_SECONDS
        while "ready\n" not in log.read_text():
            if time.monotonic() > deadline or self._hosts[name].poll() is not None:
                raise TimeoutError(f"{name} did not get ready: {log.read_text()}")
            time.sleep(0.1)

    def end(self, name: str) -> None:
        """End a host as an operator does, and check that it prints no unexpected line."""
        process = self._hosts.pop(name)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
        said = (self.directory / f"{name}.log").read_text()
        if code != 0 or "Traceback" in said:
            raise RuntimeError(f"{name} ended with {code}: {said}")

    def kill(self, name: str) -> None:
        """End a host as the OOM killer would."""
        process = self._hosts.pop(name)
        process.kill()
        process.wait()

    # -- questions ------------------------------------------------------------------------------

    def query(self, expression: str, at: float | None = None) -> list[Series]:
        """An instant query at a Unix time, now if None. Raises QueryError."""
        words = {"query": expression} | ({} if at is None else {"time": str(at)})
        return [
            Series(found["metric"], (_point(found["value"]),))
            for found in _vector(self._ask("query", words))
        ]

    def query_range(
        self, expression: str, start: float | None = None, end: float | None = None, step: float = 1
    ) -> list[Series]:
        """A range query, since the stage began if no `start` is given. Raises QueryError."""
        words = {
            "query": expression,
            "start": str(start or self.began),
            "end": str(end or time.time()),
            "step": str(step),
        }
        return [
            Series(found["metric"], tuple(map(_point, found["values"])))
            for found in self._ask("query_range", words)["result"]
        ]

    def label_values(self, label: str, selector: str = "") -> list[str]:
        """Return the values of Grafana's label_values(selector, label), since the stage began."""
        words = {"start": str(self.began), "end": str(time.time())}
        if selector:
            words["match[]"] = selector
        found: list[str] = self._ask(f"label/{label}/values", words)
        return found

    def exemplars(self, selector: str) -> list[tuple[float, Mapping[str, str]]]:
        """Value and labels of the exemplars since the stage began."""
        words = {"query": selector, "start": str(self.began), "end": str(time.time())}
        series = self._ask("query_exemplars", words)
        return [(float(e["value"]), e["labels"]) for one in series for e in one["exemplars"]]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that was loaded, as Prometheus sees it: `health`, `lastError`, `state`."""
        groups = self._ask("rules", {})["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def wait(self, expression: str, seconds: float) -> list[Series]:
        """Query until a result is not empty. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = self.query(expression)
            except urllib.error.URLError:
                if self._prometheus is None or self._prometheus.poll() is not None:
                    break
                found = []
            if found:
                return found
            time.sleep(0.2)
        log = (self.directory / "prometheus.log").read_text()[-2000:]
        raise TimeoutError(f"nothing in {seconds} s: {expression}\n{log}")

    def _ask(self, what: str, words: Mapping[str, str]) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(words)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise urllib.error.URLError("not ready yet") from error
            raise QueryError(json.load(error)["error"]) from error


def fresh(play: Play, path: Path, later: float = 0) -> Path:
    """Write the recording with clock samples that make its beginning now, or `later` seconds, at this speed."""
    recording = Recording(play.recording)
    records = list(recording)
    first = min(wire.HEADER.unpack_from(record)[0] for record in records)
    now = time.time_ns() + round(later * _NS)

    def moved(record: bytes) -> bytes:
        if wire.HEADER.unpack_from(record)[3] != Kind.CLOCK_SAMPLE:
            return record
        event = wire.decode(record)
        assert isinstance(event, events.ClockSample)
        wall = now + round((event.at_ns - first) / play.speed)
        return wire.encode(structs.replace(event, realtime_offset_ns=wall - event.at_ns))

    return write(path, recording.host, map(moved, records))


def quick(path: Path, times: int, figures: Mapping[str, float]) -> Path:
    """Write the rules with every duration divided: `for:`, ranges and offsets. `figures` are the operator's own,
    by the name of the rule that records each; all else is as it was."""

    def shorter(duration: str) -> str:
        return f"{parse_duration(duration) // times // 1_000_000}ms"

    def shorter_all(expression: str) -> str:
        return re.sub(
            r"(?<=\[)\d+[smh](?=\])|(?<=offset )\d+[smh]",
            lambda match: shorter(match[0]),
            expression,
        )

    found = yaml.safe_load(RULES.read_text())
    for rule in (rule for group in found["groups"] for rule in group["rules"]):
        rule["expr"] = shorter_all(rule["expr"])
        if "for" in rule:
            rule["for"] = shorter(rule["for"])
        if rule.get("record") in figures:
            rule["expr"] = f"vector({figures[rule['record']]})"
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return path


@contextmanager
def stage(
    directory: Path,
    plays: Mapping[str, Play] = STAGE,
    rules: tuple[Path, ...] = (RULES,),
    more: tuple[str, ...] = (),
) -> Iterator[Stage]:
    """A stage whose plays have begun; `more` names hosts that are started later, or never."""
    with Stage(directory, (*plays, *more), rules) as found:
        for name, play in plays.items():
            found.play(name, play)
        for name in plays:
            found.wait_ready(name)
        yield found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def _point(pair: tuple[float, str]) -> tuple[float, float]:
    return pair[0], float(pair[1])


def _vector(data: dict[str, Any]) -> list[dict[str, Any]]:
    if data["resultType"] == "scalar":
        return [{"metric": {}, "value": data["result"]}]
    found: list[dict[str, Any]] = data["result"]
    return found


def main() -> None:
    """The stage, until Ctrl-C or for some seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=float("inf"))
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as directory, stage(Path(directory)) as found:
        print(f"{found.url}  (from {found.began:.0f}; pid {os.getpid()})", flush=True)
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                time.sleep(0.2)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
