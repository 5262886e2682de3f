# SPDX-License-Identifier: MIT
"""A guest that answers pings while it migrates: a client's round trips beside the host's account.

.venv/bin/python -m tests.host.answered [--keep]     plays it traced and pinged, prints the report

Real QEMUs on one host, in a network of their own: two taps on a bridge. The guest is firmware that writes pages and
answers packets to its card (`answering.s`), so pings are answered late when its vCPU is held. Needs root and as(1).
"""

import argparse
import asyncio
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.golden.record import traced
from tests.host.brownouts import prefer
from tests.host.plays import auto_converge
from vftrace.collect.batch import Batch
from vftrace.collect.only import OnlyVms
from vftrace.collect.recording import Recording, frames_of, head_of
from vftrace.demo import guest, qemu
from vftrace.demo.scenarios import FIRST_PAGE, MIB, Run, Spec

KEPT = Path(__file__).parents[1] / "golden" / "answered"
NAME = "demo-answered"
MAC, OWN, ADDRESS = "52:54:00:12:34:56", "10.231.78.1/24", "10.231.78.2"
PAGES = 3000
NETWORK = 8 * MIB
THROTTLE = 80
AROUND_S, DURING_S = 10.0, 12.0
INTERVAL_MS = 20


@dataclass(frozen=True)
class Truth:
    """What QEMU says: when the guest stopped and ran again (CLOCK_BOOTTIME), when the migration was begun and was over,
    its throttle in percent; and what the pinger printed."""

    begun_ns: int
    stopped_ns: int
    resumed_ns: int
    ended_ns: int
    throttle_percent: int
    ping: dict[str, object]


def answering_rom(directory: Path) -> bytes:
    """Assemble the firmware."""
    code = guest._Code()
    code.emit("fa fc")  # cli; cld
    guest._enter_unreal_mode(code)
    code.emit("31 c0 8e d0 bc fc 7f")  # xor ax,ax; mov ss,ax; mov sp,0x7ffc
    prefix = code.assemble()
    symbols = {"PREFIX": len(prefix), "PAGES": PAGES, "ADDRESS": FIRST_PAGE * guest.PAGE_SIZE}
    defined = [f"--defsym={name}={value}" for name, value in symbols.items()]
    source, made, flat = Path(__file__).with_name("answering.s"), directory / "o", directory / "bin"
    subprocess.run(["as", "--32", *defined, source, "-o", made], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, flat], check=True)
    return guest._rom(prefix + flat.read_bytes()[len(prefix) :], {})


def network() -> None:
    """A bridge that the pinger is on, and two taps on it. The guest's address is known."""
    for words in (
        "link set lo up",
        "link add br0 address 52:54:00:12:34:01 type bridge",
        "tuntap add tap0 mode tap",
        "tuntap add tap1 mode tap",
        "link set tap0 master br0 up",
        "link set tap1 master br0 up",
        f"addr add {OWN} dev br0",
        "link set br0 up",
        f"neigh add {ADDRESS} lladdr {MAC} nud permanent dev br0",
    ):
        subprocess.run(["ip", *words.split()], check=True)


async def _play(directory: Path, ping: Path) -> Truth:
    async with AsyncExitStack() as stack:
        run = Run("answered", qemu.find_qemu(), directory, stack, lambda _: None)
        rom = directory / "answering.rom"
        rom.write_bytes(answering_rom(directory))

        def spec(tap: str) -> Spec:
            card = ("-netdev", f"tap,id=n,ifname={tap},script=no,downscript=no")
            device = ("-device", f"ne2k_isa,iobase=0x300,irq=9,netdev=n,mac={MAC}")
            return Spec(NAME, None, rom, extra=(*card, *device))

        source = await run.start(spec("tap0"), "source")
        prefer(source.qemu.pid)
        await asyncio.sleep(1)
        pinger = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vftrace", "ping", ADDRESS, "--interval", f"{INTERVAL_MS}ms"),
            *("--format", "json", "--record", ping),
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=qemu._die_with_parent(os.getpid()),
        )
        await asyncio.sleep(AROUND_S)
        destination = await run.start(spec("tap1"), "destination")
        prefer(destination.qemu.pid)
        begun = qemu.boottime_ns()
        migration = await run.migrate(
            source,
            destination,
            bandwidth=NETWORK,
            downtime_ms=1,
            capabilities=("auto-converge",),
            parameters=auto_converge(THROTTLE),
        )
        await asyncio.sleep(DURING_S)
        answer = await source.qemu.command_qmp("query-migrate")
        await source.qemu.command_qmp(
            "migrate-set-parameters", **{"downtime-limit": 20_000, "max-bandwidth": 1 << 33}
        )
        await migration.status("completed")
        await destination.qemu.wait_event(lambda event: event.name == "RESUME", "RESUME")
        ended = qemu.boottime_ns()
        await asyncio.sleep(AROUND_S)
        pinger.send_signal(signal.SIGINT)
        said, _ = await pinger.communicate()
        return Truth(
            begun,
            next(e.at_ns for e in source.qemu.events if e.name == "STOP"),
            next(e.at_ns for e in destination.qemu.events if e.name == "RESUME"),
            ended,
            answer.get("cpu-throttle-percentage", 0),
            json.loads(said),
        )


def play(directory: Path) -> tuple[Path, Path, Truth]:
    """Play it in this network namespace: the recordings of the host and of the pinger, and the truth."""
    host, ping = directory / "host.vft.gz", directory / "ping.vft"
    network()
    truth = traced(host, lambda place: asyncio.run(_play(place, ping)))
    recording = Recording(host)
    kept = OnlyVms([NAME]).keep(Batch.of(recording))
    with host.open("wb") as out, gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:
        packed.write(head_of(recording.host) + frames_of(kept.records))
    return host, ping, truth


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", action="store_true", help="as golden recordings")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        command = [sys.executable, "-m", "tests.host.answered", "--inside", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--net", *command])
    with tempfile.TemporaryDirectory() as made:
        host, ping, truth = play(Path(made))
        if arguments.keep:
            KEPT.mkdir(exist_ok=True)
            shutil.copy(host, KEPT / "host.vft.gz")
            shutil.copy(ping, KEPT / "ping.vft")
            text = json.dumps(asdict(truth), indent=1)
            (KEPT / "truth.json").write_text(text + "\n")
        subprocess.run([sys.executable, "-m", "vftrace", "report", host, ping], check=True)


if __name__ == "__main__":
    main()
