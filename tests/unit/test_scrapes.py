"""Scrapes beside a tracer that is busy."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from vftrace.outputs.exporter.scrapes import MAX_KEPT, Scrapes

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


def test_every_scrape_is_of_its_own_moment() -> None:
    app = Scrapes(Metrics(), patience_s=5)
    assert [ask(app)[2] for _ in range(3)] == [b"text 1", b"text 2", b"text 3"]
    assert "Age" not in ask(app)[1]


def test_a_busy_tracer_gives_the_text_before_and_the_new_one_next() -> None:
    metrics = Metrics()
    app = Scrapes(metrics, patience_s=0.05)
    assert ask(app)[2] == b"text 1"
    metrics.gate.clear()
    begun = time.monotonic()
    status, headers, body = ask(app)
    assert time.monotonic() - begun < 1
    assert (status, body, headers["Age"]) == ("200 OK", b"text 1", "0")
    # Others do not begin once more what is being made.
    assert [ask(app)[2] for _ in range(3)] == [b"text 1"] * 3
    assert metrics.made == 2
    metrics.gate.set()
    until(lambda: not app._making)
    metrics.gate.clear()
    assert ask(app)[2] == b"text 2"
    metrics.gate.set()


def test_who_is_busy_for_long_is_hardly_waited_for() -> None:
    """Each scrape took the whole patience, and what a busy machine adds to it."""
    metrics = Metrics()
    app = Scrapes(metrics, patience_s=2)
    metrics.gate.clear()
    threading.Timer(2.5, metrics.gate.set).start()
    assert ask(app)[2] == b"text 1"
    metrics.gate.clear()
    begun = time.monotonic()
    status, headers, body = ask(app)
    assert 0.1 < time.monotonic() - begun < 1.5
    assert (status, body) == ("200 OK", b"text 1")
    assert int(headers["Age"]) >= 2
    metrics.gate.set()
    until(lambda: not app._making)
    # That text took as long as this thread kept the gate shut: the next one is waited for again.
    assert ask(app)[2] in (b"text 2", b"text 3")


def test_without_a_text_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    metrics.gate.clear()
    app = Scrapes(metrics, patience_s=0.01)
    threading.Timer(0.2, metrics.gate.set).start()
    assert ask(app)[2] == b"text 1"
    # Nor is one served that is too old.
    monkeypatch.setattr("vftrace.outputs.exporter.scrapes.OLDEST_S", 0.0)
    metrics.gate.clear()
    threading.Timer(0.2, metrics.gate.set).start()
    assert ask(app)[2] == b"text 2"


def test_what_was_asked_for_is_answered() -> None:
    app = Scrapes(Metrics(), patience_s=5)
    assert ask(app, HTTP_ACCEPT="a")[1]["Content-Type"] == "a"
    assert ask(app, HTTP_ACCEPT="b")[1]["Content-Type"] == "b"
    for number in range(3 * MAX_KEPT):
        ask(app, QUERY_STRING=f"name[]={number}")
    assert len(app._kept) == MAX_KEPT


def test_an_error_is_the_scrapes_own_and_the_next_is_answered() -> None:
    app = Scrapes(Metrics(), patience_s=5)
    with pytest.raises(ValueError, match="no such metric"):
        ask(app, QUERY_STRING="fail")
    assert not app._making
    assert ask(app)[2] == b"text 2"
