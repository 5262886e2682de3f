# SPDX-License-Identifier: MIT
"""The HTTP side of `vftrace serve`: addresses, connections, TLS, and who may read.

One event loop in a thread of its own holds all connections, so a slow client costs a file descriptor, not a thread.
The number of connections is bounded. A new connection replaces an old one of the address with most connections, so a
scraper that sends its request at once is served beside any number of clients that do not. h11 parses HTTP/1.1; sockets
and TLS are asyncio's; pages.py makes the answers.
"""

import asyncio
import logging
import os
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import h11
import msgspec

from vftrace.errors import VftraceError
from vftrace.host import privileges
from vftrace.outputs.exporter.pages import Environ, FileBody, Pages, StartResponse, takes_long
from vftrace.outputs.exporter.passwords import PasswordChecks, credentials
from vftrace.outputs.exporter.webconfig import WebConfig

BACKLOG = 4096
"""Connections that wait to be accepted (the kernel cuts it at net.core.somaxconn)."""
CLIENT_SECONDS = 10
"""How long a client may take for a TLS handshake, for a request, or to read an answer."""
IDLE_SECONDS = 75
"""How long a connection is kept between two requests: longer than the usual scrape interval of a minute."""
MAX_CONNECTIONS = 512
WORKERS = 4
"""How many requests are answered at the same time; others wait."""
SLOW_WORKERS = 2
"""How many requests for pages that may take long are answered at the same time; scrapes never wait for them."""
MAX_SLOW = 16
"""How many such requests may wait or be answered; further ones are refused."""

_MAX_REQUEST = 16 * 1024
_MAX_BODY = 64 * 1024
_COMPLAIN_SECONDS = 10
_NO_FDS_SECONDS = 0.05
_FIRST_ACTIVATED_FD = 3


class Answer(msgspec.Struct, frozen=True):
    """One HTTP response."""

    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes
    file: FileBody | None = None
    """A file that is sent instead of `body`; the sender closes it."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; `::` and no host mean IPv4 too. Raises VftraceError, one line, if refused."""
    try:
        if host in ("", "::") and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        # create_server puts the address into its message in some versions only.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise VftraceError(f"cannot listen on {_shown(host, port)}: {reason}") from error


def activated_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Take the listening sockets that systemd passes (sd_listen_fds(3)); usually systemd passes no socket.

    Raises VftraceError for anything that is not a listening TCP socket.
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
            raise VftraceError(f"fd {fd} from systemd is not a listening TCP socket")
        passed.set_inheritable(False)
        sockets.append(passed)
    return sockets


class _Connection(msgspec.Struct, eq=False):
    """One client's connection; `answering` while its request is answered."""

    address: str
    task: "asyncio.Task[None]"
    answering: bool = False


class Places:
    """The open connections by client address: at most `limit` of them."""

    def __init__(self, limit: int = MAX_CONNECTIONS) -> None:
        self._limit = limit
        self._by_address: dict[str, dict[_Connection, None]] = {}
        self._count = 0

    def take(self, connection: _Connection) -> None:
        """Add a connection. If the limit is reached, the oldest idle connection of the address with most is closed."""
        if self._count >= self._limit:
            victim = self._victim()
            if victim is not None:
                self.free(victim)
                victim.task.cancel()
        self._by_address.setdefault(connection.address, {})[connection] = None
        self._count += 1

    def free(self, connection: _Connection) -> None:
        """Remove a connection; an unknown connection changes nothing."""
        held = self._by_address.get(connection.address, {})
        if connection in held:
            del held[connection]
            self._count -= 1
            if not held:
                del self._by_address[connection.address]

    def _victim(self) -> _Connection | None:
        for held in sorted(self._by_address.values(), key=len, reverse=True):
            for connection in held:
                if not connection.answering:
                    return connection
        return None


