"""The HTTP side of `vftrace serve`: addresses, the few pages, TLS and who may read them.

The exposition itself (text, OpenMetrics, gzip, `name[]`) is prometheus_client's.
"""

import base64
import binascii
import html
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app
from prometheus_client.registry import CollectorRegistry

from vftrace import __version__
from vftrace.errors import VftraceError
from vftrace.outputs.exporter.webconfig import Users, WebConfig

HEALTHY, READY = "/-/healthy", "/-/ready"

CLIENT_SECONDS = 10
"""A client that says nothing for this long is cut off."""
MAX_CLIENTS = 64
"""Connections at once; more are closed unheard, so that nobody makes the tracer run out of threads."""

_COMPLAIN_SECONDS = 10
_FIRST_ACTIVATED_FD = 3

Environ = MutableMapping[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `::` and no host mean IPv4 too. Raises VftraceError, one line, if refused."""
    try:
        if host in ("", "::") and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        # create_server puts the address into its message in some versions only.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise VftraceError(f"cannot listen on {_shown(host, port)}: {reason}") from error


def activated_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets systemd passes (sd_listen_fds(3)), and forget that it did; usually none.

    Raises VftraceError for what is no listening TCP socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for fd in range(_FIRST_ACTIVATED_FD, _FIRST_ACTIVATED_FD + int(count)):
        try:
            passed = socket.socket(fileno=fd)
            listening = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise VftraceError(f"fd {fd} from systemd: {error.strerror}") from error
        if not listening or passed.family not in (socket.AF_INET, socket.AF_INET6):
            raise VftraceError(f"fd {fd} from systemd is no listening TCP socket")
        passed.set_inheritable(False)
        sockets.append(passed)
    return sockets


def make_app(
    registry: CollectorRegistry, path: str, is_ready: Callable[[], bool], config: WebConfig
) -> App:
    """The pages as one WSGI application: metrics at `path`, a landing page, healthy and ready."""
    metrics: App = make_wsgi_app(registry)
    landing = _landing_page(path).encode()

    def route(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        asked = environ.get("PATH_INFO", "")
        if asked == path:
            return metrics(environ, start)
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _plain(start, HTTPStatus.METHOD_NOT_ALLOWED, extra=[("Allow", "GET, HEAD")])
        if asked == HEALTHY:
            return _plain(start, HTTPStatus.OK, "vftrace is healthy.\n")
        if asked == READY:
            if is_ready():
                return _plain(start, HTTPStatus.OK, "vftrace is ready.\n")
            return _plain(
                start, HTTPStatus.SERVICE_UNAVAILABLE, "The probes are not attached yet.\n"
            )
        if asked == "/":
            return _answer(start, HTTPStatus.OK, "text/html; charset=utf-8", landing)
        return _plain(start, HTTPStatus.NOT_FOUND)

    def app(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        def with_headers(status: str, headers: list[tuple[str, str]]) -> Any:
            return start(status, [*headers, *config.headers])

        if config.users and not _may(config.users, environ.get("HTTP_AUTHORIZATION", "")):
            challenge = [("WWW-Authenticate", 'Basic realm="vftrace"')]
            return _plain(with_headers, HTTPStatus.UNAUTHORIZED, extra=challenge)
        try:
            body = route(environ, with_headers)
        except Exception as error:
            _say(f"a request failed, please report it: {type(error).__name__}: {error}")
            return _plain(with_headers, HTTPStatus.INTERNAL_SERVER_ERROR)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else body

    return app


class Servers:
    """The application on every socket, each with a thread that accepts and one per client."""

    def __init__(self, sockets: Iterable[socket.socket], app: App, config: WebConfig) -> None:
        self._servers = [_Server(listening, app, config) for listening in sockets]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.1,), name="http", daemon=True)
            for server in self._servers
        ]
        self._scheme = "http" if config.tls is None else "https"

    @property
    def urls(self) -> list[str]:
        """Where the servers are, e.g. `http://127.0.0.1:9843`."""
        addresses = [server.socket.getsockname()[:2] for server in self._servers]
        return [f"{self._scheme}://{_shown(host, port)}" for host, port in addresses]

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Close the sockets; answers under way are not waited for."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            if thread.is_alive():
                server.shutdown()
            server.server_close()


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def log_message(self, *_: Any) -> None:
        """Scrapes are not worth a line each."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, app: App, config: WebConfig) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_address = listening.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()
        self.set_app(app)
        self._config = config
        self._free = threading.BoundedSemaphore(MAX_CLIENTS)
        self._complained = 0.0

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the client's own thread, so that a slow handshake holds up nobody else."""
        if self._config.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(CLIENT_SECONDS)
        with self._config.tls.wrap_socket(request, server_side=True) as secure:
            if _is_allowed(secure, self._config.allowed_sans):
                super().finish_request(secure, client_address)
            else:
                self._complain(client_address, "its certificate has none of client_allowed_sans")

    def handle_error(self, _request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError):
            self._complain(client_address, f"TLS: {error.reason or error}")
        elif not isinstance(error, OSError):
            self._complain(client_address, f"{type(error).__name__}: {error}")

    def _complain(self, client_address: Any, reason: str) -> None:
        # Anybody can cause these: never more than one line in ten seconds.
        now = time.monotonic()
        if now - self._complained >= _COMPLAIN_SECONDS:
            self._complained = now
            _say(f"client {client_address[0]}: {reason}")


def _is_allowed(secure: ssl.SSLSocket, allowed: frozenset[str]) -> bool:
    if not allowed:
        return True
    certificate = secure.getpeercert() or {}
    names = certificate.get("subjectAltName", ())
    return any(isinstance(entry, tuple) and entry[1] in allowed for entry in names)


def _may(users: Users, header: str) -> bool:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return bool(colon) and users.accepts(user, password)


def _plain(
    start: StartResponse,
    status: HTTPStatus,
    text: str | None = None,
    extra: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    body = f"{status.phrase}\n" if text is None else text
    return _answer(start, status, "text/plain; charset=utf-8", body.encode(), extra)


def _answer(
    start: StartResponse,
    status: HTTPStatus,
    content_type: str,
    body: bytes,
    extra: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), *extra]
    start(f"{status.value} {status.phrase}", headers)
    return [body]


def _landing_page(path: str) -> str:
    pages = ((path, "metrics"), (HEALTHY, "whether it lives"), (READY, "whether it traces"))
    links = "\n".join(
        f'<li><a href="{html.escape(page)}">{html.escape(page)}</a>: {what}</li>'
        for page, what in pages
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>vftrace</title></head>
<body>
<h1>vftrace {html.escape(__version__)}</h1>
<p>Where the time of a live migration goes, seen from this host with BPF.</p>
<ul>
{links}
</ul>
</body>
</html>
"""


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _say(line: str) -> None:
    print(f"vftrace: {line}", file=sys.stderr, flush=True)
