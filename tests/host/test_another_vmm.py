# SPDX-License-Identifier: MIT
"""Migrations by a VMM other than QEMU (tests/lab/tinyvmm), compared with its own account."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vftlab.tinyvmm import (
    TinyVmm,
    cloud_hypervisor,
    cloud_hypervisor_local,
    compiled,
    hand_over,
    join,
    tiny_vmm,
)

pytestmark = pytest.mark.needs("gcc")

MS = 1_000_000
# More passes of the guest over its pages than one round takes.
ROUND_S = 0.05
PAGES = (64, 10, 150, 3, 223, 30)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("tinyvmm"))


@contextmanager
def recorded(path: Path) -> Iterator[list[dict[str, Any]]]:
    """What happens inside is recorded; after it the list holds the report's migrations."""
    migrations: list[dict[str, Any]] = []
    command = [sys.executable, "-m", "vftrace"]
    with subprocess.Popen(
        [*command, "record", "-o", str(path)], stderr=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stderr is not None
        try:
            assert tracer.stderr.readline() == "ready\n", tracer.stderr.read()
            yield migrations
        finally:
            tracer.send_signal(signal.SIGINT)
            assert tracer.wait(20) == 0
    report = subprocess.check_output([*command, "report", "--format", "json", str(path)])
    migrations += json.loads(report)["migrations"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def migrate(source: TinyVmm, destination: TinyVmm, limit: str = "") -> None:
    """Six rounds and a last one, with as many pages as PAGES says between them."""
    source("run")
    join(source, destination, free_port())
    source("log on")
    source("round")
    for pages in PAGES:
        source(f"pages {pages}")
        time.sleep(ROUND_S)
        source(f"round {limit}".strip())
    hand_over(source, destination)
    time.sleep(ROUND_S)


# KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE 1, KVM_DIRTY_LOG_INITIALLY_SET 2; a limit leaves pages for later rounds.
@pytest.mark.parametrize(
    ("protect", "limit"), [(3, ""), (1, ""), (0, ""), (3, "40"), (1, "40")], ids=str
)
def test_its_migration(program: Path, tmp_path: Path, protect: int, limit: str) -> None:
    with (
        recorded(tmp_path / "trace.vft") as migrations,
        tiny_vmm(program, protect=protect) as source,
        tiny_vmm(program, protect=protect) as destination,
    ):
        migrate(source, destination, limit)
    (found,) = [m for m in migrations if m["vm"]["pid"] == source.pid]
    assert not [m for m in migrations if m["vm"]["pid"] == destination.pid]
    assert (found["role"], found["outcome"], found["strategy"]) == (
        "stitched",
        "completed",
        "plain",
    )
    assert found["peer_pid"] == destination.pid
    assert found["vm"]["uuid"] is None
    assert not found["incomplete"]
    assert found["channel"]["kind"] == "tcp"
    rounds = source.did("round")
    assert len(found["rounds"]) == len(rounds)
    for seen, told in zip(found["rounds"], rounds, strict=True):
        assert seen["logged_pages"] == told["logged_pages"]
        assert told["at_ns"] <= seen["at_ns"] <= told["swept_at_ns"]
    # Under INITIALLY_SET the first log is all ones.
    assert [r["new_pages"] for r in found["rounds"][1:]] == [r["new_pages"] for r in rounds[1:]]
    assert found["dirty"]["new_pages"] == sum(r["new_pages"] for r in rounds[1:])
    told_bytes = sum(a["sent_bytes"] for a in source.log if "sent_bytes" in a)
    assert found["channel"]["bytes"] == told_bytes
    (stop,), (save,) = source.did("stop"), source.did("save")
    (load,), (run,) = destination.did("load"), destination.did("run")
    at = {c["name"]: c["at_ns"] for c in found["downtime"]["checkpoints"]}
    assert stop["at_ns"] <= at["vcpus-stopped"] <= stop["last_exit_ns"]
    assert stop["last_exit_ns"] <= at["clock-read"] <= stop["done_at_ns"]
    assert rounds[-1]["at_ns"] <= at["final-sync-done"] <= rounds[-1]["done_at_ns"]
    assert save["at_ns"] <= at["state-saved"] <= save["done_at_ns"]
    assert load["at_ns"] <= at["devices-loaded"] <= at["clock-set"] <= load["done_at_ns"]
    assert run["first_entry_ns"] <= at["vcpus-running"] <= run["first_entry_ns"] + 2 * MS
    told_ns = run["first_entry_ns"] - stop["last_exit_ns"]
    assert abs(found["downtime"]["vcpu_ns"] - told_ns) < 2 * MS


def test_it_gives_up_while_running(program: Path, tmp_path: Path) -> None:
    """Logging off and nothing went wrong: cancelled."""
    with (
        recorded(tmp_path / "trace.vft") as migrations,
        tiny_vmm(program) as other,
        tiny_vmm(program) as source,
    ):
        source("run")
        join(source, other, free_port())
        source("log on")
        for _ in range(3):
            source("round")
            time.sleep(ROUND_S)
        off = source("log off")
        time.sleep(ROUND_S)
        source("stop")
    (found,) = [m for m in migrations if m["vm"]["pid"] == source.pid]
    assert (found["outcome"], found["role"]) == ("cancelled", "source")
    assert off["at_ns"] <= found["ended_at_ns"] <= off["done_at_ns"]


def test_its_boot_and_pause_are_no_migration(program: Path, tmp_path: Path) -> None:
    with recorded(tmp_path / "trace.vft") as migrations, tiny_vmm(program) as machine:
        for _ in range(3):
            machine("run")
            time.sleep(ROUND_S)
            machine("stop")
        machine("log on")
        machine("round")
        machine("log off")
    assert migrations == []


@pytest.mark.parametrize("memory", ["copied", "passed on"])
def test_cloud_hypervisors_order(program: Path, tmp_path: Path, memory: str) -> None:
    """The clock is read once, and logging goes off after the destination runs, or was never on."""
    with recorded(tmp_path / "trace.vft") as migrations, tiny_vmm(program, protect=0) as source:
        source("run")
        time.sleep(ROUND_S)
        with tiny_vmm(program, protect=0) as destination:
            if memory == "copied":
                cloud_hypervisor(source, destination, free_port())
            else:
                cloud_hypervisor_local(source, destination, f"vftrace-{source.pid}")
            source.end()
            time.sleep(ROUND_S)
    (found,) = [m for m in migrations if m["vm"]["pid"] in (source.pid, destination.pid)]
    assert (found["role"], found["outcome"]) == ("stitched", "completed")
    assert found["peer_pid"] == destination.pid
    (stop,), (run,) = source.did("stop"), destination.did("run")
    told_ns = run["first_entry_ns"] - stop["last_exit_ns"]
    assert abs(found["downtime"]["vcpu_ns"] - told_ns) < 2 * MS
    assert len(found["rounds"]) == len(source.did("round"))
