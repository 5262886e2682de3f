"""The pages of `vftrace serve` as one WSGI application.

The exposition itself (text, OpenMetrics, gzip, `name[]`) is prometheus_client's. Who may read them is decided before a
request gets here (server.py).
"""

import html
from collections.abc import Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from prometheus_client import make_wsgi_app
from prometheus_client.registry import CollectorRegistry

from vftrace import __version__
from vftrace.faults import FAULTS, Where

HEALTHY, READY = "/-/healthy", "/-/ready"

Environ = MutableMapping[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


def make_app(registry: CollectorRegistry, path: str, is_ready: Callable[[], bool]) -> App:
    """Make the pages: metrics at `path`, a landing page, healthy and ready.

    HEAD is answered as GET; the server leaves out the body (prometheus_client knows no HEAD).
    """
    metrics: App = make_wsgi_app(registry)
    landing = _landing_page(path).encode()

    def route(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        asked = environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] != "GET":
            return plain(start, HTTPStatus.METHOD_NOT_ALLOWED, extra=[("Allow", "GET, HEAD")])
        if asked == path:
            return metrics(environ, start)
        if asked == HEALTHY:
            return plain(start, HTTPStatus.OK, "vftrace is healthy.\n")
        if asked == READY:
            if is_ready():
                return plain(start, HTTPStatus.OK, "vftrace is ready.\n")
            return plain(
                start, HTTPStatus.SERVICE_UNAVAILABLE, "The probes are not attached yet.\n"
            )
        if asked == "/":
            return _answer(start, HTTPStatus.OK, "text/html; charset=utf-8", landing)
        return plain(start, HTTPStatus.NOT_FOUND)

    def app(environ: Environ, start: StartResponse) -> Iterable[bytes]:
        asked_as = {"HEAD": "GET"}.get(environ["REQUEST_METHOD"], environ["REQUEST_METHOD"])
        try:
            return route({**environ, "REQUEST_METHOD": asked_as}, start)
        except Exception as error:
            FAULTS.contained(Where.HTTP, error, "a request is answered with 500")
            return plain(start, HTTPStatus.INTERNAL_SERVER_ERROR)

    return app


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
