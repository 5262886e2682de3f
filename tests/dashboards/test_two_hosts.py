# SPDX-License-Identifier: MIT
"""Two hosts, each with a network of its own and half of a real migration, joined by a real Prometheus's rules."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs

from tests.dashboards.prom import Stage
from tests.unit.two_hosts import golden, host_of, only, shifted, write
from vftrace import events
from vftrace.collect.replay import track
from vftrace.events import wire
from vftrace.model.migration import Migration

pytestmark = pytest.mark.needs("root", "ip", "prometheus")

MS = 1_000_000
SHIFT_NS = -1000_000 * MS
"""The second host was booted a thousand seconds later."""
ERROR_NS = 2 * MS
"""Both kernels' error bounds of their wall clocks."""


@dataclass(frozen=True)
class Case:
    """A migration, and by how much the destination's wall clock is wrong."""

    recording: str
    wrong_ns: int


# The second one's clock is wrong as far as it may be, the third one's further than the downtime is long.
CASES = (Case("multifd", 0), Case("libvirt", ERROR_NS), Case("completed-fast", -60 * MS))


@pytest.fixture
def namespaces() -> Iterator[tuple[tuple[str, str], ...]]:
    """(name, address) of two network namespaces that this one reaches."""
    made = [(f"vftp{os.getpid()}{n}", f"198.51.100.{2 + 4 * n}") for n in range(2)]
    try:
        for number, (name, address) in enumerate(made):
            here = f"198.51.100.{1 + 4 * number}"
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "eth0", "netns", name)
            ip("address", "add", f"{here}/30", "dev", name)
            ip("link", "set", name, "up")
            ip("-n", name, "address", "add", f"{address}/30", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield tuple(made)
    finally:
        for name, _ in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def test_the_joined_downtime_is_the_one_a_single_host_sees(
    namespaces: tuple[tuple[str, str], ...], tmp_path: Path
) -> None:
    addresses = {
        f"{side}-{number}": f"{address}:{9843 + number}"
        for number in range(len(CASES))
        for side, (_, address) in zip(("source", "destination"), namespaces, strict=True)
    }
    with Stage(tmp_path, (), scrape="500ms", addresses=addresses) as stage:
        real = [start(stage, number, case, namespaces) for number, case in enumerate(CASES)]
        stage.wait(f"sum(up) == {len(addresses)}", 60)
        stage.wait(f"count(vftrace_migration_resumed_timestamp_seconds) == {len(CASES)}", 20)
        stage.wait("count(vm:vftrace_migration_downtime_error_seconds:joined) == 3", 20)
        for case, migration in zip(CASES, real, strict=True):
            of = f'{{vm="{migration.uuid}"}}'
            assert migration.downtime.vcpu_ns is not None
            # Neither host alone has this figure.
            assert stage.query(f"vftrace_migration_last_downtime_seconds{of}") == []
            (error,) = stage.query(f"vm:vftrace_migration_downtime_error_seconds:joined{of}")
            assert error.value == pytest.approx(2 * ERROR_NS / 1e9)
            joined = stage.query(f"vm:vftrace_migration_downtime_seconds:joined{of}")
            if migration.downtime.vcpu_ns + case.wrong_ns <= 0:
                assert joined == []
                continue
            (found,) = joined
            off = abs(found.value - migration.downtime.vcpu_ns / 1e9)
            print(
                f"{case.recording}: one host {migration.downtime.vcpu_ns / 1e6:.3f} ms, joined"
                f" {found.value * 1e3:.3f} ms, error {error.value * 1e3:.3f} ms"
            )
            assert off <= error.value
            # A double holds Unix time to a quarter of a microsecond.
            assert off == pytest.approx(abs(case.wrong_ns) / 1e9, abs=1e-6)


def start(
    stage: Stage, number: int, case: Case, namespaces: tuple[tuple[str, str], ...]
) -> Migration:
    """Serve both halves; returns the migration as a single host saw it."""
    host, records = golden(case.recording)
    (real,) = track(records).snapshot().migrations
    assert real.peer_pid is not None
    halves = (
        ("source", real.pid, 0, 0),
        ("destination", real.peer_pid, SHIFT_NS, case.wrong_ns),
    )
    for (side, pid, shift_ns, wrong_ns), (namespace, _) in zip(halves, namespaces, strict=True):
        mine = [
            wrong(shifted(record, shift_ns, ERROR_NS), wrong_ns) for record in only(records, {pid})
        ]
        path = stage.directory / f"{side}-{number}.vft"
        write(path, host_of(side, f"boot-{side}", host, shift_ns), mine)
        stage.serve(
            path.stem,
            *("--replay", str(path), "--speed", "0"),
            inside=("ip", "netns", "exec", namespace),
        )
    return real


def wrong(record: bytes, by_ns: int) -> bytes:
    """The same record of a host whose wall clock is ahead by so much."""
    event = wire.decode(record)
    if not isinstance(event, events.ClockSample):
        return record
    return wire.encode(structs.replace(event, realtime_offset_ns=event.realtime_offset_ns + by_ns))
