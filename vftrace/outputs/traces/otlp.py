"""Migrations as OpenTelemetry traces over OTLP/HTTP.

What the spans are is decided here, in plain data; the SDK makes them and sends them (extra `otlp`).
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit, urlunsplit

from vftrace import __version__
from vftrace.errors import MachineError, UsageError, VftraceError
from vftrace.outputs.traces.ids import span_id, trace_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.trace import Span

ROOT = "live migration"
FROM_ENVIRONMENT = "env"
"""An endpoint of this name is taken from OTEL_EXPORTER_OTLP_(TRACES_)ENDPOINT."""

Attributes = Mapping[str, str | int | float | bool]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpanNode:
    """A span to be: times in ns since the Unix epoch, `path` unique within its trace."""

    name: str
    path: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    children: tuple["SpanNode", ...] = ()
    events: tuple[tuple[str, int, Attributes], ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """One attempt: `id` is 32 hex digits, `host` the name of the host its clock is of.

    `half` keeps the spans of two hosts that write into one trace apart.
    """

    id: str
    host: str
    half: str
    root: SpanNode


def trace_of(host: Json, migration: Json) -> Trace | None:
    """The trace of a migration that has ended, from the report's own form (report.schema.json).

    `host` is the entry of the host whose clock the times are on. None where its wall clock is not known.
    """
    clock = [(c["at_ns"], c["realtime_offset_ns"]) for c in host["clock"]]
    if not clock:
        return None
    vm = migration["vm"]
    name = vm["uuid"] or f"pid-{vm['pid']}"
    trace = trace_id(name, host["boot_id"], migration["started_at_ns"], migration["guest_clock_ns"])
    # One offset for all: a wall clock that is set in between must not tear a migration apart.
    offset = min(clock, key=lambda sample: abs(sample[0] - migration["started_at_ns"]))[1]
    half = f"{migration['role']}@{host['boot_id']}"
    return Trace(trace, host["name"], half, _Tree(migration, offset).root())


class _Tree:
    def __init__(self, migration: Json, offset: int) -> None:
        self._m = migration
        self._offset = offset
        ends = [migration["ended_at_ns"], *(p["end_at_ns"] for p in self._phases())]
        ends += [at for at, _ in self._passed()]
        ends += [r["at_ns"] + r["duration_ns"] for r in migration["rounds"]]
        self._last = max([end for end in ends if end is not None] + [migration["started_at_ns"]])

    def root(self) -> SpanNode:
        m = self._m
        rounds = list(self._rounds())
        phases = []
        for number, phase in enumerate(self._phases()):
            end = phase["end_at_ns"]
            within = [
                node
                for at, node in rounds
                if phase["role"] == "source"
                and phase["start_at_ns"] <= at
                and (end is None or at < end)
            ]
            rounds = [item for item in rounds if item[1] not in within]
            phases.append(self._phase(number, phase, within))
        children = (*phases, *(node for _, node in rounds), *self._devices(), *self._vfs())
        starts = [m["started_at_ns"] + self._offset, *(child.start_ns for child in children)]
        ends = [self._last + self._offset, *(child.end_ns for child in children)]
        failed = m["outcome"] == "failed"
        return SpanNode(
            name=ROOT,
            path="",
            start_ns=min(starts),
            end_ns=max(ends),
            attributes=self._about(),
            children=children,
            events=tuple(
                (c["name"], at + self._offset, {"vftrace.checkpoint.ns": c["ns"] or 0})
                for at, c in self._passed()
            ),
            error=str(m["cause"]) if failed else None,
        )

    def _about(self) -> Attributes:
        m, down = self._m, self._m["downtime"]
        known = {
            "vftrace.vm.uuid": m["vm"]["uuid"],
            "vftrace.vm.name": m["vm"]["name"],
            "vftrace.vm.pid": m["vm"]["pid"],
            "vftrace.role": m["role"],
            "vftrace.host": m["host"],
            "vftrace.peer_host": m["peer_host"],
            "vftrace.strategy": m["strategy"],
            "vftrace.outcome": m["outcome"],
            "vftrace.cause": m["cause"],
            "vftrace.incomplete": m["incomplete"],
            "vftrace.sent_bytes": m["channel"]["bytes"],
            "vftrace.downtime.vcpu_ns": down["vcpu_ns"],
            "vftrace.downtime.uncertainty_ns": down["uncertainty_ns"],
            "vftrace.downtime.service_ns": down["service_ns"],
            "vftrace.downtime.set_by": down["set_by"],
        }
        return {name: value for name, value in known.items() if value is not None}

    def _phases(self) -> list[Json]:
        """Without the destination's `running`, which is the VM's life and not the migration's."""
        return [p for p in self._m["phases"] if p["name"] != "running"]

    def _passed(self) -> list[tuple[int, Json]]:
        checkpoints = self._m["downtime"]["checkpoints"]
        return [(c["at_ns"], c) for c in checkpoints if c["at_ns"] is not None]

    def _phase(self, number: int, phase: Json, rounds: Sequence[SpanNode]) -> SpanNode:
        name = f"{phase['role']} {phase['name']}"
        about = {"vftrace.phase": phase["name"], "vftrace.role": phase["role"]}
        start, end = phase["start_at_ns"], phase["end_at_ns"]
        span = self._span(name, f"phase/{number}/{name}", start, end, about)
        # A sweep that the stop interrupts ends a moment later than its phase.
        last = max([span.end_ns, *(child.end_ns for child in rounds)])
        return SpanNode(
            span.name, span.path, span.start_ns, last, span.attributes, tuple(rounds), (), None
        )

    def _rounds(self) -> Iterator[tuple[int, SpanNode]]:
        for number, sweep in enumerate(self._m["rounds"], start=1):
            about = {
                f"vftrace.round.{key}": sweep[key]
                for key in ("new_pages", "redirtied_pages", "logged_pages", "sent_bytes")
                if sweep[key] is not None
            }
            at = sweep["at_ns"]
            end = at + sweep["duration_ns"]
            yield at, self._span(f"round {number}", f"round/{number}", at, end, about)

    def _devices(self) -> Iterator[SpanNode]:
        """From the migration's begin on: the state a device was in before may be days old."""
        begin = self._m["started_at_ns"]
        for device in self._m["devices"]:
            states = device["states"]
            ends = [s["at_ns"] for s in states[1:]] + [None]
            for number, (state, end) in enumerate(zip(states, ends, strict=True)):
                if end is not None and end < begin:
                    continue
                about = {
                    "vftrace.device": device["address"],
                    "vftrace.device.state": state["state"],
                }
                name = f"device {state['state']}"
                path = f"device/{device['address']}/{device['role']}/{number}"
                yield self._span(name, path, max(begin, state["at_ns"]), end, about)

    def _vfs(self) -> Iterator[SpanNode]:
        for vf in self._m["vfs"]:
            for number, phase in enumerate(vf["phases"]):
                about = {"vftrace.vf": str(vf["address"]), "vftrace.vf.phase": phase["name"]}
                path = f"vf/{vf['pf']}/{vf['vf']}/{number}"
                start, end = phase["start_at_ns"], phase["end_at_ns"]
                yield self._span(f"vf {phase['name']}", path, start, end, about)

    def _span(
        self, name: str, path: str, start: int, end: int | None, about: Attributes
    ) -> SpanNode:
        until = max(start, self._last if end is None else end)
        if end is None:
            about = {**about, "vftrace.unfinished": True}
        return SpanNode(name, path, start + self._offset, until + self._offset, about)


