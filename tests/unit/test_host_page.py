# SPDX-License-Identifier: MIT
"""The host's page of `serve`: its data, the files that an address can reach, and scrapes that do not wait for it."""

import base64
import hashlib
import http.client
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from tests.unit.test_serve import RECORDINGS, serve
from vftrace.archive import index
from vftrace.collect.pump import Pump
from vftrace.collect.replay import ReplaySource
from vftrace.commands import host_page as host_page_module
from vftrace.commands.host_page import HostSite, IndexedArchive, Kept, Reports
from vftrace.commands.serve import reading_of
from vftrace.errors import VftraceError
from vftrace.outputs.exporter import server as server_module
from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.exporter.pages import make_app
from vftrace.outputs.exporter.server import MAX_SLOW, Servers, listen
from vftrace.outputs.exporter.site import (
    ID,
    PAST_SHOWN,
    STYLE,
    STYLE_HASH,
    Download,
    HostView,
    Past,
    Site,
    host_page,
    id_of,
)
from vftrace.outputs.exporter.webconfig import WebConfig

SLOW = "completed-slow"
RETRY = "retry"


def reading(name: str) -> Reading:
    pump = Pump(ReplaySource(RECORDINGS / f"{name}.vft.gz", speed=0))
    while not pump.ended:
        pump.step()
    return reading_of(pump, [])


