# SPDX-License-Identifier: MIT
"""`vftrace serve`: serves metrics of this host's migrations to Prometheus."""

import argparse
import os
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from vftrace.commands.common import (
    Deadline,
    Interrupt,
    LogLines,
    Selection,
    add_force_argument,
    add_live_arguments,
    add_log_arguments,
    add_profile_argument,
    add_recorder_arguments,
    file_of,
    inform,
    keep_evidence,
    make_record_dir,
    open_recorder,
    profile_texts,
    say_ready,
    warn,
)
from vftrace.errors import UsageError
from vftrace.faults import FAULTS, Where
from vftrace.host import memory, priority, privileges
from vftrace.units import parse_duration

if TYPE_CHECKING:
    from vftrace.archive.flight import FlightRecorder
    from vftrace.collect.pump import Pump
    from vftrace.collect.replay import ReplaySource
    from vftrace.collect.session import Opening
    from vftrace.model.migration import Migration
    from vftrace.outputs.exporter.accounts import Reading
    from vftrace.outputs.traces.otlp import Sender

HELP = "serve metrics of migrations on this host to Prometheus"
EXAMPLES = (
    ("vftrace serve", "serve metrics on 127.0.0.1:9843"),
    (
        "vftrace serve --record-dir /var/lib/vftrace",
        "also keep a recording of each migration",
    ),
    (
        "vftrace serve --web.listen-address 0.0.0.0:9843 --web.config.file web.yml",
        "serve other hosts, with TLS and passwords",
    ),
)

DEFAULT_ADDRESS = "127.0.0.1:9843"
DEFAULT_PATH = "/metrics"

_SWITCH_SECONDS = 0.001
"""How long a thread that answers waits at most for the interpreter lock while another one computes."""
_LATE_NS = 300_000_000
"""The tracker is late beyond this: it gets ten ticks a second."""
_UPDATE_SECONDS = 1.0
_UPDATE_SHARE = 0.02
"""The share of time that updates may take. An update builds every running migration: more of them, fewer updates."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of tracing, serving and the addresses."""
    add_live_arguments(parser)
    parser.add_argument(
        "--vm",
        action="append",
        default=[],
        metavar="UUID|NAME|PID",
        help="only this VM (repeatable; the first 8 digits of a UUID are enough)",
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="also write a recording to this file"
    )
    add_force_argument(parser)
    add_recorder_arguments(parser)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="serve a recording instead")
    parser.add_argument(
        "--speed",
        metavar="N",
        help="playback speed of --replay: 1 is real time, 0 is as fast as possible",
    )
    add_profile_argument(parser)
    add_log_arguments(parser, default="info")
    add_web_arguments(parser)


def add_web_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every subcommand that serves metrics; the names are exporter-toolkit's."""
    web = parser.add_argument_group("metrics")
    web.add_argument(
        "--web.listen-address",
        dest="web_addresses",
        action="append",
        type=parse_address,
        metavar="HOST:PORT",
        help=f"address to listen on (repeatable; default {DEFAULT_ADDRESS}, or systemd's sockets)",
    )
    web.add_argument(
        "--web.telemetry-path",
        dest="web_path",
        type=parse_path,
        default=DEFAULT_PATH,
        metavar="PATH",
        help="path of the metrics (default %(default)s)",
    )
    web.add_argument(
        "--web.config.file",
        dest="web_config",
        type=Path,
        metavar="FILE",
        help="TLS and basic auth, in exporter-toolkit's format",
    )
    web.add_argument(
        "--web.reports",
        dest="web_reports",
        choices=("on", "off"),
        default="on",
        help="show this host's VMs, migrations, reports and recordings at / to everybody who may read the"
        " metrics (default %(default)s)",
    )
    web.add_argument(
        "--keep",
        type=parse_duration,
        default="5m",
        metavar="TIME",
        help="keep ended VMs and migrations in the metrics for this time (default %(default)s)",
    )
    web.add_argument(
        "--otlp-endpoint",
        metavar="URL",
        help="also send each migration that ended as a trace to this OTLP/HTTP collector"
        " (`env`: the address in OTEL_EXPORTER_OTLP_ENDPOINT)",
    )


