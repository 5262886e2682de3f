# SPDX-License-Identifier: MIT
"""`vftrace serve` scraped during a real migration, compared with QEMU's figures."""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.demo.scenarios import Truth, run_scenario
from vftrace.model.migration import Migration
from vftrace.units import format_ns

DEVICE_STATE = 64 * 1024
Scrape = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(url: str) -> Scrape:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name.removeprefix("vftrace_"), frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(found: Scrape, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL of a serve that traces this host and records to `trace.vft`."""
    command = [sys.executable, "-m", "vftrace", "serve", "--web.listen-address", "127.0.0.1:0"]
    command += ["--record", str(tmp_path / "trace.vft")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = ""
        while (line := process.stderr.readline()) != "ready\n":
            assert line, "serve ended before it was ready"
            url = line.split()[-1]
        yield url
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in said


def test_a_migration_as_prometheus_sees_it(served: str, tmp_path: Path) -> None:
    scrapes: list[Scrape] = []
    times: list[float] = []
    over = threading.Event()

    def keep_scraping() -> None:
        while not over.wait(0.1):
            start = time.monotonic()
            scrapes.append(scrape(served))
            times.append(time.monotonic() - start)

    scraper = threading.Thread(target=keep_scraping)
    scraper.start()
    try:
        truth = run_scenario("completed-slow", tmp_path, lambda line: None)
        vm = truth.processes[0].uuid
        assert vm is not None
        # A migration is counted a second after its end.
        labels = {"role": "stitched", "strategy": "plain", "outcome": "completed"}
        counted = ("migrations_total", frozenset(labels.items()))
        deadline = time.monotonic() + 60
        while not scrapes[-1].get(counted):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        over.set()
        scraper.join()
    check_progress(scrapes, vm)
    check_result(scrapes[-1], truth, vm)
    print(f"{len(times)} scrapes, the slowest took {max(times) * 1000:.0f} ms")
    recorded = track(Recording(tmp_path / "trace.vft")).snapshot().migrations
    check_recording([migration for migration in recorded if migration.uuid == vm], scrapes[-1], vm)


def check_progress(scrapes: list[Scrape], vm: str) -> None:
    """It begins, is in precopy, its counters only grow, and it ends."""

    def seen(name: str, **labels: str) -> list[float]:
        key = name, frozenset({"vm": vm, **labels}.items())
        return [found[key] for found in scrapes if key in found]

    active = seen("migration_active", role="source")
    assert active[0] == 1
    assert active[-1] == 0
    assert 1 in seen("migration_phase", role="source", phase="precopy")
    assert seen("migration_phase", role="source", phase="precopy")[-1] == 0
    for counter in ("migration_sent_bytes_total", "dirty_rounds_total"):
        assert seen(counter) == sorted(seen(counter))
        assert len(set(seen(counter))) > 1
    assert max(seen("dirty_rate_bytes_per_second")) > 0
    # The rate is that of a running migration.
    assert ("dirty_rate_bytes_per_second", frozenset({("vm", vm)})) not in scrapes[-1]


def check_result(final: Scrape, truth: Truth, vm: str) -> None:
    figures = truth.attempts[0].source
    assert figures is not None
    assert figures.transferred_bytes is not None
    assert value(final, "dirty_rounds_total", vm=vm) == figures.dirty_sync_count
    sent = value(final, "migration_sent_bytes_total", vm=vm)
    # QEMU's figure is that of its RAM; vCPUs and devices come on top.
    assert figures.transferred_bytes * 0.999 <= sent
    assert sent <= figures.transferred_bytes * 1.01 + DEVICE_STATE
    stop = next(event.at_ns for event in truth.events if event.name == "STOP")
    resume = next(event.at_ns for event in truth.events if event.name == "RESUME")
    downtime = value(final, "migration_last_downtime_seconds", vm=vm, kind="vcpu")
    assert (resume - stop) / 1e9 - 0.0005 <= downtime <= (resume - stop) / 1e9 + 0.01
    stopped = value(final, "migration_stopped_timestamp_seconds", vm=vm)
    offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert stopped == pytest.approx(stop / 1e9 + offset, abs=0.01)
    labels = {"role": "stitched", "strategy": "plain", "outcome": "completed"}
    assert value(final, "migrations_total", **labels) >= 1
    assert value(final, "events_lost_total") == 0
    assert value(final, "events_total", probe="ioctl") > 100


def check_recording(migrations: list[Migration], final: Scrape, vm: str) -> None:
    """What was recorded beside gives the same figures."""
    assert len(migrations) == 1
    downtime = migrations[0].downtime.vcpu_ns
    assert downtime is not None
    assert value(final, "migration_last_downtime_seconds", vm=vm, kind="vcpu") == downtime / 1e9
    assert value(final, "dirty_rounds_total", vm=vm) == len(migrations[0].rounds)


def test_a_migration_is_on_the_hosts_page_with_its_recording(tmp_path: Path) -> None:
    """The line in the log, the page, the report and the download are about the same migration."""
    kept = tmp_path / "kept"
    command = [sys.executable, "-m", "vftrace", "serve", "--web.listen-address", "127.0.0.1:0"]
    command += ["--record-dir", str(kept), "--log.format=json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = ""
        while (line := json.loads(process.stderr.readline()))["msg"] != "ready":
            url = line["msg"].split()[-1].removesuffix("/metrics")
        truth = run_scenario("completed-slow", tmp_path, lambda line: None)
        name = truth.processes[0].name
        while line.get("name") != name or line["msg"] != "migration ended":
            line = json.loads(process.stderr.readline())
        row = ""
        deadline = time.monotonic() + 60
        # It is closed ten seconds after the migration's end.
        while "/recording" not in row:
            assert time.monotonic() < deadline
            time.sleep(0.5)
            page = urllib.request.urlopen(url, timeout=20).read().decode()
            row = next((r for r in page.split("<tr>") if f">{name}</a>" in r), "")
        address = url + row.split('href="')[1].split('"')[0]
        report = urllib.request.urlopen(address, timeout=60).read().decode()
        recording = urllib.request.urlopen(f"{address}/recording", timeout=20)
        process.terminate()
        process.communicate(timeout=20)
    assert line["outcome"] == "completed"
    assert Path(line["file"]).parent == kept
    assert recording.headers.get_filename() == Path(line["file"]).name
    assert recording.read() == Path(line["file"]).read_bytes()
    found = track(Recording(Path(line["file"]))).snapshot().migrations
    (mine,) = (m for m in found if m.name == name)
    assert mine.downtime.vcpu_ns == line["downtime_ns"]
    assert format_ns(line["downtime_ns"]) in row
    assert format_ns(line["downtime_ns"]) in report
