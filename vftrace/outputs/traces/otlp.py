# SPDX-License-Identifier: MIT
"""Sends migrations as OpenTelemetry traces over OTLP/HTTP.

This module describes the spans in plain data; the SDK makes and sends them (extra `otlp`).
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec.structs import replace

from vftrace import __version__
from vftrace.errors import MachineError, UsageError, VftraceError
from vftrace.faults import FAULTS, Where
from vftrace.model import figures
from vftrace.model.brownout import Brownout
from vftrace.model.migration import Outcome, Phase, PhaseSpan, Role
from vftrace.model.report import MigrationReport
from vftrace.model.trace_id import span_id, trace_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.trace import Span

ROOT = "live migration"
FROM_ENVIRONMENT = "env"
"""The endpoint that stands for OTEL_EXPORTER_OTLP_(TRACES_)ENDPOINT."""

Attributes = Mapping[str, str | int | float | bool]


class SpanNode(msgspec.Struct, frozen=True):
    """The description of a span: times in ns since the Unix epoch, `path` unique within its trace."""

    name: str
    path: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    children: tuple["SpanNode", ...] = ()
    events: tuple[tuple[str, int, Attributes], ...] = ()
    error: str | None = None


class Trace(msgspec.Struct, frozen=True):
    """The trace of one attempt: `id` is 32 hex digits, `host` the host whose clock it uses.

    `half` distinguishes the spans of two hosts that write into one trace.
    """

    id: str
    host: str
    half: str
    root: SpanNode


def trace_of(found: MigrationReport) -> Trace | None:
    """Return the trace of a migration that has ended. None if its host's wall clock is not known."""
    m, host = found.migration, found.host
    # One offset for all times: a wall clock that is set in between must not split a migration.
    offset = figures.realtime_offset_ns(host.snapshot.clock, m.started_at_ns)
    if offset is None:
        return None
    half = f"{m.role}@{host.boot_id}"
    return Trace(trace_id(m, host.boot_id), host.name, half, _Tree(found, offset).root())


def traces_of(migrations: Iterable[MigrationReport]) -> tuple[list[Trace], list[str]]:
    """Return the traces of all migrations, and a line for each migration without a trace."""
    traces, failed = [], []
    for found in migrations:
        try:
            trace = trace_of(found)
        except Exception as error:
            m = found.migration
            name = figures.title(m.name, m.uuid, m.pid)
            FAULTS.contained(Where.TRACES, error, f"migration {name} has no trace", (m.pid,))
            failed.append(f"migration {name}: no trace: {type(error).__name__}: {error}")
        else:
            traces += [trace] if trace is not None else []
    return traces, failed


