# SPDX-License-Identifier: MIT
"""Scrapes beside a tracer that is busy."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from vftrace.outputs.exporter import scrapes
from vftrace.outputs.exporter.scrapes import COSTLY_S, FRESH_S, MAX_KEPT, MAX_SCRAPERS, Scrapes

Answer = tuple[str, dict[str, str], bytes]


class Metrics:
    """Counts how often it is asked; waits at the gate."""

    def __init__(self) -> None:
        self.made = 0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, environ: Any, start: Any) -> Iterable[bytes]:
        self.made += 1
        number = self.made
        self.gate.wait(10)
        if environ.get("QUERY_STRING") == "fail":
            raise ValueError("no such metric")
        start("200 OK", [("Content-Type", environ.get("HTTP_ACCEPT", "text"))])
        return [f"text {number}".encode()]


def ask(app: Scrapes, **environ: str) -> Answer:
    answer: list[tuple[str, list[tuple[str, str]]]] = []
    body = b"".join(app(environ, lambda status, headers: answer.append((status, headers))))
    return answer[0][0], dict(answer[0][1]), body


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run(app: Scrapes, condition: Callable[[], bool]) -> None:
    """Prepare texts, as the main loop does, until the condition holds."""

    def prepared() -> bool:
        app.prepare()
        return condition()

    until(prepared)


def run_for(app: Scrapes, seconds: float) -> None:
    end = time.monotonic() + seconds
    run(app, lambda: time.monotonic() >= end)


def costly() -> float:
    return 2 * COSTLY_S


def came_twice(
    monkeypatch: pytest.MonkeyPatch, apart_s: float, **times: float
) -> tuple[Scrapes, Metrics]:
    """A scraper of costly texts whose interval is known from now on; `times` are those of scrapes.py."""
    for name, seconds in {"MIN_INTERVAL_S": 0.1, **times}.items():
        monkeypatch.setattr(scrapes, name, seconds)
    metrics = Metrics()
    app = Scrapes(metrics, costly)
    assert ask(app)[2] == b"text 1"
    time.sleep(apart_s)
    assert ask(app)[2] == b"text 2"
    return app, metrics


def test_every_scrape_is_of_its_own_moment() -> None:
    app = Scrapes(Metrics())
    assert [ask(app)[2] for _ in range(3)] == [b"text 1", b"text 2", b"text 3"]
    assert "Age" not in ask(app)[1]


def test_a_text_is_ready_when_a_scraper_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    app, metrics = came_twice(monkeypatch, FRESH_S + 0.1, MARGIN_S=0.3)
    run(app, lambda: metrics.made == 3)
    metrics.gate.clear()
    begun = time.monotonic()
    status, headers, body = ask(app)
    assert time.monotonic() - begun < FRESH_S
    assert (status, headers["Age"], body) == ("200 OK", "0", b"text 3")
    metrics.gate.set()


def test_a_text_waits_for_late_records_as_long_as_there_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, metrics = came_twice(monkeypatch, 1.0, MARGIN_S=0.6, FRESH_S=0.1)
    asked_at = time.monotonic()
    while metrics.made == 2 and time.monotonic() < asked_at + 2:
        app.prepare(late=True)
        time.sleep(0.01)
    # It was due 0.6 s before the third scrape, and has to begin 0.3 s before it.
    assert 0.65 < time.monotonic() - asked_at < 1.9


def test_a_text_that_is_overdue_makes_nobody_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = came_twice(monkeypatch, 0.3, FRESH_S=0.1)
    # The main thread is busy: it begins no text. One that nobody expects now is still made.
    time.sleep(0.3)
    begun = time.monotonic()
    assert ask(app)[2] == b"text 2"
    assert time.monotonic() - begun < scrapes.PATIENCE_S
    assert ask(app, REMOTE_ADDR="another")[2] == b"text 3"


def test_a_scraper_that_does_not_come_again_costs_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    app, metrics = came_twice(monkeypatch, 0.4, MARGIN_S=0.1, FRESH_S=0.2)
    run(app, lambda: metrics.made == 3)
    run_for(app, 0.6)
    assert metrics.made == 3


def test_no_text_is_made_ahead_where_it_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrapes, "MIN_INTERVAL_S", 0.1)
    monkeypatch.setattr(scrapes, "MARGIN_S", 0.1)
    metrics = Metrics()
    app = Scrapes(metrics)
    ask(app)
    time.sleep(0.2)
    ask(app)
    run_for(app, 0.4)
    assert metrics.made == 2


def test_an_old_text_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    app = Scrapes(metrics, costly)
    assert ask(app)[2] == b"text 1"
    assert ask(app)[2] == b"text 1"
    monkeypatch.setattr(scrapes, "FRESH_S", 0.0)
    monkeypatch.setattr(scrapes, "STALE_S", 0.0)
    metrics.gate.clear()
    threading.Timer(0.2, metrics.gate.set).start()
    assert ask(app)[2] == b"text 2"


def test_nobody_waits_for_a_late_text_while_the_one_before_is_young(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics()
    app = Scrapes(metrics, costly)
    assert ask(app)[2] == b"text 1"
    monkeypatch.setattr(scrapes, "FRESH_S", 0.0)
    metrics.gate.clear()
    for least, most in ((scrapes.PATIENCE_S, 10 * scrapes.PATIENCE_S), (0, scrapes.PATIENCE_S)):
        begun = time.monotonic()
        _, headers, body = ask(app)
        assert (body, headers["Age"]) == (b"text 1", "0")
        # The first waits a moment for the one that it began, the second knows that it is late.
        assert least <= time.monotonic() - begun < most
    metrics.gate.set()
    until(lambda: not app._making)
    assert metrics.made == 2
    monkeypatch.setattr(scrapes, "FRESH_S", 10.0)
    assert ask(app)[2] == b"text 2"


def test_only_a_text_that_is_there_is_prepared() -> None:
    app = Scrapes(Metrics(), costly)
    answer: list[str] = []
    assert app.prepared({}, lambda status, _: answer.append(status)) is None
    assert ask(app)[2] == b"text 1"
    body = app.prepared({}, lambda status, _: answer.append(status))
    assert body is not None
    assert (answer, list(body)) == (["200 OK"], [b"text 1"])
    assert app.prepared({"HTTP_ACCEPT": "other"}, lambda *_: None) is None
    # Of a text that costs little each scrape has its own.
    cheap = Scrapes(Metrics())
    ask(cheap)
    assert cheap.prepared({}, lambda *_: None) is None


def test_those_who_ask_at_once_wait_for_one_text() -> None:
    metrics = Metrics()
    metrics.gate.clear()
    app = Scrapes(metrics)
    bodies: list[bytes] = []
    threads = [threading.Thread(target=lambda: bodies.append(ask(app)[2])) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    metrics.gate.set()
    for thread in threads:
        thread.join()
    assert bodies == [b"text 1"] * 4


def test_what_was_asked_for_is_answered() -> None:
    app = Scrapes(Metrics(), costly)
    assert ask(app, HTTP_ACCEPT="a")[1]["Content-Type"] == "a"
    assert ask(app, HTTP_ACCEPT="b")[1]["Content-Type"] == "b"
    assert ask(app, HTTP_ACCEPT="a")[1]["Content-Type"] == "a"
    for number in range(3 * MAX_KEPT):
        ask(app, QUERY_STRING=f"name[]={number}", REMOTE_ADDR=f"::{number}")
    assert len(app._kept) == MAX_KEPT
    assert len(app._scrapers) == MAX_SCRAPERS


def test_an_error_is_the_scrapes_own_and_the_next_is_answered() -> None:
    app = Scrapes(Metrics(), costly)
    with pytest.raises(ValueError, match="no such metric"):
        ask(app, QUERY_STRING="fail")
    assert not app._making
    assert ask(app)[2] == b"text 2"