# -- sending ------------------------------------------------------------------------------------


def check_available() -> None:
    """Raises MachineError, saying what to install, where the extra is missing."""
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "--otlp-endpoint needs OpenTelemetry: pip install 'vftrace[otlp]'"
        ) from error


def traces_url(endpoint: str) -> str | None:
    """The URL that spans are posted to; None leaves it to OTEL_EXPORTER_OTLP_*.

    A URL without a path gets OTLP's own, `/v1/traces`. Raises UsageError for what is no HTTP URL.
    """
    if endpoint == FROM_ENVIRONMENT:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"not an OTLP/HTTP endpoint: {endpoint!r} (such as http://localhost:4318)")
    path = parts.path if parts.path not in ("", "/") else "/v1/traces"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def send(endpoint: str, traces: Sequence[Trace]) -> int:
    """Send traces to a collector; returns how many spans it took.

    Raises VftraceError where it does not take them, MachineError where the extra is missing. Headers,
    timeout, compression, certificates and resource attributes come from the OTEL_* variables.
    """
    check_available()
    url = traces_url(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    spans = [span for trace in traces for span in _sdk_spans(trace)]
    if not spans:
        return 0
    exporter = OTLPSpanExporter(endpoint=url)
    with _LastWord() as said:
        try:
            result = exporter.export(spans)
        finally:
            exporter.shutdown()  # type: ignore[no-untyped-call]
    if result is not SpanExportResult.SUCCESS:
        where = url or "the endpoint of OTEL_EXPORTER_OTLP_ENDPOINT"
        raise VftraceError(f"{where} did not take the traces: {said.text or 'no reason given'}")
    return len(spans)


class _LastWord(logging.Handler):
    """Keeps what the exporter logs last, which is all it says of a failure."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        self._logger = logging.getLogger("opentelemetry")

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()

    def __enter__(self) -> Self:
        self._before = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._before


def _sdk_spans(trace: Trace) -> "list[ReadableSpan]":
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Ids(IdGenerator):
        """Gives the ids of the node that is being made."""

        node = trace.root

        def generate_trace_id(self) -> int:
            return int(trace.id, 16)

        def generate_span_id(self) -> int:
            return int(span_id(trace.id, f"{trace.half}/{self.node.path}"), 16)

    ids, kept = Ids(), InMemorySpanExporter()
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before our own.
    own = {"service.name": "vftrace", "service.version": __version__, "host.name": trace.host}
    resource = Resource(own).merge(Resource.create())
    said = dict(resource.attributes)
    if str(said.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "vftrace"}))
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))

    def make(node: SpanNode) -> None:
        ids.node = node

    _emit(provider, trace.root, None, make)
    return list(kept.get_finished_spans())


def _emit(
    provider: "TracerProvider",
    node: SpanNode,
    parent: "Span | None",
    before: Callable[[SpanNode], None],
) -> None:
    from opentelemetry.context import Context
    from opentelemetry.trace import Status, StatusCode, set_span_in_context

    # An empty context: what the environment carries is not our parent.
    context = Context() if parent is None else set_span_in_context(parent, Context())
    before(node)
    tracer = provider.get_tracer("vftrace", __version__)
    span = tracer.start_span(
        node.name, context, attributes=dict(node.attributes), start_time=node.start_ns
    )
    for name, at_ns, about in node.events:
        span.add_event(name, dict(about), timestamp=at_ns)
    if node.error is not None:
        span.set_status(Status(StatusCode.ERROR, node.error))
    for child in node.children:
        _emit(provider, child, span, before)
    span.end(node.end_ns)


@dataclass
class Sender:
    """Sends traces from a thread of its own, so that tracing never waits for a collector.

    `warn` gets a line for what could not be sent. Close it to send what is left.
    """

    endpoint: str
    warn: Callable[[str], None]
    _queue: "queue.Queue[Trace | None]" = field(default_factory=lambda: queue.Queue(1024))
    _thread: threading.Thread | None = None
    _seen: set[str] = field(default_factory=set)

    def offer(self, trace: Trace | None) -> None:
        """Send this one, unless it was offered before."""
        if trace is None or trace.id in self._seen:
            return
        self._seen.add(trace.id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(trace)
        except queue.Full:
            self.warn("traces come faster than the collector takes them: one is dropped")

    def close(self, timeout_seconds: float = 15.0) -> None:
        """Send what is left; gives up after the timeout."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (trace := self._queue.get()) is not None:
            try:
                send(self.endpoint, [trace])
            except VftraceError as error:
                self.warn(str(error))