class _Tree:
    def __init__(self, found: MigrationReport, offset: int) -> None:
        m = self._m = found.migration
        self._found = found
        self._offset = offset
        ends = [m.started_at_ns, m.ended_at_ns, *m.downtime.times.values()]
        ends += [p.end_at_ns for p in self._phases()]
        ends += [r.at_ns + r.duration_ns for r in m.rounds]
        self._last = max(end for end in ends if end is not None)

    def root(self) -> SpanNode:
        m = self._m
        rounds = list(self._rounds())
        phases = []
        for number, phase in enumerate(self._phases()):
            end = phase.end_at_ns
            within = [
                node
                for at, node in rounds
                if phase.role == Role.SOURCE
                and phase.start_at_ns <= at
                and (end is None or at < end)
            ]
            rounds = [item for item in rounds if item[1] not in within]
            phases.append(self._phase(number, phase, within))
        children = (*phases, *(node for _, node in rounds), *self._devices(), *self._vfs())
        starts = [m.started_at_ns + self._offset, *(child.start_ns for child in children)]
        ends = [self._last + self._offset, *(child.end_ns for child in children)]
        return SpanNode(
            name=ROOT,
            path="",
            start_ns=min(starts),
            end_ns=max(ends),
            attributes=self._about(),
            children=children,
            events=tuple(
                (
                    c.name,
                    c.at_ns + self._offset,
                    {} if c.ns is None else {"vftrace.checkpoint.ns": c.ns},
                )
                for c in m.downtime.checkpoints
                if c.at_ns is not None
            ),
            error=str(m.cause) if m.outcome == Outcome.FAILED else None,
        )

    def _about(self) -> Attributes:
        m, found = self._m, self._found
        known: dict[str, str | int | float | None] = {
            "vftrace.vm.uuid": m.uuid,
            "vftrace.vm.name": m.name,
            "vftrace.vm.pid": m.pid,
            "vftrace.role": m.role,
            "vftrace.host": found.host.name,
            "vftrace.peer_host": found.peer.name if found.peer is not None else None,
            "vftrace.strategy": m.strategy,
            "vftrace.outcome": m.outcome or Outcome.UNKNOWN,
            "vftrace.cause": m.cause,
            "vftrace.incomplete": m.incomplete,
            "vftrace.sent_bytes": m.channel.bytes,
            "vftrace.dirty.new_pages": m.dirty.new_pages,
            "vftrace.dirty.mean_rate_bytes_per_second": figures.mean_dirty_rate(m),
            "vftrace.downtime.vcpu_ns": m.downtime.vcpu_ns,
            "vftrace.downtime.uncertainty_ns": found.uncertainty_ns,
            "vftrace.downtime.service_ns": found.service_ns,
            "vftrace.downtime.set_by": m.downtime.set_by,
            **dict(_brownout(m.brownout)),
        }
        return {
            name: figures.printable(value) if isinstance(value, str) else value
            for name, value in known.items()
            if value is not None
        }

    def _phases(self) -> list[PhaseSpan]:
        """Without the destination's `running`, which is the VM's life and not the migration's."""
        return [p for p in self._m.phases if p.name != Phase.RUNNING]

    def _phase(self, number: int, phase: PhaseSpan, rounds: Sequence[SpanNode]) -> SpanNode:
        name = f"{phase.role} {phase.name}"
        about = {"vftrace.phase": str(phase.name), "vftrace.role": str(phase.role)}
        path = f"phase/{number}/{name}"
        span = self._span(name, path, phase.start_at_ns, phase.end_at_ns, about)
        # A sweep that the stop interrupts ends shortly after its phase.
        last = max([span.end_ns, *(child.end_ns for child in rounds)])
        return replace(span, end_ns=last, children=tuple(rounds))

    def _rounds(self) -> Iterator[tuple[int, SpanNode]]:
        for number, sweep in enumerate(self._m.rounds, start=1):
            known = {
                "new_pages": sweep.new_pages,
                "redirtied_pages": sweep.redirtied_pages,
                "logged_pages": sweep.logged_pages,
                "sent_bytes": sweep.sent_bytes,
            }
            about = {f"vftrace.round.{k}": n for k, n in known.items() if n is not None}
            end = sweep.at_ns + sweep.duration_ns
            path = f"round/{number}"
            yield sweep.at_ns, self._span(f"round {number}", path, sweep.at_ns, end, about)

    def _devices(self) -> Iterator[SpanNode]:
        """Count from the migration's begin on: the state a device was in before may be days old."""
        begin = self._m.started_at_ns
        for device in self._m.devices:
            for number, state in enumerate(device.states):
                following = device.states[number + 1 : number + 2]
                end = following[0].at_ns if following else None
                if end is not None and end < begin:
                    continue
                about = {
                    "vftrace.device": figures.printable(device.address),
                    "vftrace.device.state": figures.printable(state.state),
                }
                name = figures.printable(f"device {state.state}")
                path = f"device/{device.address}/{device.role}/{number}"
                yield self._span(name, path, max(begin, state.at_ns), end, about)

    def _vfs(self) -> Iterator[SpanNode]:
        for vf in self._m.vfs:
            for number, phase in enumerate(vf.phases):
                address = figures.printable(str(vf.address))
                about = {"vftrace.vf": address, "vftrace.vf.phase": phase.name}
                path = f"vf/{vf.pf}/{vf.vf}/{number}"
                start, end = phase.start_at_ns, phase.end_at_ns
                yield self._span(f"vf {phase.name}", path, start, end, about)

    def _span(
        self, name: str, path: str, start: int, end: int | None, about: Attributes
    ) -> SpanNode:
        until = max(start, self._last if end is None else end)
        if end is None:
            about = {**about, "vftrace.unfinished": True}
        return SpanNode(name, path, start + self._offset, until + self._offset, about)


