# SPDX-License-Identifier: MIT
"""Scrapes that do not wait for a busy tracer.

The text of the metrics takes long to make if hundreds of migrations run, and longer if all CPUs are busy. Scrapers ask
at regular intervals. If a text is costly, vftrace makes the next one shortly before the same scraper will ask again,
and serves it at once. A scraper that asks at another time waits for a text of its own. If a text is cheap, vftrace
makes one for each scrape.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import msgspec

App = Callable[[Any, Any], Iterable[bytes]]
Asked = tuple[str, ...]

COSTLY_S = 0.03
"""A text that costs more CPU time is made before the scraper comes."""
FRESH_S = 1.0
"""How long such a text is served after it was made."""
MARGIN_S = 0.3
"""How long before the scraper comes it is to be ready, even if it takes half as long again as the one before."""
MAX_KEPT = 8
"""How many different answers are kept: one for each combination of format, compression and `name[]`."""
MAX_SCRAPERS = 16
"""How many scrapers are expected again."""
MIN_INTERVAL_S, MAX_INTERVAL_S = 1.0, 300.0
"""Who asks more often or more rarely is not expected again."""

_ASKED = ("HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING", "QUERY_STRING")


class _Text(msgspec.Struct, frozen=True):
    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    made_at: float
    """When its making began: its figures are of that moment."""
    ready_at: float
    cpu_s: float


class _Scraper(msgspec.Struct):
    """Somebody who scrapes one kind of text: the latest request, and when it came."""

    environ: Any
    asked_at: float
    expected_at: float | None = None
    """When it will come again, if it keeps its interval."""
    due_at: float | None = None
    """When the next text is to be begun."""


class Scrapes:
    """An application around prometheus_client's."""

    def __init__(self, app: App, cost_s: Callable[[], float] = lambda: 0.0) -> None:
        """`cost_s`: CPU time that it took lately to read the figures, where that is known from elsewhere."""
        self._app = app
        self._cost_s = cost_s
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._making: dict[Asked, Future[_Text]] = {}
        self._kept: OrderedDict[Asked, _Text] = OrderedDict()
        self._scrapers: OrderedDict[tuple[Asked, str], _Scraper] = OrderedDict()
        self._thread: threading.Thread | None = None

    def __call__(self, environ: Any, start: Any) -> Iterable[bytes]:
        """Answer one scrape; raises what the application raises."""
        asked = tuple(str(environ.get(name, "")) for name in _ASKED)
        now = time.monotonic()
        with self._lock:
            text = self._kept.get(asked)
        if text is None or not self._is_costly(text) or now - text.ready_at > FRESH_S:
            text = self._new(asked, environ)
            start(text.status, list(text.headers))
        else:
            start(text.status, [*text.headers, ("Age", str(int(now - text.made_at)))])
        self._expect(asked, environ, now)
        return [text.body]

    def _is_costly(self, text: _Text | None) -> bool:
        return max(0.0 if text is None else text.cpu_s, self._cost_s()) > COSTLY_S

    def _expect(self, asked: Asked, environ: Any, now: float) -> None:
        """Have the next text begun in time if this scraper keeps its interval."""
        who = asked, str(environ.get("REMOTE_ADDR", ""))
        with self._lock:
            before = self._scrapers.pop(who, None)
            self._scrapers[who] = scraper = _Scraper(environ, now)
            while len(self._scrapers) > MAX_SCRAPERS:
                self._scrapers.popitem(last=False)
            interval = 0.0 if before is None else now - before.asked_at
            if not MIN_INTERVAL_S <= interval <= MAX_INTERVAL_S:
                return
            scraper.expected_at = now + interval
            self._plan(asked, scraper)
            if self._thread is None:
                self._thread = threading.Thread(target=self._prepare, name="metrics", daemon=True)
                self._thread.start()
            self._due.notify()

    def _plan(self, asked: Asked, scraper: _Scraper) -> None:
        """Set when the text of the expected scrape is to be begun, unless one is there that will do."""
        assert scraper.expected_at is not None
        text = self._kept.get(asked)
        if text is None or text.ready_at + FRESH_S < scraper.expected_at:
            took = self._cost_s() if text is None else text.ready_at - text.made_at
            lead = took + min(took / 2, FRESH_S / 2) + MARGIN_S
            scraper.due_at = scraper.expected_at - lead

    def _prepare(self) -> None:
        """Make the texts that are due."""
        while True:
            asked, scraper = self._next_due()
            with self._lock:
                costly = self._is_costly(self._kept.get(asked))
            if not costly:
                continue
            # A scraper that asks is answered with the error.
            with contextlib.suppress(Exception):
                self._new(asked, scraper.environ)
                with self._lock:
                    if scraper.expected_at is not None and time.monotonic() < scraper.expected_at:
                        # It was ready much earlier than the one before.
                        self._plan(asked, scraper)

    def _next_due(self) -> tuple[Asked, _Scraper]:
        """Wait until a text is due; returns which one, and for whom."""
        with self._lock:
            while True:
                now = time.monotonic()
                next_at = None
                for (asked, _), scraper in self._scrapers.items():
                    if scraper.due_at is None:
                        continue
                    if scraper.due_at <= now:
                        scraper.due_at = None
                        return asked, scraper
                    next_at = min(next_at or scraper.due_at, scraper.due_at)
                self._due.wait(None if next_at is None else next_at - now)

    def _new(self, asked: Asked, environ: Any) -> _Text:
        """Make a text, or wait for one that is being made."""
        with self._lock:
            making = self._making.get(asked)
            mine = making is None
            if making is None:
                making = self._making[asked] = Future()
        if mine:
            self._make(asked, environ, making)
        return making.result()

    def _make(self, asked: Asked, environ: Any, making: "Future[_Text]") -> None:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        made_at, cpu_s = time.monotonic(), time.thread_time()
        try:
            parts = self._app(environ, lambda status, headers: started.append((status, headers)))
            status, headers = started[-1]
            body = b"".join(parts)
            cpu_s = time.thread_time() - cpu_s
            text = _Text(status, tuple(headers), body, made_at, time.monotonic(), cpu_s)
        except BaseException as error:
            with self._lock:
                del self._making[asked]
            making.set_exception(error)
            return
        with self._lock:
            del self._making[asked]
            self._kept[asked] = text
            self._kept.move_to_end(asked)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        making.set_result(text)
