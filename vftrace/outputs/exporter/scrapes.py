"""Scrapes that do not wait for a busy tracer.

Making the metrics of hundreds of migrations takes a while, and longer where all CPUs are busy. A scrape that would wait
longer than `PATIENCE_S` gets the text of the scrape before, with its age in the header `Age`; the new text is ready for
the next one. Where the tracer is not busy every scrape is of its own moment.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any

from vftrace.dataclass import dataclass

App = Callable[[Any, Any], Iterable[bytes]]

PATIENCE_S = 0.15
_HARDLY = 0.1
"""Which part of that a scrape waits while texts take longer."""
OLDEST_S = 60.0
"""A text that is older is not served: the scrape waits."""
MAX_KEPT = 8
"""How many different answers are kept: one for each combination of format, compression and `name[]`."""

_ASKED = ("HTTP_ACCEPT", "HTTP_ACCEPT_ENCODING", "QUERY_STRING")


@dataclass(frozen=True, slots=True)
class _Text:
    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    made_at: float
    took_s: float


class Scrapes:
    """An application around prometheus_client's."""

    def __init__(self, app: App, patience_s: float = PATIENCE_S) -> None:
        self._app = app
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._making: dict[tuple[str, ...], Future[_Text]] = {}
        self._kept: OrderedDict[tuple[str, ...], _Text] = OrderedDict()

    def __call__(self, environ: Any, start: Any) -> Iterable[bytes]:
        """Answer one scrape; raises what the application raises."""
        asked = tuple(str(environ.get(name, "")) for name in _ASKED)
        with self._lock:
            kept = self._kept.get(asked)
            making = self._making.get(asked)
            if making is None:
                making = self._making[asked] = Future()
                # In a thread of its own: whoever asks may stop waiting, and others wait for the same text.
                threading.Thread(
                    target=self._make, args=(asked, environ, making), name="metrics", daemon=True
                ).start()
        usable = kept is not None and time.monotonic() - kept.made_at < OLDEST_S
        if kept is not None and usable and not self._done(making, kept):
            age = ("Age", str(int(time.monotonic() - kept.made_at)))
            start(kept.status, [*kept.headers, age])
            return [kept.body]
        text = making.result()
        start(text.status, list(text.headers))
        return [text.body]

    def _done(self, making: "Future[_Text]", kept: _Text) -> bool:
        """Wait for the text; hardly, where the one before was not ready in time either."""
        patience_s = self._patience_s
        if kept.took_s > patience_s:
            patience_s *= _HARDLY
        return bool(wait([making], patience_s).done)

    def _make(self, asked: tuple[str, ...], environ: Any, making: "Future[_Text]") -> None:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        made_at = time.monotonic()
        try:
            parts = self._app(environ, lambda status, headers: started.append((status, headers)))
            status, headers = started[-1]
            body = b"".join(parts)
            text = _Text(status, tuple(headers), body, made_at, time.monotonic() - made_at)
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