class Servers:
    """The application on every socket. `config` is called for each connection, so that the configuration may change."""

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        app: Pages,
        config: Callable[[], WebConfig],
        user: str | None = None,
    ) -> None:
        """`user`: the user of the threads that answer, if this is root; UsageError if the user does not exist."""
        privileges.require_user(user)
        self._user = user
        self._sockets = list(sockets)
        self._app = app
        self._config = config
        self._places = Places()
        self._passwords = PasswordChecks()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="http")
        self._slow_pool = ThreadPoolExecutor(SLOW_WORKERS, thread_name_prefix="http-slow")
        self._slow = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._complained = 0.0

    @property
    def urls(self) -> list[str]:
        """The URLs of the servers, e.g. `http://127.0.0.1:9843`."""
        scheme = "http" if self._config().tls is None else "https"
        addresses = [listening.getsockname()[:2] for listening in self._sockets]
        return [f"{scheme}://{_shown(host, port)}" for host, port in addresses]

    def start(self) -> None:
        """Start to answer requests."""
        self._thread.start()

    def stop(self) -> None:
        """Close the sockets, without waiting for unfinished answers."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        for listening in self._sockets:
            listening.close()
        for pool in (self._pool, self._slow_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        # This thread and the threads that it starts answer clients.
        privileges.keep_only((), self._user)
        asyncio.set_event_loop(self._loop)
        for listening in self._sockets:
            listening.setblocking(False)
            self._spawn(self._accept(listening))
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        # One turn of the loop, so that tasks end and their transports close.
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, address = await self._loop.sock_accept(listening)
            except OSError as error:
                # EMFILE, ENFILE: connections are closed meanwhile.
                self._complain("a client", os.strerror(error.errno or 0))
                await asyncio.sleep(_NO_FDS_SECONDS)
                continue
            self._spawn(self._client(client, str(address[0])))
            # A finished accept does not yield: with many new clients no other task would run.
            await asyncio.sleep(0)

    async def _client(self, client: socket.socket, address: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(address, task)
        self._places.take(connection)
        writer = None
        try:
            config = self._config()
            reader, writer = await self._open(client, config)
            if _may_connect(writer, config):
                await self._speak(connection, reader, writer, config)
                async with asyncio.timeout(CLIENT_SECONDS):
                    writer.close()
                    await writer.wait_closed()
            else:
                self._complain(address, "its certificate has none of client_allowed_sans")
        except ssl.SSLError as error:
            self._complain(address, f"TLS: {error.reason or error}")
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the client's fault: it has left, is too slow, or does not speak HTTP
        except Exception as error:
            self._complain(address, f"{type(error).__name__}: {error}")
        finally:
            self._places.free(connection)
            if writer is None:
                client.close()
            else:
                writer.transport.abort()

    async def _open(
        self, client: socket.socket, config: WebConfig
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self._loop.connect_accepted_socket(
            lambda: protocol,
            client,
            ssl=config.tls,
            ssl_handshake_timeout=None if config.tls is None else CLIENT_SECONDS,
            ssl_shutdown_timeout=None if config.tls is None else CLIENT_SECONDS,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)

    async def _speak(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        config: WebConfig,
    ) -> None:
        """Answer one request after the other, until the client closes the connection or breaks the protocol."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST)
        patience = CLIENT_SECONDS
        while True:
            try:
                async with asyncio.timeout(patience):
                    request = await _request(http, reader)
            except h11.RemoteProtocolError as error:
                status = HTTPStatus(error.error_status_hint)
                await _send(http, writer, _line(status), close=True)
                return
            if request is None:
                return
            connection.answering = True
            answer = await self._answer(connection.address, request, config)
            connection.answering = False
            try:
                async with asyncio.timeout(CLIENT_SECONDS):
                    await _send(http, writer, answer, head=request.method == b"HEAD")
                if answer.file is not None and request.method != b"HEAD":
                    await self._send_file(http, writer, answer.file)
            finally:
                if answer.file is not None:
                    answer.file.close()
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()
            patience = IDLE_SECONDS

    async def _answer(self, address: str, request: h11.Request, config: WebConfig) -> Answer:
        if not config.rate_limit.allows(time.monotonic_ns()):
            return _with(config, _line(HTTPStatus.TOO_MANY_REQUESTS))
        environ = _environ(request, address)
        if config.users:
            right = False
            given = credentials(environ.get("HTTP_AUTHORIZATION", ""))
            if given is not None:
                checked = await self._passwords.check(config.users, address, *given)
                if checked is None:
                    return _with(config, _line(HTTPStatus.TOO_MANY_REQUESTS, ("Retry-After", "5")))
                right = checked
            if not right:
                challenge = ("WWW-Authenticate", 'Basic realm="vftrace"')
                return _with(config, _line(HTTPStatus.UNAUTHORIZED, challenge))
        # A thread of its own would have to wait for the interpreter lock twice more.
        prepared = _call(self._app.prepared, environ)
        if prepared is not None:
            return _with(config, prepared)
        if not takes_long(environ["PATH_INFO"]):
            answer = await self._loop.run_in_executor(self._pool, _call_whole, self._app, environ)
            return _with(config, answer)
        if self._slow >= MAX_SLOW:
            return _with(config, _line(HTTPStatus.SERVICE_UNAVAILABLE, ("Retry-After", "5")))
        self._slow += 1
        future = self._loop.run_in_executor(self._slow_pool, _call_whole, self._app, environ)
        future.add_done_callback(self._slow_is_done)
        try:
            # If the client leaves meanwhile, only its wait ends, not the work.
            answer = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_drop)
            raise
        return _with(config, answer)

    def _slow_is_done(self, _future: "asyncio.Future[Answer]") -> None:
        self._slow -= 1

    async def _send_file(
        self, http: h11.Connection, writer: asyncio.StreamWriter, file: FileBody
    ) -> None:
        """Send a file part by part; the connection of a client that does not take a part within `CLIENT_SECONDS` is
        closed."""
        while part := await self._loop.run_in_executor(self._slow_pool, file.read):
            data = http.send(h11.Data(data=part))
            if data:
                writer.write(data)
            async with asyncio.timeout(CLIENT_SECONDS):
                await writer.drain()
        end = http.send(h11.EndOfMessage())
        if end:
            writer.write(end)

    def _complain(self, address: str, reason: str) -> None:
        # Any client can cause these lines: at most one line in ten seconds.
        now = time.monotonic()
        if now - self._complained >= _COMPLAIN_SECONDS:
            self._complained = now
            logging.getLogger("vftrace").warning("client %s: %s", address, reason)


