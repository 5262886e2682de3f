# SPDX-License-Identifier: MIT
"""Measures the cost of following a migrating VM's vCPUs: its exits to the VMM, its own work, and each switch of the
host.

    .venv/bin/python benchmarks/vcpu_probes.py [--pairs N]

Windows with the probes attached and detached take turns in one run. What a guest did is divided by the CPU time that
its vCPU thread got, so that what else this machine does counts little. The last line is what an idle VM costs: reading
/proc, by vCPU.
"""

import argparse
import asyncio
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from vftrace.collect.clock import boottime_ns
from vftrace.collect.vcpus import LOOK_EVERY_NS
from vftrace.demo import guest, qemu
from vftrace.demo.scenarios import FIRST_PAGE, MEMORY_MIB, MIB, Run, Spec
from vftrace.events import layout
from vftrace.host import threads
from vftrace.probes.loader import Probes
from vftrace.probes.vcpus import VcpuProbes

WINDOW_S = 0.5
SWITCHES = 20_000


def exits_rom() -> bytes:
    """As `guest.exits_rom`, with a counter at TICKS_ADDRESS."""
    code = guest._Code()
    code.emit("fa ba f0 05")  # cli; mov dx,0x5f0
    code.label("again")
    code.emit("66 ff 06").raw(guest.TICKS_ADDRESS.to_bytes(2, "little"))  # inc dword [ticks]
    code.emit("ec").jump("eb", "again")  # in al,dx; jmp again
    return guest._rom(code.assemble(), {})


def busiest(pid: int) -> int:
    return max(
        (int(t.name) for t in Path(f"/proc/{pid}/task").iterdir()), key=lambda t: ran(pid, t)
    )


def ran(pid: int, tid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0])


async def turns(rom: bytes, probes: VcpuProbes, pairs: int) -> Iterator[tuple[float, float]]:
    """Nanoseconds of CPU for each turn of a guest: without and with the probes, pair by pair."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile(dir="/dev/shm") as ram:
        os.truncate(ram.fileno(), MEMORY_MIB * MIB)
        path = Path(directory) / "rom"
        path.write_bytes(rom)
        file = f"/proc/{os.getpid()}/fd/{ram.fileno()}"
        memory = (
            "-object",
            f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={file},share=on",
        )
        spec = Spec("bench", None, path, extra=(*memory, "-machine", "memory-backend=ram"))
        words = mmap.mmap(ram.fileno(), guest.PAGE_SIZE, offset=guest.TICKS_ADDRESS)
        async with AsyncExitStack() as stack:
            run = Run("bench", qemu.find_qemu(), Path(directory), stack, lambda _: None)
            pid = (await run.start(spec, "source")).qemu.pid
            await asyncio.sleep(1)
            tid = busiest(pid)

            async def window() -> float:
                before = ran(pid, tid), int.from_bytes(words[:4], "little")
                await asyncio.sleep(WINDOW_S)
                after = ran(pid, tid), int.from_bytes(words[:4], "little")
                return (after[0] - before[0]) / max(1, (after[1] - before[1]) % (1 << 32))

            found = []
            for number in range(pairs):
                times = {}
                for attached in (number % 2 == 0, number % 2 == 1):
                    if attached:
                        states = {tid: (layout.VCPU_EXIT, False)}
                        assert probes.watch(pid, boottime_ns(), states) is not None
                    times[attached] = await window()
                    if attached:
                        probes.unwatch(pid)
                        probes._probes._left_ns = 0
                        probes.detach_unused()
                        probes._probes._await_detached()
                found.append((times[False], times[True]))
            return iter(found)


def switches(probes: VcpuProbes, pairs: int) -> list[tuple[float, float]]:
    """Nanoseconds for each switch between two processes on one CPU."""
    found = []
    for number in range(pairs):
        times = {}
        for attached in (number % 2 == 0, number % 2 == 1):
            if attached:
                assert probes.watch(1, boottime_ns(), {}) is not None
            times[attached] = ping_pong()
            if attached:
                probes.unwatch(1)
                probes._probes._left_ns = 0
                probes.detach_unused()
                probes._probes._await_detached()
        found.append((times[False], times[True]))
    return found


def ping_pong() -> float:
    here, there = os.pipe(), os.pipe()
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    child = os.fork()
    if not child:
        for _ in range(SWITCHES // 2):
            os.read(here[0], 1)
            os.write(there[1], b"x")
        os._exit(0)
    began = time.process_time_ns()
    for _ in range(SWITCHES // 2):
        os.write(here[1], b"x")
        os.read(there[0], 1)
    took = time.process_time_ns() - began
    os.waitpid(child, 0)
    os.sched_setaffinity(0, cpus)
    for fd in (*here, *there):
        os.close(fd)
    return took / (SWITCHES / 2)


def looks() -> float:
    """Microseconds to read what /proc says of one thread."""
    pid = os.getpid()
    began = time.process_time_ns()
    for _ in range(2000):
        threads.use_of(pid, pid)
    return (time.process_time_ns() - began) / 2000 / 1000


def said(what: str, pairs: list[tuple[float, float]]) -> None:
    more = sorted(with_ - without for without, with_ in pairs)
    middle = statistics.median(without for without, _ in pairs)
    quarter = len(more) // 4
    print(
        f"| {what} | {middle:.0f} ns | {statistics.median(more):+.0f} ns "
        f"| {more[quarter]:+.0f} to {more[-1 - quarter]:+.0f} ns "
        f"| {100 * statistics.median(more) / middle:+.1f} % |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=12)
    pairs: int = parser.parse_args().pairs
    first = Probes(lambda _: None)
    probes = VcpuProbes(first._bpf)
    print("| what | without | more with the probes | quartiles | ratio |")
    print("|---|---|---|---|---|")
    busy = guest.counting_rom(FIRST_PAGE, 16, 1 << 20)
    for what, rom in (("turn of a busy guest", busy), ("exit to the VMM", exits_rom())):
        said(what, list(asyncio.run(turns(rom, probes, pairs))))
    said("switch and back, the half of it", switches(probes, pairs))
    each = looks()
    print(f"a look at a vCPU: {each:.1f} us, {each / (LOOK_EVERY_NS / 1e9):.2f} us/s for each vCPU")
    probes.close()
    first.close()


if __name__ == "__main__":
    main()