@pytest.fixture(scope="module")
def slow() -> Reading:
    return reading(SLOW)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A directory of recordings with an index, as a flight recorder keeps it."""
    for number, name in enumerate((SLOW, RETRY)):
        path = tmp_path / f"2026112{number}T001243.848Z-vm-completed-0000000{number}.vft.gz"
        shutil.copy(RECORDINGS / f"{name}.vft.gz", path)
        assert index.add(path) is None
    return tmp_path


class Asked:
    """An answer of the application: status, headers and body."""

    def __init__(self, app: Any, path: str) -> None:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        result = app(
            {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": ""},
            lambda status, headers: started.append((status, headers)),
        )
        self.body = b"".join(result)
        if hasattr(result, "close"):
            result.close()
        (status, headers) = started[0]
        self.status, self.headers = int(status.split()[0]), dict(headers)


def app_of(site: Site | None) -> Any:
    return make_app(CollectorRegistry(), "/metrics", lambda: True, site)


# -- what the page is made of -------------------------------------------------------------------


def test_a_migration_in_memory_and_in_the_archive_is_one(slow: Reading, archive: Path) -> None:
    site = HostSite(lambda: slow, IndexedArchive(archive))
    view = site.view()
    assert view is not None
    assert [(p.vm, p.outcome, p.kept) for p in view.past] == [
        ("demo-retry", "completed", True),
        ("demo-retry", "failed", True),
        ("demo-completed-slow", "completed", True),
    ]
    assert view.past_count == 3
    memory = HostSite(lambda: slow).view()
    assert memory is not None
    (mine,) = memory.past
    kept = view.past[2]
    assert replace(mine, source=None, destination=None, kept=True) == replace(
        kept, source=None, destination=None
    )


def test_the_figures_are_those_of_the_report(slow: Reading) -> None:
    (m,) = slow.snapshot.migrations
    page = Asked(app_of(HostSite(lambda: slow)), "/")
    text = page.body.decode()
    link = f"/migrations/{id_of(slow.host.boot_id, m.pid, m.started_at_ns)}"
    assert link in text
    report = Asked(app_of(HostSite(lambda: slow)), link).body.decode()
    downtime = re.search(r"<b>([^<]+)</b><span>downtime</span>", report)
    assert downtime is not None
    assert downtime[1] in text
    assert m.downtime.set_by is not None
    assert m.downtime.set_by in text


def test_a_report_of_the_archive_is_that_of_the_recording(slow: Reading, archive: Path) -> None:
    site = HostSite(lambda: slow, IndexedArchive(archive))
    failed = next(k for k in IndexedArchive(archive).kept() if k.past.outcome == "failed")
    report = site.report(failed.past.id)
    assert report is not None
    assert b"destination-ended" in report
    assert b"demo-retry" in report
    # The second time it is not made again.
    began = time.monotonic()
    assert site.report(failed.past.id) == report
    assert time.monotonic() - began < 0.1


def test_a_download_is_the_file(slow: Reading, archive: Path) -> None:
    kept = IndexedArchive(archive).kept()[0]
    app = app_of(HostSite(lambda: slow, IndexedArchive(archive)))
    answer = Asked(app, f"/migrations/{kept.past.id}/recording")
    assert answer.status == 200
    assert answer.body == kept.file.read_bytes()
    assert answer.headers["Content-Length"] == str(len(answer.body))
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{kept.file.name}"'
    assert "sandbox" in answer.headers["Content-Security-Policy"]


def test_before_there_is_anything_to_look_at() -> None:
    answer = Asked(app_of(HostSite(lambda: None)), "/")
    assert answer.status == 200
    assert b"is starting" in answer.body


def test_of_many_the_newest_are_shown(slow: Reading) -> None:
    (m,) = slow.snapshot.migrations
    many = tuple(replace(m, started_at_ns=m.started_at_ns + n) for n in range(PAST_SHOWN + 50))
    vms = tuple(replace(v, pid=n, name=f"vm-{n}") for v in a_vm_of(slow) for n in range(600))
    full = replace(slow, snapshot=replace(slow.snapshot, migrations=many, vms=vms))
    view = HostSite(lambda: full).view()
    assert view is not None
    page = host_page(view, [])
    assert len(set(re.findall(r'href="(/migrations/[^"]+)"', page))) == PAST_SHOWN
    assert "50 more are not shown" in page
    assert "100 more are not shown" in page


def a_vm_of(found: Reading) -> Sequence[Any]:
    from vftrace.model.migration import Vm

    return (Vm("u", 1, None, None, "qemu", None, True),)


@given(st.text(st.characters(codec=None, categories=None), max_size=60))
def test_any_text_is_text(name: str) -> None:
    past = Past(id_of("boot", 1, 2), None, name, name, name, name, name, name, name, None, 3, name)
    view = HostView(
        name, datetime(2026, 1, 1, tzinfo=UTC), 5, EMPTY, name, (past,), 1, name, (name,)
    )
    page = host_page(view, [("/metrics", name)])
    page.encode()
    assert "\x1b" not in page
    assert "<script" not in page
    inside = "header|h1|h2|time|main|p|span|table|thead|tbody|tr|th|td|a|small|code|footer|nav"
    elements = ["html", "head", "meta", "title", "style", "body", *inside.split("|")]
    allowed = {"!DOCTYPE", *elements, *(f"/{name}" for name in elements)}
    body = page.replace(STYLE, "")
    assert set(re.findall(r"<([^>\s]*)", body)) <= allowed


EMPTY = reading("boot").snapshot


# -- what an address can reach ------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "",
        "/",
        "recording",
        "/recording",
        "00000000-1-1/../../recording",
        "00000000-1-1/recording/recording",
        "00000000-1-1\n",
        "00000000-1-1",
        "00000000-1-1/recording",
        "00000000-٣-1",
        "x" * 10_000,
        ".vftrace-index",
    ],
)
def test_an_address_reaches_no_file(address: str, slow: Reading, archive: Path) -> None:
    (archive / "secret.vft").write_text("secret")
    site = HostSite(lambda: slow, IndexedArchive(archive))
    assert Asked(app_of(site), f"/migrations/{address}").status == 404


def test_a_recording_that_became_a_link_is_not_followed(slow: Reading, archive: Path) -> None:
    site = HostSite(lambda: slow, IndexedArchive(archive))
    kept = next(k for k in IndexedArchive(archive).kept() if k.past.vm == "demo-retry")
    assert site.report(kept.past.id) is not None
    kept.file.unlink()
    kept.file.symlink_to("/etc/passwd")
    assert site.recording(kept.past.id) is None


def test_a_recording_that_vanished_is_404_and_memory_still_has_its_report(
    slow: Reading, archive: Path
) -> None:
    class Stale(IndexedArchive):
        def kept(self) -> tuple[Kept, ...]:
            return found

    found = IndexedArchive(archive).kept()
    for path in archive.glob("*.vft.gz"):
        path.unlink()
    app = app_of(HostSite(lambda: slow, Stale(archive)))
    (mine, other) = (
        next(k.past.id for k in found if k.past.vm == vm)
        for vm in ("demo-completed-slow", "demo-retry")
    )
    assert Asked(app, f"/migrations/{mine}").status == 200
    assert Asked(app, f"/migrations/{other}").status == 404
    assert Asked(app, f"/migrations/{other}/recording").status == 404


def test_the_page_reads_no_recording(
    slow: Reading, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is still written, or was put there by somebody, is not in the index: a page must not wait for it."""
    shutil.copy(RECORDINGS / "multifd.vft.gz", archive / "other.vft.gz")
    os.mkfifo(archive / "pipe.vft")
    monkeypatch.setattr(index, "_look", lambda *_: pytest.fail("a recording was read"))
    view = HostSite(lambda: slow, IndexedArchive(archive)).view()
    assert view is not None
    assert {p.vm for p in view.past} == {"demo-completed-slow", "demo-retry"}
    # A line that is damaged, or of another version, costs the list and nothing else.
    (archive / index.NAME).write_bytes(b"no index\n")
    view = HostSite(lambda: slow, IndexedArchive(archive)).view()
    assert view is not None
    assert [(p.vm, p.kept) for p in view.past] == [("demo-completed-slow", False)]


