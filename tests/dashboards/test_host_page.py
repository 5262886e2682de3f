# SPDX-License-Identifier: MIT
"""The host's page and the reports in a real browser: hostile names, narrow and wide, dark and light."""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from msgspec.structs import replace

from tests.dashboards.draw import build
from tests.unit.two_hosts import golden, write
from vftrace import events
from vftrace.events import wire

pytestmark = pytest.mark.needs("node", "npm", "chromium")

NAMES = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    '"><svg/onload=alert(3)>&lt;b&gt;' + "\u202e" + "\x1b[31m",
    "a-name-without-a-place-to-break-" + "x" * 160,
    "データベース 7 ; drop table",
)
SHOWN = (NAMES[0], '"><svg/onload=alert(3)>&lt;b&gt;??[31m', NAMES[2], NAMES[3])
"""What a reader sees of them: what steers a terminal or turns the writing around is a question mark."""
VIEWS = [(width, dark) for width in (480, 1200) for dark in (False, True)]

CUT_NS = 2_050_000_000
"""One of the migrations is over then; the other three have all made two rounds."""

Seen = dict[str, Any]


def hostile(path: Path, cut_ns: int | None = None) -> Path:
    """A real recording of four migrations whose VMs have these names.

    From `cut_ns` after its beginning it has only ticks, for ten minutes.
    """
    host, records = golden("four-at-once")
    names: dict[str, str] = {}
    kept: list[bytes] = []
    began = wire.HEADER.unpack_from(records[0])[0]
    for record in records:
        event = wire.decode(record)
        if isinstance(event, events.Process) and event.name is not None:
            if event.name not in names:
                names[event.name] = NAMES[len(names)]
            kept.append(wire.encode(structs.replace(event, name=names[event.name])))
        elif cut_ns is None or event.at_ns - began <= cut_ns:
            kept.append(record)
        elif isinstance(event, events.Tick):
            # Longer gaps are skipped in a replay.
            for second in range(600):
                later_ns = event.at_ns + second * 10**9
                tick = structs.replace(event, at_ns=later_ns, seq=event.seq + second)
                kept.append(wire.encode(tick))
            break
    return write(path, replace(host, name="hv-1<b>&"), kept)


class Served:
    """A `vftrace serve` that replays a recording."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "vftrace", "serve", "--web.listen-address", "127.0.0.1:0"]
        self.process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.url = ""
        while (line := self.process.stderr.readline()) != "ready\n":
            assert line, "it ended before it was ready"
            if "serving " in line:
                self.url = line.split()[-1].removesuffix("metrics")

    def get(self, path: str = "") -> str:
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            return str(answer.read().decode())

    def wait(self, text: str, count: int) -> None:
        deadline = time.monotonic() + 60
        while (page := self.get()).count(text) < count:
            assert time.monotonic() < deadline, page
            time.sleep(0.1)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=20)
        assert self.process.returncode == 0
        assert "Traceback" not in said


def look(pages: list[dict[str, Any]]) -> list[Seen]:
    """Load pages in one browser."""
    done = subprocess.run(
        ["node", build() / "pages.mjs"],
        input=json.dumps({"chromium": shutil.which("chromium"), "pages": pages}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[Seen] = json.loads(done.stdout)
    return found


def views(url: str, name: str, directory: Path) -> list[dict[str, Any]]:
    return [
        {
            "url": url,
            "width": width,
            "dark": dark,
            "png": str(directory / f"{name}-{width}-{'dark' if dark else 'light'}.png"),
        }
        for width, dark in VIEWS
    ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Seen]]]:
    """The browser's text: of a host whose VMs migrate, of a host after all migrations, and of a report."""
    directory = tmp_path_factory.mktemp("pages")
    now = Served("--replay", str(hostile(directory / "cut.vft", CUT_NS)))
    over = Served("--replay", str(hostile(directory / "hostile.vft")), "--speed", "0")
    try:
        now.wait(">completed<", 1)
        now.wait("<dt>dirtied</dt>", 3)
        over.wait(">completed<", 4)
        (report, *_) = [
            part.split('"')[0] for part in over.get().split('href="/')[1:] if "migrations" in part
        ]
        pages = [
            *views(now.url, "now", directory),
            *views(over.url, "over", directory),
            *views(over.url + report, "report", directory),
        ]
        found = look(pages)
        print(f"pictures: {directory}")
        yield {"now": found[:4], "over": found[4:8], "report": found[8:]}
    finally:
        now.end()
        over.end()


PAGES = [(page, view) for page in ("now", "over", "report") for view in range(len(VIEWS))]


@pytest.mark.parametrize(("page", "view"), PAGES)
def test_a_page_asks_for_nothing_and_runs_nothing(
    page: str, view: int, seen: dict[str, list[Seen]]
) -> None:
    found = seen[page][view]
    assert found["status"] == 200
    assert len(found["requests"]) == 1
    assert found["errors"] == []
    assert found["dialogs"] == 0
    assert found["handlers"] == []
    assert not {"script", "img", "iframe", "object", "link"} & set(found["elements"])


@pytest.mark.parametrize(("page", "view"), PAGES)
def test_a_page_fits_its_window(page: str, view: int, seen: dict[str, list[Seen]]) -> None:
    found = seen[page][view]
    assert found["inner"] == VIEWS[view][0]
    assert found["wide"] == [found["inner"]]


@pytest.mark.parametrize("page", ["now", "over", "report"])
def test_dark_is_dark_and_light_is_light(page: str, seen: dict[str, list[Seen]]) -> None:
    for found, (_, dark) in zip(seen[page], VIEWS, strict=True):
        paper, ink = (sum(map(int, found[key][4:-1].split(","))) for key in ("background", "ink"))
        assert (paper < ink) == dark
        assert abs(paper - ink) > 400


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_names_are_shown_as_they_are(view: int, seen: dict[str, list[Seen]]) -> None:
    for page in ("now", "over"):
        text = seen[page][view]["text"].replace("\n", " ")
        assert [name for name in SHOWN if name not in text] == []
        assert seen[page][view]["title"] == "hv-1<b>&"
    assert any(name in seen["report"][view]["text"] for name in SHOWN)


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_the_page_shows_what_happens(view: int, seen: dict[str, list[Seen]]) -> None:
    now, over = seen["now"][view], seen["over"][view]
    assert "Migrating now 3" in now["text"]
    assert "Last migrations 1" in now["text"]
    assert "dirtied" in now["text"]
    assert "Migrating now 0" in over["text"]
    assert "Last migrations 4" in over["text"]
    assert over["text"].count("completed") == 4
    assert {"/metrics", "/-/healthy", "/-/ready"} <= set(over["links"])
    assert len({to for to in over["links"] if to.startswith("/migrations/")}) == 4


def test_every_link_leads_somewhere(tmp_path: Path) -> None:
    over = Served("--replay", str(hostile(tmp_path / "hostile.vft")), "--speed", "0")
    try:
        over.wait(">completed<", 4)
        links = {part.split('"')[0] for part in over.get().split('href="/')[1:]}
        assert len(links) == 7
        for link in links:
            assert over.get(link)
    finally:
        over.end()
