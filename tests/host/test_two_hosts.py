# SPDX-License-Identifier: MIT
"""A real migration between two hosts of this machine: separate networks and mounts, separate recordings,
one of them on a clock of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.two_hosts import boot_of, host_of, join, only, shifted
from vftrace.analysis.hosts.clocks import UNSYNCHRONISED_NS
from vftrace.collect.recording import Recording
from vftrace.demo import qemu
from vftrace.demo.scenarios import SLOW, Run
from vftrace.model.migration import Migration

MIB = 1 << 20
SECONDS = 10**9
ADDRESSES = ("192.0.2.1", "192.0.2.2")
SHIFT = -1000 * SECONDS

TRACERS_NS = 200_000
"""Two tracers on one machine stamp the same call one after the other."""

QMP_TIMES_NS = 1_000_000
"""QEMU's event times are wall-clock microseconds; they are moved to boot time when they arrive."""

pytestmark = pytest.mark.needs("root", "ip", "unshare")


@dataclass(frozen=True)
class Hosts:
    """The two network namespaces, and for each a program that is QEMU inside it."""

    names: tuple[str, str]
    qemus: tuple[Path, Path]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    names = f"vft{os.getpid()}a", f"vft{os.getpid()}b"
    binary = qemu.find_qemu()
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            names[0],
            "netns",
            names[0],
            "type",
            "veth",
            *("peer", names[1], "netns", names[1]),
        )
        programs = []
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            program = tmp_path / name
            inside = f"exec ip netns exec {name} unshare --mount {binary}"
            program.write_text(f'#!/bin/sh\n{inside} "$@"\n')
            program.chmod(0o755)
            programs.append(program)
        yield Hosts(names, (programs[0], programs[1]))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


async def migrate(hosts: Hosts, directory: Path) -> tuple[int, int, int]:
    """Pids of source and destination, and the ns between QEMU's events STOP there and RESUME here."""
    async with AsyncExitStack() as stack:
        run = Run("two-hosts", hosts.qemus[0], directory, stack, lambda line: None)
        source = await run.source(run.firmware(SLOW))
        run.binary = hosts.qemus[1]
        destination = await run.destination(source)
        namespaces = [
            {
                name: str(Path(f"/proc/{vm.qemu.pid}/ns/{name}").readlink())
                for name in ("net", "mnt")
            }
            for vm in (source, destination)
        ]
        assert namespaces[0]["net"] != namespaces[1]["net"]
        assert namespaces[0]["mnt"] != namespaces[1]["mnt"]
        address = f"tcp:{ADDRESSES[1]}:4444"
        await destination.qemu.command_qmp("migrate-incoming", uri=address)
        moved = await run.migrate(source, None, bandwidth=8 * MIB, downtime_ms=20, channel=address)
        await moved.status("completed")
        resume = await destination.qemu.wait_event(lambda event: event.name == "RESUME", "RESUME")
        stop = next(event for event in source.qemu.events if event.name == "STOP")
        await run.guest_runs(destination)
        await run.send_signal(signal.SIGTERM, source)
        await run.send_signal(signal.SIGTERM, destination)
        return source.qemu.pid, destination.qemu.pid, resume.at_ns - stop.at_ns


def record(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "vftrace", "record", "-o", str(path), "--duration", "120s"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    assert any(line.strip() == "ready" for line in started.stderr)
    return started


def test_stitched_from_two_recordings_it_is_what_one_sees(hosts: Hosts, tmp_path: Path) -> None:
    files = tmp_path / "a.vft", tmp_path / "b.vft"
    running = []
    try:
        running += [record(file) for file in files]
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
            source, destination, qemu_ns = asyncio.run(migrate(hosts, Path(directory)))
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.communicate(timeout=30)
    assert [process.returncode for process in running] == [0, 0]
    first, second = (Recording(file) for file in files)
    seen, other = list(first), list(second)
    # Others may run on this machine too.
    migrations = boot_of(first.host, seen).snapshot.migrations
    (real,) = [m for m in migrations if (m.pid, m.peer_pid) == (source, destination)]
    assert real.downtime.vcpu_ns is not None
    for error in (UNSYNCHRONISED_NS, 5_000_000, 50_000):
        here = host_of("alpha", "boot-a", first.host)
        there = host_of("beta", "boot-b", second.host, SHIFT)
        boots = [
            boot_of(here, [shifted(r, 0, error) for r in only(seen, {source})]),
            boot_of(there, [shifted(r, SHIFT, error) for r in only(other, {destination})]),
        ]
        (found,) = join(boots)
        check(found.migration, real, found.uncertainty_ns)
        assert found.uncertainty_ns is not None
        assert found.migration.downtime.vcpu_ns is not None
        print(
            f"error bound {error / 1e6} ms: {found.migration.downtime.vcpu_ns / 1e6:.3f} ms"
            f" ± {found.uncertainty_ns / 1e6:.3f}; one clock {real.downtime.vcpu_ns / 1e6:.3f},"
            f" QEMU's events {qemu_ns / 1e6:.3f}"
        )
        # STOP is sent when the vCPUs have stopped, RESUME before they are started (softmmu/cpus.c,
        # do_vm_stop and vm_prepare_start).
        longest = found.migration.downtime.vcpu_ns + found.uncertainty_ns
        assert longest >= qemu_ns - QMP_TIMES_NS


def check(found: Migration, real: Migration, uncertainty_ns: int | None) -> None:
    assert found.role == "stitched"
    assert found.outcome == real.outcome == "completed"
    assert (found.pid, found.peer_pid) == (real.pid, real.peer_pid)
    assert found.channel.kind == "tcp"
    assert uncertainty_ns is not None
    assert found.downtime.vcpu_ns is not None
    assert real.downtime.vcpu_ns is not None
    assert found.downtime.vcpu_ns >= 0
    assert abs(found.downtime.vcpu_ns - real.downtime.vcpu_ns) <= uncertainty_ns + TRACERS_NS
    assert len(found.rounds) == len(real.rounds)