def test_a_directory_that_vanished_is_a_note(slow: Reading, tmp_path: Path) -> None:
    app = app_of(HostSite(lambda: slow, IndexedArchive(tmp_path / "gone")))
    answer = Asked(app, "/")
    assert answer.status == 200
    assert b"cannot read" in answer.body
    assert b"demo-completed-slow" in answer.body


def test_a_damaged_recording_is_a_line(slow: Reading, archive: Path) -> None:
    kept = IndexedArchive(archive).kept()[0]
    archived = IndexedArchive(archive)
    found = archived.kept()

    class Stale(IndexedArchive):
        def kept(self) -> tuple[Kept, ...]:
            return found

    kept.file.write_bytes(b"no recording at all")
    answer = Asked(app_of(HostSite(lambda: slow, Stale(archive))), f"/migrations/{kept.past.id}")
    assert answer.status == 500
    assert answer.body.count(b"\n") == 1
    assert b"no report" in answer.body


def test_a_report_that_takes_too_long_ends(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_page_module, "REPORT_SECONDS", 0.01)
    path = next(archive.glob("*.vft.gz"))
    with pytest.raises(VftraceError, match="longer than"):
        Reports().of(path)


@pytest.mark.parametrize("limit", ["REPORT_BYTES", "REPORT_MEMORY"])
def test_a_report_that_is_too_large_is_a_line(
    limit: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_page_module, limit, 4096)
    path = next(archive.glob("*.vft.gz"))
    with pytest.raises(VftraceError) as error:
        Reports().of(path)
    assert "\n" not in str(error.value)


def test_the_cache_is_bounded(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_page_module, "CACHED_REPORTS", 2)
    reports = Reports()
    built: list[Path] = []

    def build(path: Path) -> bytes:
        built.append(path)
        return b"x"

    monkeypatch.setattr(reports, "_build", build)
    paths = [archive / f"{n}.vft" for n in range(4)]
    for path in paths:
        path.write_text("")
        reports.of(path)
    reports.of(paths[3])
    reports.of(paths[0])
    assert built == [*paths, paths[0]]
    paths[3].write_text("longer")
    reports.of(paths[3])
    assert built[-1] == paths[3]


