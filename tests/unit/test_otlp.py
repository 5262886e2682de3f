# SPDX-License-Identifier: MIT
"""Traces over OTLP/HTTP: what a collector gets, decoded with the official protobufs."""

import gzip
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.unit.two_hosts import RECORDINGS, boot_of, golden, host_of, lab, only, shifted, write
from vftrace.cli import main
from vftrace.collect.recording import Recording
from vftrace.errors import UsageError
from vftrace.model.migration import DeviceUse, Migration, Role
from vftrace.model.report import Report
from vftrace.model.trace_id import trace_id
from vftrace.outputs.traces.otlp import Sender, SpanNode, Trace, traces_of, traces_url

SECONDS = 10**9


class Collector:
    """An OTLP/HTTP receiver; `status` is what it answers."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.headers["Content-Type"] == "application/x-protobuf"
                outer.paths.append(self.path)
                outer.headers.append(dict(self.headers.items()))
                if outer.status == 200:
                    outer.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def resources(self) -> list[dict[str, object]]:
        return [attributes(r.resource.attributes) for q in self.requests for r in q.resource_spans]

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


def attributes(pairs: Iterable[KeyValue]) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


def trees(spans: list[Span]) -> dict[bytes, list[Span]]:
    """By trace; every tree is checked to be one: one root, parents that exist and cover their children."""
    by_trace: dict[bytes, list[Span]] = {}
    for span in spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    for trace, members in by_trace.items():
        assert len(trace) == 16
        assert any(trace)
        by_id = {span.span_id: span for span in members}
        assert len(by_id) == len(members)
        assert all(len(i) == 8 and any(i) for i in by_id)
        assert len([span for span in members if not span.parent_span_id]) == 1
        for span in members:
            assert span.start_time_unix_nano <= span.end_time_unix_nano
            if span.parent_span_id:
                parent = by_id[span.parent_span_id]
                assert parent.start_time_unix_nano <= span.start_time_unix_nano
                assert parent.end_time_unix_nano >= span.end_time_unix_nano
    return by_trace


def migrations(name: str) -> tuple[str, int, tuple[Migration, ...]]:
    """Boot id, wall clock offset at the first sample, migrations."""
    host, records = golden(name)
    snapshot = boot_of(host, records).snapshot
    return host.boot_id, snapshot.clock[0][1], snapshot.migrations


@pytest.mark.parametrize(
    "name", sorted(path.name.removesuffix(".vft.gz") for path in RECORDINGS.glob("*.vft.gz"))
)
def test_the_tree_ids_and_times_of(
    name: str, collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RECORDINGS / f"{name}.vft.gz"
    assert main(["report", "--otlp-endpoint", collector.url, "--ascii", str(path)]) == 0
    boot_id, offset, found = migrations(name)
    by_trace = trees(collector.spans())
    assert {trace.hex() for trace in by_trace} == {trace_id(m, boot_id) for m in found}
    assert set(collector.paths) <= {"/v1/traces"}
    for m in found:
        spans = by_trace[bytes.fromhex(trace_id(m, boot_id))]
        (root,) = [span for span in spans if not span.parent_span_id]
        assert root.name == "live migration"
        # The wall clock's offset from boot time moves by well under a millisecond in a recording.
        assert root.start_time_unix_nano == pytest.approx(m.started_at_ns + offset, abs=1_000_000)
        said = attributes(root.attributes)
        assert said.get("vftrace.vm.uuid") == m.uuid
        assert said["vftrace.outcome"] == m.outcome
        assert (root.status.code == Status.STATUS_CODE_ERROR) == (m.outcome == "failed")
        names = [span.name for span in spans]
        assert len([n for n in names if re.fullmatch(r"round \d+", n)]) == len(m.rounds)
        for phase in m.phases:
            assert (f"{phase.role} {phase.name}" in names) == (phase.name != "running")
        if m.downtime.vcpu_ns is not None:
            assert said["vftrace.downtime.vcpu_ns"] == m.downtime.vcpu_ns
            at = {event.name: event.time_unix_nano for event in root.events}
            assert at["vcpus-running"] - at["vcpus-stopped"] == m.downtime.vcpu_ns
    assert f"sent {len(found)} traces" in capsys.readouterr().err


def test_rounds_are_children_of_the_phase_they_are_in(collector: Collector) -> None:
    path = RECORDINGS / "completed-slow.vft.gz"
    main(["report", "--otlp-endpoint", collector.url, str(path)])
    spans = collector.spans()
    by_id = {span.span_id: span for span in spans}
    parents = {
        span.name: by_id[span.parent_span_id].name
        for span in spans
        if span.name.startswith("round")
    }
    assert parents["round 1"] == "source setup"
    assert parents["round 2"] == "source precopy"
    assert parents["round 8"] == "source final-sync"


def test_device_states_are_children(collector: Collector) -> None:
    path = RECORDINGS.parent / "lab" / "6.12-kprobe.vft.gz"
    assert main(["report", "--otlp-endpoint", collector.url, "--ascii", str(path)]) == 0
    host, records = lab("6.12-kprobe")
    migrations = boot_of(host, records).snapshot.migrations
    by_trace = trees(collector.spans())
    assert len(by_trace) == len(migrations)
    for m in migrations:
        spans = by_trace[bytes.fromhex(trace_id(m, host.boot_id))]
        (root,) = [span for span in spans if not span.parent_span_id]
        found = sorted(
            (str(said["vftrace.device"]), str(said["vftrace.device.state"]))
            for span in spans
            if "vftrace.device.state" in (said := attributes(span.attributes))
            and span.parent_span_id == root.span_id
        )
        shown = [
            (device.address, state.state)
            for device in m.devices
            for state, until in zip(device.states, (*device.states[1:], None), strict=True)
            if until is None or until.at_ns >= m.started_at_ns
        ]
        assert found == sorted(shown)


def test_two_hosts_make_one_trace(tmp_path: Path, collector: Collector) -> None:
    host, records = golden("completed-slow")
    (whole,) = boot_of(host, records).snapshot.migrations
    assert whole.peer_pid is not None
    shift = -100 * SECONDS
    files = [
        write(
            tmp_path / "a.vft",
            host_of("alpha", "boot-a", host),
            [shifted(r, 0, 1000) for r in only(records, {whole.pid})],
        ),
        write(
            tmp_path / "b.vft",
            host_of("beta", "boot-b", host, shift),
            [shifted(r, shift, 1000) for r in only(records, {whole.peer_pid})],
        ),
    ]
    assert main(["report", "--otlp-endpoint", collector.url, *map(str, files)]) == 0
    by_trace = trees(collector.spans())
    assert [trace.hex() for trace in by_trace] == [trace_id(whole, "boot-a")]
    (root,) = [span for span in collector.spans() if not span.parent_span_id]
    said = attributes(root.attributes)
    assert (said["vftrace.host"], said["vftrace.peer_host"]) == ("alpha", "beta")
    assert said["vftrace.role"] == "stitched"


def test_sent_again_nothing_is_new(collector: Collector) -> None:
    path = str(RECORDINGS / "libvirt.vft.gz")
    main(["report", "--otlp-endpoint", collector.url, path])
    first = {(s.trace_id, s.span_id, s.name) for s in collector.spans()}
    collector.requests.clear()
    main(["report", "--otlp-endpoint", collector.url, path])
    assert {(s.trace_id, s.span_id, s.name) for s in collector.spans()} == first


def test_the_environment_is_honoured(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=lab")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "migrations")
    path = str(RECORDINGS / "libvirt.vft.gz")
    assert main(["report", "--otlp-endpoint", "env", path]) == 0
    assert collector.paths == ["/v1/traces"]
    headers = {key.lower(): value for key, value in collector.headers[0].items()}
    assert headers["x-scope"] == "lab"
    assert headers["content-encoding"] == "gzip"
    (resource,) = collector.resources()
    assert resource["deployment.environment"] == "test"
    assert resource["service.name"] == "migrations"
    assert resource["host.name"] == golden("libvirt")[0].name


def test_the_service_is_called_vftrace(collector: Collector) -> None:
    main(["report", "--otlp-endpoint", collector.url, str(RECORDINGS / "libvirt.vft.gz")])
    assert collector.resources()[0]["service.name"] == "vftrace"


def test_a_collector_that_refuses_is_one_line(
    collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    collector.status = 400
    path = str(RECORDINGS / "libvirt.vft.gz")
    assert main(["report", "--otlp-endpoint", collector.url, path]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "did not accept the traces" in line
    assert "400" in line


@pytest.mark.parametrize("bad", ["", "localhost:4318", "ftp://x", "http://"])
def test_what_is_no_endpoint(bad: str) -> None:
    with pytest.raises(UsageError, match="OTLP"):
        traces_url(bad)


def test_a_path_is_kept() -> None:
    assert traces_url("https://c:1/x/v1/traces?a=b") == "https://c:1/x/v1/traces?a=b"
    assert traces_url("http://c:1/") == "http://c:1/v1/traces"


def test_the_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    path = str(RECORDINGS / "libvirt.vft.gz")
    assert main(["report", "--otlp-endpoint", "http://127.0.0.1:1", path]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'vftrace[otlp]'" in line


def test_a_device_without_states_and_a_migration_that_fails_leave_the_others() -> None:
    found = boot_of(*golden("four-at-once"))
    first, second, *others = found.snapshot.migrations
    # The device refused the first state that was requested, so the kernel reports no state.
    refused = DeviceUse("0000:01:10.0", "vf0", Role.SOURCE, None, None, (), (), None)
    first = replace(first, devices=(refused,))
    broken = replace(second, phases=(None,))
    snapshot = replace(found.snapshot, migrations=(first, broken, *others))
    traces, failed = traces_of(Report.of_hosts([replace(found, snapshot=snapshot)]).migrations)
    assert len(traces) == 1 + len(others)
    (line,) = failed
    assert str(second.name) in line


def test_the_sender_sends_each_trace_once(collector: Collector) -> None:
    said: list[str] = []
    sender = Sender(collector.url, said.append)
    trace = Trace("ab" * 16, "h", "source@b", SpanNode("live migration", "", 1, 2, {}))
    sender.offer(trace)
    sender.offer(trace)
    sender.close()
    assert len(collector.spans()) == 1
    assert said == []


def test_serve_sends_traces_and_its_downtimes_name_them(collector: Collector) -> None:
    command = [sys.executable, "-m", "vftrace", "serve", "--duration", "60s", "--speed", "0"]
    command += ["--replay", str(RECORDINGS / "libvirt.vft.gz"), "--otlp-endpoint", collector.url]
    command += ["--web.listen-address", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serve:
        try:
            assert serve.stderr is not None
            lines = iter(serve.stderr)
            url = next(line.split()[-1] for line in lines if "serving" in line)
            deadline = time.monotonic() + 20
            while not collector.requests and time.monotonic() < deadline:
                time.sleep(0.1)
            wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
            request = urllib.request.Request(url, headers=wanted)
            with urllib.request.urlopen(request, timeout=10) as answer:
                exposition = answer.read().decode()
        finally:
            serve.terminate()
            serve.wait(20)
    (trace,) = trees(collector.spans())
    boot_id, _, (migration,) = migrations("libvirt")
    assert trace.hex() == trace_id(migration, boot_id)
    assert migration.downtime.vcpu_ns is not None
    seconds = migration.downtime.vcpu_ns / 1e9
    (line,) = [line for line in exposition.splitlines() if " # {" in line]
    assert line.startswith('vftrace_migration_downtime_seconds_bucket{kind="vcpu",le="0.5"}')
    assert line.endswith(f' # {{trace_id="{trace.hex()}"}} {seconds}')


@pytest.mark.parametrize("name", ["completed-slow", "libvirt", "postcopy"])
def test_two_hosts_that_know_nothing_of_each_other_name_one_trace(name: str) -> None:
    """The id follows from the VM and the guest's clock, which the source hands to the destination."""
    recording = Recording(RECORDINGS / f"{name}.vft.gz")
    records = list(recording)
    (whole,) = boot_of(recording.host, records).snapshot.migrations
    assert whole.peer_pid is not None
    halves = [
        boot_of(host_of(f"host-{pid}", f"boot-{pid}", recording.host), only(records, {pid}))
        for pid in (whole.pid, whole.peer_pid)
    ]
    found = [(migration, boot.boot_id) for boot in halves for migration in boot.snapshot.migrations]
    assert [migration.role for migration, _ in found] == ["source", "destination"]
    assert len({trace_id(migration, boot_id) for migration, boot_id in found}) == 1