def _drop(future: "asyncio.Future[Answer]") -> None:
    """Close the file of an answer whose client has left."""
    if not future.cancelled() and future.exception() is None:
        file = future.result().file
        if file is not None:
            file.close()


async def _request(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """Read one whole request and drop its body, which no page needs. None: the client has left."""
    request: h11.Request | None = None
    body = 0
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(_MAX_REQUEST))
            case h11.Request() as head:
                request = head
                if http.they_are_waiting_for_100_continue:
                    return request
            case h11.Data(data=data):
                body += len(data)
                if body > _MAX_BODY:
                    raise h11.RemoteProtocolError("a body", error_status_hint=413)
            case h11.EndOfMessage():
                return request
            case _:
                return None


async def _send(
    http: h11.Connection,
    writer: asyncio.StreamWriter,
    answer: Answer,
    *,
    head: bool = False,
    close: bool = False,
) -> None:
    headers = [*answer.headers, *([("Connection", "close")] if close else [])]
    response = h11.Response(
        status_code=answer.status.value,
        headers=[(name.encode(), value.encode("latin-1")) for name, value in headers],
        reason=answer.status.phrase.encode(),
    )
    sent = [http.send(response)]
    if not head and answer.file is None:
        sent.append(http.send(h11.Data(data=answer.body)))
    if head or answer.file is None:
        sent.append(http.send(h11.EndOfMessage()))
    writer.write(b"".join(part for part in sent if part))
    await writer.drain()


def _call_whole(app: Pages, environ: Environ) -> Answer:
    answer = _call(app, environ)
    assert answer is not None
    return answer


def _call(
    app: Callable[[Environ, StartResponse], Iterable[bytes] | None], environ: Environ
) -> Answer | None:
    """Run a WSGI application to its end; None if it does not answer."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    result = app(environ, lambda status, headers: started.append((status, headers)))
    if result is None:
        return None
    status, headers = started[-1]
    if isinstance(result, FileBody):
        return Answer(HTTPStatus(int(status.split()[0])), headers, b"", result)
    body = b"".join(result)
    named = [(name, value) for name, value in headers if name.lower() != "content-length"]
    length = next((v for n, v in headers if n.lower() == "content-length"), str(len(body)))
    return Answer(HTTPStatus(int(status.split()[0])), [*named, ("Content-Length", length)], body)


def _environ(request: h11.Request, address: str) -> Environ:
    """Return the WSGI environment of a request (PEP 3333, as far as the pages and prometheus_client need it)."""
    path, _, query = request.target.decode("latin-1").partition("?")
    environ: MutableMapping[str, Any] = {
        "REQUEST_METHOD": request.method.decode("latin-1"),
        "PATH_INFO": urllib.parse.unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "REMOTE_ADDR": address,
    }
    for name, value in request.headers:
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        environ[key] = value.decode("latin-1")
    return environ


def _with(config: WebConfig, answer: Answer) -> Answer:
    """Add the headers that the web configuration sets."""
    return Answer(answer.status, [*answer.headers, *config.headers], answer.body, answer.file)


def _line(status: HTTPStatus, *headers: tuple[str, str]) -> Answer:
    body = f"{status.phrase}\n".encode()
    plain = ("Content-Type", "text/plain; charset=utf-8")
    return Answer(status, [plain, ("Content-Length", str(len(body))), *headers], body)


def _may_connect(writer: asyncio.StreamWriter, config: WebConfig) -> bool:
    """Whether the client's certificate names one of `client_allowed_sans`, if the configuration requires it."""
    if not config.allowed_sans:
        return True
    certificate = writer.get_extra_info("peercert") or {}
    names = certificate.get("subjectAltName", ())
    return any(isinstance(entry, tuple) and entry[1] in config.allowed_sans for entry in names)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