def parse_address(text: str) -> tuple[str, int]:
    """Read `127.0.0.1:9843`, `[::]:9843` or `:9843` (all addresses) as host and port.

    Raises UsageError for anything else.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    well_formed = colon and port.isascii() and port.isdigit() and (bracketed or ":" not in host)
    if not well_formed or int(port) > 65535:
        raise UsageError(f"not an address to listen on: {text!r} (such as {DEFAULT_ADDRESS})")
    return host[1:-1] if bracketed else host, int(port)


def parse_path(text: str) -> str:
    """Check a path for the metrics. Raises UsageError if it is not a path, or is taken."""
    if not text.startswith("/") or not text.isprintable() or "?" in text or text.startswith("/-/"):
        raise UsageError(f"not a path for the metrics: {text!r} (such as {DEFAULT_PATH})")
    return text


class _Read(Protocol):
    """Returns the present data; `brief` as in `reading_of`."""

    def __call__(self, *, brief: bool) -> "Reading": ...


class Service:
    """Serves the metrics over HTTP: listens at once, and is ready after `attach`.

    Call `tick` in the loop that steps the pump; `close` ends the service.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        """`args` as `add_web_arguments` made them, with `record_dir`, whose recordings the host's page offers.

        Raises VftraceError if the address or the file is invalid.
        """
        from prometheus_client import ProcessCollector
        from prometheus_client.registry import CollectorRegistry

        from vftrace.commands.host_page import HostSite, IndexedArchive
        from vftrace.outputs.exporter import pages, webconfig
        from vftrace.outputs.exporter import server as http
        from vftrace.outputs.exporter.metrics import Exporter

        self._sender = _sender(args.otlp_endpoint)
        # Files that are read again later, without privileges, must be readable without them from the start.
        with privileges.suspended():
            config = (
                webconfig.WebConfig
                if args.web_config is None
                else webconfig.WebConfigFile(args.web_config, warn).current
            )
        sockets = http.activated_sockets(os.environ)
        if args.web_addresses or not sockets:
            addresses = args.web_addresses or [parse_address(DEFAULT_ADDRESS)]
            sockets += [http.listen(host, port) for host, port in addresses]
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._exporter = Exporter(args.keep, warn)
        registry.register(self._exporter)
        archive = None if args.record_dir is None else IndexedArchive(args.record_dir)
        self._site = HostSite(self._reading, archive) if args.web_reports == "on" else None
        self._update_cost_s = 0.0
        self._app = app = pages.make_app(
            registry,
            args.web_path,
            lambda: self._ready,
            self._site,
            lambda: self._update_cost_s,
        )
        self._servers = http.Servers(sockets, app, config, args.user)
        self._ready = False
        self._read: _Read | None = None
        self._pump: Pump | None = None
        self._next_update = 0.0
        self._update_every = _UPDATE_SECONDS
        self.urls = tuple(url + args.web_path for url in self._servers.urls)
        self._servers.start()

    def attach(
        self, pump: "Pump", wanted: list[str], recorder: "FlightRecorder | None" = None
    ) -> None:
        """Serve the data of this pump for the `wanted` VMs (all if none is named), and the state of its recorder."""
        traced = self._sender is not None
        read = partial(reading_of, pump, wanted, traced=traced, recorder=recorder)
        self._read = read
        self._pump = pump
        self._exporter.read = partial(read, brief=True)
        self._ready = True

    def tick(self) -> None:
        """Make metrics that are due, and count ended migrations, at most once a second, so that scrapes may be rare."""
        self._app.prepare(late=self._pump is not None and self._pump.behind_ns() > _LATE_NS)
        begun = time.monotonic()
        if begun >= self._next_update:
            try:
                # If counting is costly, a scrape since the last time is enough.
                costly = self._update_every > _UPDATE_SECONDS
                if not costly or begun - self._exporter.counted_at >= self._update_every:
                    self._update()
                self._send_traces()
            except Exception as error:
                FAULTS.contained(Where.METRICS, error, "ended migrations are counted later")
            self._next_update = time.monotonic() + self._update_every

    def _update(self) -> None:
        begun, cpu_s = time.monotonic(), time.thread_time()
        self._exporter.update()
        self._update_cost_s = time.thread_time() - cpu_s
        share = (time.monotonic() - begun) / _UPDATE_SHARE
        self._update_every = max(_UPDATE_SECONDS, share)

    def close(self) -> None:
        """Stop listening; traces that are not sent yet get some seconds."""
        self._servers.stop()
        if self._site is not None:
            self._site.close()
        if self._sender is not None:
            self._send_traces()
            self._sender.close()

    def _reading(self) -> "Reading | None":
        return None if self._read is None else self._read(brief=False)

    def _send_traces(self) -> None:
        sender = self._sender
        if sender is None or self._read is None:
            return
        from vftrace.model.report import live_report
        from vftrace.model.trace_id import trace_id
        from vftrace.outputs.exporter.accounts import settled
        from vftrace.outputs.traces.otlp import traces_of

        def news(reading: "Reading") -> "tuple[Migration, ...]":
            return tuple(
                m
                for m in reading.snapshot.migrations
                if settled(m, reading) and not sender.knows(trace_id(m, reading.host.boot_id))
            )

        if not news(self._read(brief=True)):
            return
        reading = self._read(brief=False)
        ended = news(reading)
        report = live_report(reading.host, replace(reading.snapshot, migrations=ended))
        traces, _ = traces_of(report.migrations)
        for trace in traces:
            sender.offer(trace)


