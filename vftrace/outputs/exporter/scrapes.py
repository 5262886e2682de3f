# SPDX-License-Identifier: MIT
"""Scrapes that do not wait for a busy tracer.

The text of the metrics takes long to make if hundreds of migrations run, and longer if all CPUs are busy. Scrapers ask
at regular intervals. If a text is costly, the main thread makes the next one shortly before the same scraper will ask
again, between two batches of records: another thread would wait for the interpreter lock and the tracker's lock, and
take twice as long. The text is then served at once. If it is late, the scraper gets the text before, as long as it is a
few seconds old at most. A scraper that asks at another time waits for a text of its own. If a text is cheap, vftrace
makes one for each scrape.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any

import msgspec

App = Callable[[Any, Any], Iterable[bytes]]
Asked = tuple[str, ...]

COSTLY_S = 0.03
"""A text that costs more CPU time is made before the scraper comes."""
FRESH_S = 1.5
"""How long such a text is served after it was made."""
MARGIN_S = 0.8
"""How long before the scraper comes it is to be ready, even if it takes twice as long as the one before."""
MAX_LEAD_S = 1.6
"""The longest time before the scrape at which the making begins, unless the one before took longer."""
PATIENCE_S = 0.15
"""How long a scrape waits for a costly text that nobody has begun before it gets the one before."""
STALE_S = 4.0
"""The greatest age of the figures in that one."""
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
    """When the next text is to be begun, if vftrace has taken all records by then."""
    last_at: float = 0.0
    """When it is to be begun even if not."""


class Scrapes:
    """An application around prometheus_client's."""

    def __init__(self, app: App, cost_s: Callable[[], float] = lambda: 0.0) -> None:
        """`cost_s`: CPU time that it took lately to read the figures, where that is known from elsewhere."""
        self._app = app
        self._cost_s = cost_s
        self._lock = threading.Lock()
        self._making: dict[Asked, Future[_Text]] = {}
        self._kept: OrderedDict[Asked, _Text] = OrderedDict()
        self._scrapers: OrderedDict[tuple[Asked, str], _Scraper] = OrderedDict()

    def __call__(self, environ: Any, start: Any) -> Iterable[bytes]:
        """Answer one scrape; raises what the application raises."""
        prepared = self.prepared(environ, start)
        if prepared is not None:
            return prepared
        asked, now = _asked(environ), time.monotonic()
        with self._lock:
            before = self._kept.get(asked)
        if before is None or not self._is_costly(before) or now - before.made_at > STALE_S:
            text = self._new(asked, environ)
        else:
            text = self._new_or(before, asked, environ)
        self._expect(asked, environ, now)
        return _answer(text, start, now)

    def prepared(self, environ: Any, start: Any) -> Iterable[bytes] | None:
        """Answer one scrape if there is a fresh text for it, or if the next one is late and the one before is not too
        old; else return None. Takes almost no time."""
        asked, now = _asked(environ), time.monotonic()
        with self._lock:
            text = self._kept.get(asked)
            scraper = self._scrapers.get((asked, _address(environ)))
            overdue = scraper is not None and scraper.due_at is not None and scraper.due_at <= now
            late = overdue or asked in self._making
        if text is None or not self._is_costly(text):
            return None
        if now - text.ready_at > FRESH_S and not (late and now - text.made_at <= STALE_S):
            return None
        self._expect(asked, environ, now)
        return _answer(text, start, now)

    def _is_costly(self, text: _Text | None) -> bool:
        return max(0.0 if text is None else text.cpu_s, self._cost_s()) > COSTLY_S

    def _expect(self, asked: Asked, environ: Any, now: float) -> None:
        """Have the next text begun in time if this scraper keeps its interval."""
        who = asked, _address(environ)
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

    def _plan(self, asked: Asked, scraper: _Scraper) -> None:
        """Set when the text of the expected scrape is to be begun, unless one is there that will do."""
        assert scraper.expected_at is not None
        text = self._kept.get(asked)
        if text is None or text.ready_at + FRESH_S < scraper.expected_at:
            took = self._cost_s() if text is None else text.ready_at - text.made_at
            lead = max(took, min(2 * took, MAX_LEAD_S - MARGIN_S)) + MARGIN_S
            scraper.due_at = scraper.expected_at - lead
            scraper.last_at = scraper.expected_at - took - MARGIN_S / 2

    def prepare(self, *, late: bool = False) -> None:
        """Make the texts that are due. The main thread calls this between batches; never raises.

        `late`: older records wait. Then a text is put off as long as it would be ready in time, because its figures
        would be old.
        """
        for asked, scraper in self._take_due(late=late):
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

    def _take_due(self, *, late: bool) -> list[tuple[Asked, _Scraper]]:
        """Return whose texts are due, unless they are being made."""
        with self._lock:
            now = time.monotonic()
            due = []
            for (asked, _), scraper in self._scrapers.items():
                if scraper.due_at is None:
                    continue
                if (max(scraper.due_at, scraper.last_at) if late else scraper.due_at) <= now:
                    scraper.due_at = None
                    if asked not in self._making:
                        due.append((asked, scraper))
            return due

    def _new(self, asked: Asked, environ: Any) -> _Text:
        """Make a text, or wait for one that is being made."""
        making, mine = self._begin(asked)
        if mine:
            self._make(asked, environ, making)
        return making.result()

    def _new_or(self, before: _Text, asked: Asked, environ: Any) -> _Text:
        """Return a new text if it is there within PATIENCE_S, else the one before; the new one is made nevertheless."""
        making, mine = self._begin(asked)
        if mine:
            # At most one for each text that is kept.
            make = threading.Thread(target=self._make, args=(asked, environ, making), daemon=True)
            make.start()
        wait([making], PATIENCE_S)
        return making.result() if making.done() else before

    def _begin(self, asked: Asked) -> "tuple[Future[_Text], bool]":
        """Return the making of a text, and whether the caller has to make it."""
        with self._lock:
            making = self._making.get(asked)
            if making is not None:
                return making, False
            making = self._making[asked] = Future()
            return making, True

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


def _asked(environ: Any) -> Asked:
    return tuple(str(environ.get(name, "")) for name in _ASKED)


def _address(environ: Any) -> str:
    return str(environ.get("REMOTE_ADDR", ""))


def _answer(text: _Text, start: Any, now: float) -> Iterable[bytes]:
    """Answer with a text; one from before the request has an Age header (RFC 9111)."""
    age = [("Age", str(int(now - text.made_at)))] if text.made_at < now else []
    start(text.status, [*text.headers, *age])
    return [text.body]
