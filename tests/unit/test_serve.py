# SPDX-License-Identifier: MIT
"""`vftrace serve` from outside: pages, formats, TLS, who may read, sockets, replay, clean ends."""

import asyncio
import base64
import contextlib
import gzip
import http.client
import os
import resource
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import bcrypt
import pytest
from prometheus_client import CollectorRegistry

from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording
from vftrace.collect.replay import ReplaySource, parse_speed
from vftrace.collect.session import Session
from vftrace.commands.serve import parse_address, parse_path
from vftrace.errors import UsageError, VftraceError
from vftrace.events import wire
from vftrace.faults import FAULTS, Faults, Where
from vftrace.outputs.exporter.pages import make_app
from vftrace.outputs.exporter.passwords import credentials
from vftrace.outputs.exporter.server import (
    MAX_CONNECTIONS,
    Places,
    _Connection,
    activated_sockets,
    listen,
)
from vftrace.outputs.exporter.webconfig import RateLimit, Users, read_web_config

RECORDINGS = Path(__file__).resolve().parents[2] / "tests/golden/recordings"
SLOW = RECORDINGS / "completed-slow.vft.gz"
PASSWORD = "correct horse"
HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()


@dataclass
class Served:
    """A `vftrace serve` that runs, and where."""

    process: "subprocess.Popen[str]"
    url: str

    def get(
        self,
        path: str = "/metrics",
        headers: dict[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        method: str = "GET",
    ) -> tuple[int, Any, bytes]:
        """Status, headers and body."""
        base = self.url.removesuffix("/metrics")
        request = urllib.request.Request(base + path, headers=headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()


@contextlib.contextmanager
def serve(*arguments: str, address: str = "127.0.0.1:0", **options: Any) -> Iterator[Served]:
    """Serve a replay; ends it by SIGTERM and checks that it went quietly."""
    command = [sys.executable, "-m", "vftrace", "serve", "--replay", str(SLOW), "--speed", "0"]
    command += ["--web.listen-address", address, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            yield Served(process, _url_of(process))
        finally:
            process.terminate()
            _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in said


def _url_of(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    url = ""
    while (line := process.stderr.readline()) != "ready\n":
        assert line, "it ended before it was ready"
        if "serving " in line:
            url = line.split()[-1]
    return url


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as running:
        # All of the recording, and the second after which an end is counted.
        deadline = time.monotonic() + 20
        while b'outcome="completed",role="stitched",strategy="plain"} 1.0' not in running.get()[2]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield running


# -- pages --------------------------------------------------------------------------------------


def test_landing_page_links_to_pages_that_are_there(served: Served) -> None:
    status, headers, body = served.get("/")
    assert (status, headers.get_content_type()) == (200, "text/html")
    links = [part.split(b'"')[0].decode() for part in body.split(b'href="')[1:]]
    assert links[-3:] == ["/metrics", "/-/healthy", "/-/ready"]
    assert len({link for link in links if link.startswith("/migrations/")}) == 1
    assert [served.get(link)[0] for link in links] == [200] * len(links)


def test_other_pages_are_not_there(served: Served) -> None:
    assert served.get("/metric")[0] == 404
    assert served.get("/../etc/passwd")[0] == 404
    assert served.get("/", method="POST")[0] == 405
    assert served.get("/metrics", method="POST")[0] == 405


def test_head_has_no_body(served: Served) -> None:
    for page in ("/", "/metrics"):
        status, headers, body = served.get(page, method="HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 100


def test_text_format_and_gzip(served: Served) -> None:
    _, headers, plain = served.get()
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    _, headers, packed = served.get(headers={"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    ours = [line for line in plain.splitlines() if b"vftrace" in line]
    assert [x for x in gzip.decompress(packed).splitlines() if b"vftrace" in x] == ours


def test_openmetrics_when_asked_for(served: Served) -> None:
    _, headers, body = served.get(headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    # prometheus_client before 0.17 calls the same text 0.0.1
    assert headers["Content-Type"].split("; charset")[0] in {
        "application/openmetrics-text; version=1.0.0",
        "application/openmetrics-text; version=0.0.1",
    }
    assert body.endswith(b"# EOF\n")


def test_the_processs_own_cost_is_there(served: Served) -> None:
    _, _, body = served.get()
    assert b"\nprocess_cpu_seconds_total " in body
    assert b"\nprocess_resident_memory_bytes " in body


def test_ready_only_once_there_is_something_to_serve() -> None:
    ready = False
    app = make_app(CollectorRegistry(), "/metrics", lambda: ready)
    assert ask(app, "/-/ready") == "503 Service Unavailable"
    assert ask(app, "/-/healthy") == "200 OK"
    ready = True
    assert ask(app, "/-/ready") == "200 OK"


def test_a_failing_collector_is_reported_once_and_500(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(FAULTS, "__dict__", vars(Faults(said.append)))

    class Broken:
        def collect(self) -> Any:
            raise ValueError("boom")

        def describe(self) -> Any:
            return []

    registry = CollectorRegistry()
    registry.register(Broken())
    app = make_app(registry, "/metrics", lambda: True)
    assert ask(app, "/metrics") == "500 Internal Server Error"
    before = FAULTS.counts[Where.HTTP]
    assert ask(app, "/metrics") == "500 Internal Server Error"
    assert FAULTS.counts[Where.HTTP] == before + 1
    assert len(said) == 1
    assert said[0].startswith("internal error, contained (http)")


def ask(app: Any, path: str, **headers: str) -> str:
    """The status of one request, without a socket."""
    environ: dict[str, Any] = {"PATH_INFO": path, **headers}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    list(app(environ, lambda status, _headers: statuses.append(status)))
    (status,) = statuses
    return status


def test_another_path_for_the_metrics() -> None:
    with serve("--web.telemetry-path", "/v/metrics") as running:
        assert running.url.endswith("/v/metrics")
        assert b"vftrace_build_info" in _fetch(running.url)[2]


def _fetch(url: str) -> tuple[int, Any, bytes]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.headers, answer.read()


# -- bad clients --------------------------------------------------------------------------------


def test_rude_clients_do_no_harm(served: Served) -> None:
    host, port = served.url.split("/")[2].split(":")
    for rude in (b"\x16\x03\x01\x00\xff", b"GET\r\n\r\n", b"\0" * 10_000, b"", b"x" * 100_000):
        client = socket.create_connection((host, int(port)), timeout=5)
        with client, contextlib.suppress(OSError):
            client.sendall(rude)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
    assert served.get()[0] == 200


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    """Room for so many open files in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] not in (resource.RLIM_INFINITY,) and before[1] < count:
        pytest.skip(f"this process may open {before[1]} files at most, {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_ten_thousand_slow_clients_do_not_stop_a_scraper(served: Served) -> None:
    """They connect and say half a request; the scraper beside them is served every time, and memory stays."""
    host, port = served.url.split("/")[2].split(":")
    with many_files(10_200), contextlib.ExitStack() as stack:
        for number in range(10_000):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            client.send(b"GET /metrics HT")
            if number % 500 == 499:
                assert served.get()[0] == 200
        held = len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))
        assert held < MAX_CONNECTIONS + 100
        for _ in range(10):
            assert served.get()[0] == 200
    assert served.get()[0] == 200


def test_a_client_that_does_not_read_costs_nobody_else(served: Served) -> None:
    host, port = served.url.split("/")[2].split(":")
    request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):
                client.sendall(request * 5)
        assert served.get()[0] == 200


def test_connections_are_kept_between_scrapes(served: Served) -> None:
    """Prometheus asks again on the same connection."""
    connection = http.client.HTTPConnection(served.url.split("/")[2], timeout=10)
    ports = set()
    for _ in range(3):
        connection.request("GET", "/metrics")
        assert connection.getresponse().read().startswith(b"# HELP")
        ports.add(connection.sock.getsockname()[1])
    connection.close()
    assert len(ports) == 1


def test_the_oldest_of_whoever_holds_most_gives_way() -> None:
    async def run() -> list[str]:
        places = Places(limit=4)
        cut = []

        async def wait(name: str) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cut.append(name)

        tasks = []
        for name in ("a1", "b1", "a2", "a3", "c1", "d1"):
            tasks.append(asyncio.create_task(wait(name)))
            await asyncio.sleep(0)
            places.take(_Connection(name[0], tasks[-1]))
        await asyncio.sleep(0)
        seen = list(cut)
        for task in tasks:
            task.cancel()
        return seen

    assert asyncio.run(run()) == ["a1", "a2"]


# -- addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9843", ("127.0.0.1", 9843)),
        ("[::]:0", ("::", 0)),
        (":9843", ("", 9843)),
        ("host.example:1", ("host.example", 1)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "9843", "::1:80", "a:b", "a:70000", "a:-1", "a:", "[::1]"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse_address(text)


@pytest.mark.parametrize("text", ["", "metrics", "/-/ready", "/a?b", "/\n"])
def test_bad_paths(text: str) -> None:
    with pytest.raises(UsageError, match="not a path"):
        parse_path(text)


@pytest.mark.parametrize("text", ["", "-1", "fast", "nan"])
def test_bad_speeds(text: str) -> None:
    with pytest.raises(UsageError, match="not a speed"):
        parse_speed(text)


def test_ipv6_and_all_addresses() -> None:
    for host in ("::", ""):
        with listen(host, 0) as listening:
            port = listening.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def run_cli(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vftrace", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **options)


def test_an_address_in_use_is_one_line() -> None:
    with listen("127.0.0.1", 0) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        done = run_cli("--replay", str(SLOW), "--web.listen-address", address)
    assert done.returncode == 1
    assert done.stderr == f"vftrace: cannot listen on {address}: Address already in use\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--speed", "2"], 2, "--speed"),
        (["--replay", str(SLOW), "--record", "x"], 2, "--record"),
        (["--replay", "/nowhere.vft"], 1, "/nowhere.vft"),
        (["--replay", __file__], 1, "not a vftrace recording"),
        (["--web.listen-address", "here"], 2, "not an address"),
        (["--web.config.file", "/nowhere.yml"], 1, "/nowhere.yml"),
        (["--web.listen-address", "no-such-host.invalid:1"], 1, "no-such-host.invalid"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], code: int, words: str) -> None:
    if "--web.listen-address" not in arguments:
        arguments = [*arguments, "--web.listen-address", "127.0.0.1:0"]
    done = run_cli(*arguments)
    assert done.returncode == code
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# -- ends, sockets, systemd ---------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(number: signal.Signals) -> None:
    with serve() as running:
        running.process.send_signal(number)
        assert running.process.wait(10) == 0


def test_duration_ends_it() -> None:
    start = time.monotonic()
    arguments = ["--replay", str(SLOW), "--web.listen-address", "127.0.0.1:0", "--duration", "1s"]
    assert run_cli(*arguments).returncode == 0
    assert time.monotonic() - start >= 1


def test_systemd_passes_the_socket_and_hears_of_ready(tmp_path: Path) -> None:
    notify_path = tmp_path / "notify"
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.bind(str(notify_path))
        notify.settimeout(20)
        port = listening.getsockname()[1]
        fd = listening.fileno()
        python = shlex.join([sys.executable, "-m", "vftrace", "serve", "--replay", str(SLOW)])
        script = f"exec 3<&{fd}; LISTEN_PID=$$ LISTEN_FDS=1 exec {python}"
        environ = {**os.environ, "NOTIFY_SOCKET": str(notify_path)}
        command = ["bash", "-c", script]
        with subprocess.Popen(
            command, pass_fds=[fd], stderr=subprocess.PIPE, text=True, env=environ
        ) as process:
            assert notify.recv(100) == b"READY=1"
            assert _url_of(process) == f"http://127.0.0.1:{port}/metrics"
            assert b"vftrace_build_info" in _fetch(f"http://127.0.0.1:{port}/metrics")[2]
            process.terminate()
            assert process.wait(10) == 0


def test_sockets_for_another_process_are_not_taken() -> None:
    environ = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert activated_sockets(environ) == []
    assert environ == {}


# -- replay -------------------------------------------------------------------------------------


def test_replay_takes_the_time_it_took_divided_by_speed() -> None:
    times = [wire.HEADER.unpack_from(record)[0] for record in Recording(SLOW)]
    span_seconds = (max(times) - min(times)) / 1e9
    pump = Pump(ReplaySource(SLOW, speed=4))
    start = time.monotonic()
    positions = []
    while not pump.ended:
        pump.step()
        positions.append(pump.now_ns())
    assert time.monotonic() - start == pytest.approx(span_seconds / 4, abs=0.2)
    assert positions == sorted(positions)
    assert positions[-1] == max(times)


def test_replay_at_any_speed_ends_in_the_same_snapshot() -> None:
    snapshots = []
    for speed in (0, 50, float("inf")):
        pump = Pump(ReplaySource(SLOW, speed))
        while not pump.ended:
            pump.step()
        snapshots.append(pump.snapshot())
    assert snapshots[0] == snapshots[1] == snapshots[2]
    assert len(snapshots[0].migrations) == 1


def test_a_recorder_gets_every_record_as_it_was(tmp_path: Path) -> None:
    source = ReplaySource(SLOW, 0)
    copy = tmp_path / "copy.vft"
    with Session(source, copy) as session:
        pump = Pump(session)
        while not pump.ended:
            pump.step()
        pump.close()
    assert list(Recording(copy)) == list(Recording(SLOW))
    assert Recording(copy).host == source.host


def test_a_cut_recording_is_served_and_reported(tmp_path: Path) -> None:
    cut = tmp_path / "cut.vft"
    cut.write_bytes(gzip.decompress(SLOW.read_bytes())[:100_001])
    done = run_cli(
        *("--replay", str(cut), "--speed", "0"),
        *("--web.listen-address", "127.0.0.1:0", "--duration", "4"),
    )
    assert done.returncode == 0
    assert "the recording is incomplete" in done.stderr


def test_only_the_vm_that_is_named() -> None:
    recording = RECORDINGS / "four-at-once.vft.gz"
    with serve("--replay", str(recording), "--vm", "demo-four-at-once-2") as running:
        time.sleep(1)
        body = running.get()[2].decode()
    names = {line.split('name="')[1].split('"')[0] for line in body.splitlines() if "name=" in line}
    assert names == {"demo-four-at-once-2"}
    assert 'outcome="completed",role="stitched",strategy="plain"} 1.0' in body


# -- TLS and basic auth -------------------------------------------------------------------------


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server for 127.0.0.1, two clients, and a client of another CA."""
    directory = tmp_path_factory.mktemp("pki")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "other-ca"):
        request = ("req", "-x509", *key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
        # Python 3.13 asks for it (VERIFY_X509_STRICT)
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        openssl(*request, *usage, "-subj", f"/CN={ca}", "-days", "2", cwd=directory)
    for name, ca, alternative in (
        ("server", "ca", "IP:127.0.0.1"),
        ("client", "ca", "DNS:prometheus.example"),
        ("stranger", "ca", "DNS:stranger.example"),
        ("foreign", "other-ca", "DNS:prometheus.example"),
    ):
        ask_for = ("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(*ask_for, "-subj", f"/CN={name}", cwd=directory)
        (directory / "san").write_text(f"subjectAltName={alternative}\n")
        sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key")
        more = ("-CAcreateserial", "-days", "2", "-extfile", "san", "-out", f"{name}.pem")
        openssl(*sign, *more, cwd=directory)
    return directory


def client_of(pki: Path, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    if name is not None:
        context.load_cert_chain(pki / f"{name}.pem", pki / f"{name}.key")
    return context


def config(pki: Path, text: str) -> str:
    file = pki / "web.yml"
    file.write_text(text)
    return str(file)


TLS = "tls_server_config:\n  cert_file: server.pem\n  key_file: server.key\n"


@pytest.mark.needs("openssl")
def test_tls_and_basic_auth(pki: Path) -> None:
    text = f"{TLS}basic_auth_users:\n  prom: {HASH}\n"
    headers_text = "http_server_config:\n  headers:\n    X-Frame-Options: deny\n"
    with serve("--web.config.file", config(pki, text + headers_text)) as running:
        assert running.url.startswith("https://")
        context = client_of(pki)
        status, headers, _ = running.get(context=context)
        assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="vftrace"')
        for user, password in (("prom", "wrong"), ("nobody", PASSWORD), ("prom", ""), ("", "")):
            assert running.get(headers=basic(user, password), context=context)[0] == 401
        for path in ("/metrics", "/-/healthy", "/"):
            assert running.get(path, context=context)[0] == 401
        for _ in range(2):
            status, headers, body = running.get(headers=basic("prom", PASSWORD), context=context)
            assert status == 200
            assert b"vftrace_build_info" in body
            assert headers["X-Frame-Options"] == "deny"
        # Who does not know the CA, or speaks no TLS, gets nothing, and harms nobody.
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            running.get(context=ssl.create_default_context())
        plain = Served(running.process, running.url.replace("https", "http"))
        with pytest.raises((urllib.error.URLError, OSError, http.client.HTTPException)):
            plain.get()
        # A client that begins a handshake and then sends nothing delays no other client.
        host, port = running.url.split("/")[2].split(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.sendall(b"\x16")
            start = time.monotonic()
            assert running.get(headers=basic("prom", PASSWORD), context=context)[0] == 200
            assert time.monotonic() - start < 5


def basic(user: str, password: str) -> dict[str, str]:
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


@pytest.mark.needs("openssl")
def test_client_certificates(pki: Path) -> None:
    verify = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
    sans = "  client_allowed_sans: [prometheus.example]\n"
    with serve("--web.config.file", config(pki, TLS + verify + sans)) as running:
        assert running.get(context=client_of(pki, "client"))[0] == 200
        for refused in (None, "foreign", "stranger"):
            with pytest.raises((urllib.error.URLError, OSError, http.client.HTTPException)):
                running.get(context=client_of(pki, refused))
        assert running.get(context=client_of(pki, "client"))[0] == 200
    optional = verify.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    with serve("--web.config.file", config(pki, TLS + optional)) as running:
        assert running.get(context=client_of(pki))[0] == 200
        with pytest.raises((urllib.error.URLError, OSError, http.client.HTTPException)):
            running.get(context=client_of(pki, "foreign"))


@pytest.mark.needs("openssl")
def test_old_tls_is_refused(pki: Path) -> None:
    with serve("--web.config.file", config(pki, TLS + "  min_version: TLS13\n")) as running:
        old = client_of(pki)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((urllib.error.URLError, OSError)):
            running.get(context=old)
        assert running.get(context=client_of(pki))[0] == 200


BAD_CONFIGS: dict[str, tuple[str, str]] = {
    "not yaml": ("a: [", "not YAML"),
    "a list": ("- a", "the file is not a set of keys and values"),
    "unknown key": ("tls_config: {}", "'tls_config' is not known"),
    "unknown TLS key": (TLS + "  ca: x\n", "'ca' is not known"),
    "no key": ("tls_server_config:\n  cert_file: server.pem\n", "key_file is missing"),
    "no such file": (TLS.replace("server.key", "gone.key"), "gone.key: No such file"),
    "not the key": (TLS.replace("server.key", "client.key"), "not a certificate and its key"),
    "not a key": (TLS.replace("server.key", "server.pem"), "not a certificate and its key"),
    "CA without policy": (TLS + "  client_ca_file: ca.pem\n", "without client_auth_type"),
    "policy without CA": (
        TLS + "  client_auth_type: RequireAndVerifyClientCert\n",
        "without client_ca_file",
    ),
    "unverified client": (
        TLS + "  client_auth_type: RequireAnyClientCert\n  client_ca_file: ca.pem\n",
        "'RequireAnyClientCert' is not supported here",
    ),
    "not a CA": (
        TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.key\n",
        "holds no certificate",
    ),
    "names without certificates": (TLS + "  client_allowed_sans: [a]\n", "client_allowed_sans"),
    "ciphers": (TLS + "  cipher_suites: [A]\n", "cipher_suites is not supported here"),
    "version": (TLS + "  min_version: SSL3\n", "min_version 'SSL3' is not one of"),
    "versions": (TLS + "  min_version: TLS13\n  max_version: TLS12\n", "above max_version"),
    "clear password": ("basic_auth_users:\n  a: secret\n", "not a bcrypt hash"),
    "impossible cost": (
        "basic_auth_users:\n  a: $2b$99$" + "x" * 53 + "\n",
        "not a bcrypt hash",
    ),
    "number": ("basic_auth_users:\n  a: 1\n", "not a bcrypt hash"),
    "header": ("http_server_config:\n  headers:\n    X-Mine: 1\n", "'X-Mine' is not known"),
    "header's value": (
        'http_server_config:\n  headers:\n    X-Frame-Options: "a\\r\\nb"\n',
        "X-Frame-Options is not a line of ASCII text",
    ),
    "rate without unit": (
        "rate_limit:\n  interval: 5\n  burst: 1\n",
        "interval 5 is not a duration",
    ),
    "rate without burst": ("rate_limit:\n  interval: 1s\n", "would refuse every request"),
    "negative burst": ("rate_limit:\n  interval: 1s\n  burst: -1\n", "burst -1 is not a number"),
}


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_web_config_is_one_line(name: str, pki: Path) -> None:
    text, words = BAD_CONFIGS[name]
    file = config(pki, text)
    with pytest.raises(VftraceError) as caught:
        read_web_config(Path(file))
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_web_config_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(VftraceError, match="not a text file"):
        read_web_config(file)


@pytest.mark.parametrize("text", ["", "{}", "http_server_config:\n  http2: false\n"])
def test_an_empty_web_config_is_plain_http(text: str, tmp_path: Path) -> None:
    file = tmp_path / "web.yml"
    file.write_text(text)
    found = read_web_config(file)
    assert (found.tls, bool(found.users), found.headers) == (None, False, ())


def test_a_service_does_without_what_draws() -> None:
    """rich and difflib cost memory and start time, and no scrape needs them."""
    script = (
        "import sys; from vftrace.cli import main; code = main(sys.argv[1:])"
        "; sys.exit(code or ' '.join({'rich', 'difflib'} & sys.modules.keys()) or 0)"
    )
    words = ["serve", "--replay", str(SLOW), "--speed", "0", "--web.listen-address", "127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--duration", "100ms"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.splitlines()[1]) == (0, "ready")


def test_a_rate_limit_is_a_token_bucket() -> None:
    """As golang.org/x/time/rate, which exporter-toolkit uses: full at first, one token each interval, never more."""
    limit = RateLimit(1_000, 2)
    assert [limit.allows(at) for at in (0, 0, 0, 999)] == [True, True, False, False]
    assert [limit.allows(at) for at in (1_000, 1_001)] == [True, False]
    assert [limit.allows(at) for at in (90_000, 90_000, 90_000)] == [True, True, False]
    assert all(RateLimit(0, 0).allows(0) for _ in range(9))


def test_more_requests_than_the_rate_limit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_text("rate_limit:\n  interval: 1h\n  burst: 3\n")
    with serve("--web.config.file", str(tmp_path / "web.yml")) as running:
        answers = []
        for _ in range(5):
            try:
                answers.append(running.get()[0])
            except urllib.error.HTTPError as error:
                answers.append(error.code)
        assert answers == [200, 200, 200, 429, 429]


@pytest.mark.needs("openssl")
@pytest.mark.needs("promtool")
def test_promtool_reads_the_same_files(pki: Path) -> None:
    """What promtool takes as exporter-toolkit's format, we take; what it refuses, we refuse."""
    verify = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
    users = f"basic_auth_users:\n  prom: {HASH}\n"
    http2 = "http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n"
    good = ["", TLS, TLS + verify, users, TLS + verify + users + http2]
    assert [_promtool_takes(pki, text) for text in good] == [True] * len(good)
    for text in good:
        read_web_config(Path(config(pki, text)))
    bad = ["unknown key", "unknown TLS key", "no key", "no such file", "not the key", "header"]
    bad += ["CA without policy", "version"]
    refused = [name for name in bad if not _promtool_takes(pki, BAD_CONFIGS[name][0])]
    assert refused == bad


def _promtool_takes(pki: Path, text: str) -> bool:
    command = ["promtool", "check", "web-config", config(pki, text)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# -- passwords ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
def test_bcrypt_of_all_makers(prefix: str) -> None:
    users = Users({"a": HASH.replace("$2b$", prefix)})
    assert users.accepts("a", PASSWORD)
    assert not users.accepts("a", PASSWORD + "x")
    assert not users.accepts("b", PASSWORD)


def test_passwords_beyond_bcrypts_72_bytes_are_wrong() -> None:
    long = "x" * 72
    users = Users({"a": bcrypt.hashpw(long.encode(), bcrypt.gensalt(4)).decode()})
    assert users.accepts("a", long)
    assert not users.accepts("a", long + "y")
    assert not users.accepts("a", "x\0")


def test_an_empty_password_is_not_let_in_by_one_that_is_too_long() -> None:
    users = Users({"a": bcrypt.hashpw(b"", bcrypt.gensalt(4)).decode()})
    assert not users.accepts("a", "y" * 100)
    assert users.accepts("a", "")


@pytest.mark.parametrize(
    "header", ["", "Basic", "Basic !!!", "Basic YQ==", "Bearer YTpi", "Basic \u00fc"]
)
def test_headers_that_are_no_credentials(header: str) -> None:
    assert credentials(header) is None


def test_guessing_neither_blocks_nor_delays_the_right_user(pki: Path) -> None:
    """40 guessers at bcrypt cost 10: a user who was right before is let in at once, one from elsewhere soon."""
    dear = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
    file = config(pki, f"basic_auth_users:\n  prom: {dear}\n  other: {dear}\n")
    with serve("--web.config.file", file) as running:
        assert running.get(headers=basic("prom", PASSWORD))[0] == 200
        over = threading.Event()
        answers: Counter[int] = Counter()

        def guess(number: int) -> None:
            while not over.is_set():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    answers[running.get(headers=basic("prom", f"guess {number}"))[0]] += 1

        guessers = [threading.Thread(target=guess, args=(number,)) for number in range(40)]
        for guesser in guessers:
            guesser.start()
        try:
            for _ in range(10):
                assert running.get(headers=basic("prom", PASSWORD))[0] == 200
            assert _from_another_address(running, basic("other", PASSWORD)) == 200
        finally:
            over.set()
            for guesser in guessers:
                guesser.join()
        assert set(answers) == {401, 429}


def _from_another_address(running: Served, headers: dict[str, str]) -> int:
    address = running.url.split("/")[2]
    connection = http.client.HTTPConnection(address, timeout=20, source_address=("127.0.0.2", 0))
    connection.request("GET", "/metrics", headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.needs("openssl")
def test_certificates_and_passwords_are_renewed_without_a_restart(pki: Path) -> None:
    with serve("--web.config.file", config(pki, TLS)) as running:
        assert running.get(context=client_of(pki))[0] == 200
        # A certificate for another name: who asks for 127.0.0.1 is not served by it any more.
        (pki / "web.yml").write_text(TLS.replace("server.", "client."))
        _until(lambda: _refused(running, client_of(pki)))
        (pki / "web.yml").write_text(f"{TLS}basic_auth_users:\n  prom: {HASH}\n")
        _until(lambda: _status(running, pki) == 401)
        assert running.get(headers=basic("prom", PASSWORD), context=client_of(pki))[0] == 200
        # What is no good changes nothing.
        (pki / "web.yml").write_text("a: [")
        time.sleep(1.5)
        assert running.get(headers=basic("prom", PASSWORD), context=client_of(pki))[0] == 200
        assert _status(running, pki) == 401


def _status(running: Served, pki: Path) -> int:
    try:
        return running.get(context=client_of(pki))[0]
    except OSError:
        return 0


def _refused(running: Served, context: ssl.SSLContext) -> bool:
    try:
        running.get(context=context)
    except (urllib.error.URLError, OSError):
        return True
    return False


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