# -- sending ------------------------------------------------------------------------------------


def _brownout(b: Brownout | None) -> Iterator[tuple[str, str | int | float | None]]:
    """Yield the attributes of the brownout: the guest's speed, and what held it most."""
    if b is None:
        return
    yield "vftrace.brownout.guest_speed", b.speed
    yield "vftrace.brownout.slow_ns", b.slow_ns
    hold = max(b.holds, key=lambda hold: hold.share, default=None)
    yield "vftrace.brownout.held_by", None if hold is None else hold.by
    yield "vftrace.brownout.held_share", None if hold is None else hold.share
    yield "vftrace.brownout.held_at_stop_ns", None if b.stop is None else b.stop.ns


def check_available() -> None:
    """Raise MachineError, which names the package to install, if the extra is missing."""
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "--otlp-endpoint needs OpenTelemetry: pip install 'vftrace[otlp]'"
        ) from error


def traces_url(endpoint: str) -> str | None:
    """The URL that spans are posted to; None leaves it to OTEL_EXPORTER_OTLP_*.

    A URL without a path gets OTLP's own, `/v1/traces`. Raises UsageError for anything but an HTTP URL.
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

    Raises VftraceError if it does not accept them, MachineError if the extra is missing. Headers,
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
        raise VftraceError(f"{where} did not accept the traces: {said.text or 'no reason given'}")
    return len(spans)


class _LastWord(logging.Handler):
    """Keeps the exporter's last log line, which is its only report of a failure."""

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
        """Returns the ids of the span that is being made."""

        node = trace.root

        def generate_trace_id(self) -> int:
            return int(trace.id, 16)

        def generate_span_id(self) -> int:
            return int(span_id(trace.id, f"{trace.half}/{self.node.path}"), 16)

    ids, kept = Ids(), InMemorySpanExporter()
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence over vftrace's values.
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

    # An empty context: a context in the environment is not the parent.
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


class Sender:
    """Sends traces from a thread of its own, so that tracing never waits for a collector. `close` sends the remaining
    traces.
    """

    def __init__(self, endpoint: str, warn: Callable[[str], None]) -> None:
        """`warn` gets a line for each trace that could not be sent."""
        self._endpoint = endpoint
        self._warn = warn
        self._queue: queue.Queue[Trace | None] = queue.Queue(1024)
        self._thread: threading.Thread | None = None
        self._seen: set[str] = set()

    def knows(self, trace: str) -> bool:
        """Whether a trace with this id was offered before."""
        return trace in self._seen

    def offer(self, trace: Trace) -> None:
        """Queue a trace, unless it was offered before."""
        if self.knows(trace.id):
            return
        self._seen.add(trace.id)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(trace)
        except queue.Full:
            self._warn("traces come faster than the collector takes them: one is dropped")

    def close(self, timeout_seconds: float = 15.0) -> None:
        """Send the remaining traces, until the timeout."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (trace := self._queue.get()) is not None:
            try:
                send(self._endpoint, [trace])
            except VftraceError as error:
                self._warn(str(error))
            except Exception as error:
                FAULTS.contained(Where.TRACES, error, f"trace {trace.id} is not sent")
