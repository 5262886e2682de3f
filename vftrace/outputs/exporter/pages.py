# SPDX-License-Identifier: MIT
"""The pages of `vftrace serve` as one WSGI application.

The exposition itself (text, OpenMetrics, gzip, `name[]`) is prometheus_client's. server.py checks who may read the
pages before a request arrives here. `/` is the host's page and `/migrations/ID` a report (site.py), if there is a
`Site`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from http import HTTPStatus
from typing import Any

from prometheus_client import make_wsgi_app
from prometheus_client.registry import CollectorRegistry

from vftrace import __version__
from vftrace.errors import VftraceError
from vftrace.faults import FAULTS, Where
from vftrace.outputs.exporter import site as site_pages
from vftrace.outputs.exporter.scrapes import Scrapes
from vftrace.outputs.exporter.site import ID, STYLE_HASH, Download, Site
from vftrace.outputs.text.markup import escape

_VERSION = re.compile(r"version\s*=\s*([^;,]*)", re.IGNORECASE)
_NUMBERS = re.compile(r"\d{1,4}(\.\d{1,4}){0,3}\s*", re.ASCII)

HEALTHY, READY = "/-/healthy", "/-/ready"
MIGRATIONS = "/migrations/"
RECORDING = "/recording"

_CHUNK = 128 * 1024
_NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_CAREFUL = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)

Environ = MutableMapping[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class FileBody:
    """The body of an answer that is read while it is sent: `size` bytes of a file."""

    def __init__(self, download: Download) -> None:
        self.size = download.size
        self._file = download.file
        self._left = download.size

    def read(self) -> bytes:
        """Read the next part; empty at the end, and if the file has become shorter."""
        part = self._file.read(min(_CHUNK, self._left))
        self._left -= len(part)
        return part

    def __iter__(self) -> Iterator[bytes]:
        while part := self.read():
            yield part

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def takes_long(path: str) -> bool:
    """Whether a page may take long, so that scrapes must not wait for it."""
    return path == "/" or path.startswith(MIGRATIONS)


class Pages:
    """The pages, and those of them that are there already."""

    def __init__(self, app: App, metrics: Scrapes, path: str) -> None:
        self._app = app
        self._metrics = metrics
        self._path = path

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """Answer a request; never raises."""
        return self._app(environ, start)

    def prepare(self, *, late: bool) -> None:
        """Make the metrics that scrapers will request soon, if making them is costly; `late` as in `Scrapes`."""
        self._metrics.prepare(late=late)

    def prepared(self, environ: Environ, start: StartResponse) -> Iterable[bytes] | None:
        """Answer a request for metrics whose text is there already; None for any other. Takes almost no time."""
        if environ["REQUEST_METHOD"] != "GET" or environ.get("PATH_INFO") != self._path:
            return None
        return self._metrics.prepared(_readable(environ), start)


def make_app(
    registry: CollectorRegistry,
    path: str,
    is_ready: Callable[[], bool],
    site: Site | None = None,
    cost_s: Callable[[], float] = lambda: 0.0,
) -> Pages:
    """Make the pages: metrics at `path`, a landing page, healthy and ready; with a `site` the host's page and reports.

    `cost_s` returns the CPU time of recent readings of the figures (scrapes.py).
    HEAD is answered as GET; the server leaves out the body (prometheus_client knows no HEAD).
    """
    metrics = Scrapes(make_wsgi_app(registry), cost_s)
    links = ((path, "metrics"), (HEALTHY, "healthy"), (READY, "ready"))

    def route(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        asked = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] != "GET":
            return plain(start, HTTPStatus.METHOD_NOT_ALLOWED, extra=[("Allow", "GET, HEAD")])
        if asked == path:
            return metrics(_readable(environ), start)
        if asked == HEALTHY:
            return plain(start, HTTPStatus.OK, "vftrace is healthy.\n")
        if asked == READY:
            if is_ready():
                return plain(start, HTTPStatus.OK, "vftrace is ready.\n")
            return plain(
                start, HTTPStatus.SERVICE_UNAVAILABLE, "The probes are not attached yet.\n"
            )
        if asked == "/":
            page = _landing_page(path) if site is None else site_pages.host_page(site.view(), links)
            return _html(start, page.encode(), f"style-src 'sha256-{STYLE_HASH}'")
        if asked.startswith(MIGRATIONS) and site is not None:
            return _migration(site, asked.removeprefix(MIGRATIONS), start)
        return plain(start, HTTPStatus.NOT_FOUND)

    def app(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        asked_as = {"HEAD": "GET"}.get(environ["REQUEST_METHOD"], environ["REQUEST_METHOD"])
        try:
            return route({**environ, "REQUEST_METHOD": asked_as}, start)
        except Exception as error:
            FAULTS.contained(Where.HTTP, error, "a request is answered with 500")
            return plain(start, HTTPStatus.INTERNAL_SERVER_ERROR)

    return Pages(app, metrics, path)


def _readable(environ: Environ) -> Environ:
    """Drop an Accept header whose version is not a version: prometheus_client compares it with one, and fails."""
    versions = _VERSION.findall(environ.get("HTTP_ACCEPT", ""))
    if all(_NUMBERS.fullmatch(version) for version in versions):
        return environ
    return {name: value for name, value in environ.items() if name != "HTTP_ACCEPT"}


def _migration(site: Site, asked: str, start: StartResponse) -> Iterable[bytes]:
    """Answer with a report, or if `/recording` follows the id, with the recording itself."""
    migration = asked.removesuffix(RECORDING)
    if not ID.fullmatch(migration):
        return plain(start, HTTPStatus.NOT_FOUND)
    if migration != asked:
        download = site.recording(migration)
        return _gone(start) if download is None else _file(start, download)
    try:
        report = site.report(migration)
    except VftraceError as error:
        said = f"There is no report of this migration: {error}\n"
        return plain(start, HTTPStatus.INTERNAL_SERVER_ERROR, said, _CAREFUL)
    # The report contains its style sheet.
    return _gone(start) if report is None else _html(start, report, "style-src 'unsafe-inline'")


def _gone(start: StartResponse) -> Iterable[bytes]:
    said = "This migration is not known (any more).\n"
    return plain(start, HTTPStatus.NOT_FOUND, said, _CAREFUL)


def _html(start: StartResponse, page: bytes, style: str) -> Iterable[bytes]:
    policy = ("Content-Security-Policy", f"{_NOTHING_ELSE}; {style}")
    return _answer(start, HTTPStatus.OK, "text/html; charset=utf-8", page, (policy, *_CAREFUL))


def _file(start: StartResponse, download: Download) -> Iterable[bytes]:
    # Names of recordings have safe characters only; a file of another origin gets a safe name.
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in download.name)
    headers = [
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", str(download.size)),
        ("Content-Disposition", f'attachment; filename="{name}"'),
        ("Content-Security-Policy", f"{_NOTHING_ELSE}; sandbox"),
        *_CAREFUL,
    ]
    start("200 OK", headers)
    return FileBody(download)


def plain(
    start: StartResponse,
    status: HTTPStatus,
    text: str | None = None,
    extra: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    """Answer with a line of text, the status's own words if none is given."""
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
        f'<li><a href="{escape(page)}">{escape(page)}</a>: {what}</li>' for page, what in pages
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>vftrace</title></head>
<body>
<h1>vftrace {escape(__version__)}</h1>
<p>Where the time of a live migration goes, seen from this host with BPF.</p>
<ul>
{links}
</ul>
</body>
</html>
"""