def test_what_asks_for_one_report_at_once_has_it_made_once(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports()
    built: list[Path] = []

    def build(path: Path) -> bytes:
        built.append(path)
        time.sleep(0.2)
        return b"x"

    monkeypatch.setattr(reports, "_build", build)
    path = next(archive.glob("*.vft.gz"))
    threads = [threading.Thread(target=reports.of, args=(path,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


# -- headers, and less for some -----------------------------------------------------------------


def test_a_browser_may_apply_this_style_and_do_nothing_else(slow: Reading) -> None:
    app = app_of(HostSite(lambda: slow))
    (m,) = slow.snapshot.migrations
    report = f"/migrations/{id_of(slow.host.boot_id, m.pid, m.started_at_ns)}"
    for path in ("/", report):
        headers = Asked(app, path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "script" not in headers["Content-Security-Policy"]
    page = Asked(app, "/")
    style = re.search(r"<style>(.*?)</style>", page.body.decode(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert digest == STYLE_HASH
    assert f"'sha256-{digest}'" in page.headers["Content-Security-Policy"]


def test_reports_can_be_left_out() -> None:
    with serve("--web.reports=off") as running:
        status, _, body = running.get("/")
        assert status == 200
        assert b"demo-completed-slow" not in body
        assert b"/metrics" in body
        assert running.get("/migrations/00000000-1-1")[0] == 404


def test_the_password_of_the_metrics_is_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "web.yml"
    digest = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    config.write_text(f"basic_auth_users: {{reader: '{digest}'}}\n")
    with serve("--web.config.file", str(config)) as running:
        for path in ("/", "/migrations/00000000-1-1", "/migrations/00000000-1-1/recording"):
            assert running.get(path)[0] == 401
        right = {"Authorization": "Basic " + base64.b64encode(b"reader:right").decode()}
        assert running.get("/", right)[0] == 200
        assert running.get("/migrations/00000000-1-1", right)[0] == 404


# -- scrapes do not wait ------------------------------------------------------------------------


class SlowSite:
    """A site whose reports take until they are let go."""

    def __init__(self, download: Callable[[], Download | None] = lambda: None) -> None:
        self.go = threading.Event()
        self.asked = 0
        self._download = download

    def view(self) -> None:
        return None

    def report(self, migration: str) -> bytes | None:
        self.asked += 1
        self.go.wait(20)
        return b"a report"

    def recording(self, migration: str) -> Download | None:
        return self._download()


@contextmanager
def serving(site: Site) -> Iterator[int]:
    """The port of a server with this site."""
    assert ID.fullmatch("00000000-1-1")
    listening = listen("127.0.0.1", 0)
    servers = Servers([listening], app_of(site), WebConfig)
    servers.start()
    try:
        yield listening.getsockname()[1]
    finally:
        servers.stop()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_scrapes_do_not_wait_for_reports() -> None:
    site = SlowSite()
    answers: list[tuple[int, bytes]] = []
    with serving(site) as port:
        ask = lambda: answers.append(get(port, "/migrations/00000000-1-1"))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(MAX_SLOW)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while site.asked < server_module.SLOW_WORKERS or len(answers) + MAX_SLOW < len(threads):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        began = time.monotonic()
        for _ in range(20):
            assert get(port, "/metrics")[0] == 200
        took = time.monotonic() - began
        assert took < 2
        # Further requests are refused at once.
        assert get(port, "/migrations/00000000-1-1")[0] == 503
        site.go.set()
        for thread in threads:
            thread.join()
        assert answers == [(200, b"a report")] * MAX_SLOW
        assert get(port, "/migrations/00000000-1-1") == (200, b"a report")


def a_file(path: Path, size: int, shown: int | None = None) -> Callable[[], Download]:
    path.write_bytes(os.urandom(size))
    return lambda: Download(path.name, path.open("rb"), size if shown is None else shown)


def test_a_large_recording_is_sent_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "large.vft.gz"
    with serving(SlowSite(a_file(path, 20_000_000))) as port:
        status, body = get(port, "/migrations/00000000-1-1/recording")
        assert status == 200
        assert body == path.read_bytes()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(2):
            connection.request("HEAD", "/migrations/00000000-1-1/recording")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
            assert answer.headers["Content-Length"] == "20000000"


def test_a_file_that_became_shorter_ends_the_connection(tmp_path: Path) -> None:
    short = a_file(tmp_path / "short.vft.gz", 300_000, 400_000)
    with serving(SlowSite(short)) as port:
        with pytest.raises(http.client.IncompleteRead):
            get(port, "/migrations/00000000-1-1/recording")
        assert get(port, "/metrics")[0] == 200


def test_whoever_does_not_read_a_recording_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CLIENT_SECONDS", 0.3)
    opened: list[Any] = []
    make = a_file(tmp_path / "large.vft.gz", 30_000_000)

    def download() -> Download:
        found = make()
        opened.append(found.file)
        return found

    with serving(SlowSite(download)) as port:
        clients = []
        for _ in range(8):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(b"GET /migrations/00000000-1-1/recording HTTP/1.1\r\nHost: x\r\n\r\n")
            clients.append(client)
        deadline = time.monotonic() + 10
        while len(opened) < 8 or not all(file.closed for file in opened):
            assert time.monotonic() < deadline
            assert get(port, "/metrics")[0] == 200
        for client in clients:
            client.close()