def _sender(endpoint: str | None) -> "Sender | None":
    if endpoint is None:
        return None
    from vftrace.outputs.traces import otlp

    otlp.check_available()
    otlp.traces_url(endpoint)
    return otlp.Sender(endpoint, warn)


def reading_of(
    pump: "Pump",
    wanted: list[str],
    *,
    traced: bool = False,
    recorder: "FlightRecorder | None" = None,
    brief: bool = False,
) -> "Reading":
    """Return the present data; `brief` as in `Tracker.snapshot`, which is enough for the metrics."""
    from vftrace.model.select import select
    from vftrace.outputs.exporter.accounts import Reading

    # Read `ended` first: a migration that settles at the end must be in the snapshot.
    ended = pump.ended
    return Reading(
        snapshot=select(pump.snapshot(brief=brief), wanted),
        now_ns=pump.now_ns(),
        host=pump.host,
        probes=pump.host.probes,
        event_counts=pump.event_counts(),
        ended=ended,
        traced=traced,
        not_recorded=pump.not_recorded,
        recorder=None if recorder is None else recorder.state,
        reader=pump.reader,
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, SIGTERM or the duration's end."""
    tracing_only = (args.record, args.record_dir, args.way)
    if args.replay is not None and any(option is not None for option in tracing_only):
        raise UsageError(
            "--record, --record-dir and --way are for tracing this host, not for --replay"
        )
    if args.speed is not None and args.replay is None:
        raise UsageError("--speed is for --replay")
    priority.extend_to_session()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt(args.replay))
        deadline = Deadline(args.duration)
        opening = _begin(args, stack)
        # The reader has none of what is imported from here on, and attaches its probes meanwhile.
        from vftrace.outputs.log.handler import configure

        configure(args.log_format, args.log_level)
        service = Service(args)
        stack.callback(service.close)
        # Log the last migrations after the pump has closed, because closing takes the last records.
        logs = ExitStack()
        stack.enter_context(logs)
        pump, replay, recorder = _open(args, opening, stack)
        log = LogLines(args, pump, args.vm, file_of(recorder))
        logs.callback(log.close)
        service.attach(pump, args.vm, recorder)
        for url in service.urls:
            inform(f"serving {url}")
        say_ready(json=args.log_format == "json")
        memory.give_back()  # the imports, and the first snapshot
        selection = Selection(args.vm, live=args.replay is None)
        while not interrupt.set and not deadline.passed():
            pump.step()
            selection.check(pump)
            service.tick()
            log.tick()
            if replay is not None and pump.ended:
                _say_end(replay)
                replay = None
            if pump.ended:
                time.sleep(0.1)
    return 0


def _begin(args: argparse.Namespace, stack: ExitStack) -> "Opening | None":
    """Start tracing this host; None for a replay."""
    if args.replay is not None:
        return None
    from vftrace.collect.session import Opening

    profiles = profile_texts(args)
    make_record_dir(args)
    opening = Opening(args.way, profiles, args.record, force=args.force, lose=warn, user=args.user)
    stack.callback(opening.cancel)
    return opening


def _open(
    args: argparse.Namespace, opening: "Opening | None", stack: ExitStack
) -> "tuple[Pump, ReplaySource | None, FlightRecorder | None]":
    """Return the pump, which `stack` closes; the replay, if it is one; the flight recorder, if there is one."""
    from vftrace.collect.pump import Pump

    if opening is None:
        from vftrace.collect.replay import ReplaySource, parse_speed

        profiles = profile_texts(args)
        replay = ReplaySource(args.replay, parse_speed(args.speed or "1"))
        privileges.keep_only((), args.user)
        return Pump(replay, profiles), replay, None
    session = stack.enter_context(opening.finish())
    recorder = open_recorder(args, args.vm, warn)
    pump = Pump(session, recorder=recorder)
    keep_evidence(pump)
    stack.callback(pump.close)
    return pump, None, recorder


def _say_end(replay: "ReplaySource") -> None:
    if replay.not_whole is not None:
        warn(f"the recording is incomplete: {replay.not_whole}")
    inform("the replay has ended; its last state stays served (Ctrl-C ends)")
