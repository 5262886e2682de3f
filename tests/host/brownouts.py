# SPDX-License-Identifier: MIT
"""Plays brownouts of known depth: real QEMUs with a guest that counts its own turns, read from its memory.

.venv/bin/python -m tests.host.brownouts [--runs N] [NAME...]     plays them traced, prints a table
.venv/bin/python -m tests.host.brownouts --keep [NAME...]         and keeps recording and truth as golden

The guest's memory is a file that QEMU maps and this program reads, so its counter is read without any request. It is
not mapped here: to read a page that is missing through a mapping makes it, empty, and in post-copy QEMU's destination
then cannot place the one that comes ("postcopy_place_page: File exists").

How many turns a guest makes in a second of running is not the same in every second: a CPU of this machine may be shared
with somebody else's. So another guest with the same firmware runs on the same CPUs, with a tenth of their time. Its
turns in a second of running, by the scheduler, say how fast each CPU is then, and the counts are divided by that.
Nothing of what slows the migrating guest concerns the other one, which does not migrate.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from msgspec import structs

from tests.host.blackouts import migration_of
from tests.host.plays import auto_converge, played, traced_vms
from vftrace.demo import guest, qemu
from vftrace.demo.qemu import boottime_ns
from vftrace.demo.scenarios import FIRST_PAGE, MEMORY_MIB, MIB, Migration, Run, Spec, Vm
from vftrace.model.brownout import added
from vftrace.model.migration import Checkpoint
from vftrace.model.migration import Migration as Found

KEPT = Path(__file__).parents[1] / "golden" / "brownouts"
BEFORE_S, DURING_S, AFTER_S = 3.0, 5.0, 0.5
SAMPLE_S = 0.02
PAGES, TURNS = 3000, 12
REST = 40
"""Further instructions a turn with which KVM (PVM) notices a full ring in time (docs/results/brownout.md). With few, a
ring stays full: probably more writes come than the 64 entries that it has in reserve (KVM_DIRTY_RING_RSVD_ENTRIES)."""
REFERENCE_NICE = -3
"""A tenth of the CPU beside a guest of niceness -10."""
REFERENCE_S = 0.1
AT_ONCE_NS = 1_000_000
LEAST_RAN_NS = 50_000_000
"""The least time of running for which the reference has a speed."""
NETWORK = 8 * MIB
POINTS = 5.0
"""The largest difference between vftrace's speed of the guest and its own count, in percent of its speed before."""

LEAST_PART_NS = 1_000_000_000

Counts = list[tuple[int, ...]]
"""(CLOCK_BOOTTIME, each vCPU's counter)."""


@dataclass(frozen=True)
class Truth:
    """The independent account: the guest's counter on both sides, QEMU's throttle (percent, and since when), how long
    QEMU's destination says that its vCPU was blocked, and QEMU's own downtime."""

    source: Counts
    destination: Counts
    throttle_percent: int | None = None
    limit_mb_per_second: int | tuple[int, int] | None = None
    """QEMU's limit, and the rate that it then reports; in older recordings the limit only."""
    blocked_ms: int | None = None
    downtime_ms: int | None = None
    reference: tuple[Counts, ...] = ()
    """(CLOCK_BOOTTIME, turns, ns of CPU time) of the other guest's vCPU on the CPU of each vCPU. Empty in recordings
    from before there was one."""


@dataclass(frozen=True)
class Memory:
    """A guest's memory: a file, and it open to read."""

    path: Path
    file: int


@dataclass
class Stage:
    """One run: two VMs whose memory is read here, and the one beside them."""

    run: Run
    stack: AsyncExitStack
    counts: dict[str, Counts] = field(default_factory=lambda: {"source": [], "destination": []})
    reference: dict[int, Counts] = field(default_factory=dict)
    """By CPU."""
    throttle: int | None = None
    limit: tuple[int, int] | None = None

    async def vm(self, spec: Spec, role: Any, vcpus: int) -> Vm:
        """Start a VM, with each vCPU on a CPU of its own, and read its guest's counters from before it runs."""
        memory = self._memory(role)
        self._meanwhile(self._read(memory, vcpus, self.counts[role]))
        return await self._start(spec, role, memory, _cpus(vcpus))

    async def refer(self, spec: Spec, cpus: Sequence[int]) -> None:
        """Start the guest that does not migrate, with a vCPU on each of these CPUs, and begin to read it."""
        memory = self._memory("reference")
        beside = structs.replace(spec, name="reference")
        vm = await self._start(beside, "source", memory, cpus, REFERENCE_NICE)
        for vcpu, (thread, cpu) in enumerate(zip(await _vcpu_threads(vm), cpus, strict=True)):
            schedstat = Path(f"/proc/{vm.qemu.pid}/task/{thread}/schedstat")
            counts = self.reference.setdefault(cpu, [])
            self._meanwhile(self._read_reference(memory, vcpu, schedstat, counts))

    def _memory(self, name: str) -> Memory:
        path = Path("/dev/shm") / f"vftrace-{os.getpid()}-{name}"
        path.write_bytes(b"")
        self.stack.callback(path.unlink)
        os.truncate(path, MEMORY_MIB * MIB)
        file = os.open(path, os.O_RDONLY)
        self.stack.callback(os.close, file)
        return Memory(path, file)

    async def _start(
        self, spec: Spec, role: Any, memory: Memory, cpus: Sequence[int], nice: int = -10
    ) -> Vm:
        backend = (
            "-object",
            f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={memory.path},share=on"
            + (",prealloc=on" if role == "source" else ""),
        )
        smp = ("-machine", "memory-backend=ram", "-smp", str(len(cpus)))
        vm = await self.run.start(structs.replace(spec, extra=(*spec.extra, *backend, *smp)), role)
        prefer(vm.qemu.pid, nice)
        for thread, cpu in zip(await _vcpu_threads(vm), cpus, strict=True):
            os.sched_setaffinity(thread, {cpu})
        return vm

    def _meanwhile(self, reading: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(reading)
        self.stack.callback(task.cancel)

    async def _read(self, memory: Memory, vcpus: int, counts: Counts) -> None:
        addresses = [guest.turns_address(vcpu) for vcpu in range(vcpus)]
        while True:
            at_ns = boottime_ns()
            words = [os.pread(memory.file, 4, address) for address in addresses]
            counts.append((at_ns, *(int.from_bytes(word, "little") for word in words)))
            await asyncio.sleep(SAMPLE_S)

    async def _read_reference(
        self, memory: Memory, vcpu: int, schedstat: Path, counts: Counts
    ) -> None:
        while True:
            at_ns = boottime_ns()
            word = os.pread(memory.file, 4, guest.turns_address(vcpu))
            ran_ns = int(schedstat.read_text().split()[0])
            # If this program waited for a CPU in between, the two are not of the same time.
            if boottime_ns() - at_ns < AT_ONCE_NS:
                counts.append((at_ns, int.from_bytes(word, "little"), ran_ns))
            await asyncio.sleep(REFERENCE_S)

    async def begin(
        self,
        *,
        accel: str = "kvm",
        turns: int = TURNS,
        pages: int = PAGES,
        rest: int = 0,
        vcpus: int = 1,
        capabilities: tuple[str, ...] = (),
        settings: Mapping[str, int] | None = None,
    ) -> tuple[Vm, Vm, Migration]:
        """A guest that has counted for a while, and its migration under way."""
        rom = self.run.directory / "counting.rom"
        rom.write_bytes(guest.counting_rom(FIRST_PAGE, pages, turns, rest))
        spec = Spec(f"demo-{self.run.scenario}", None, rom, accel=accel)
        await self.refer(structs.replace(spec, accel="kvm"), _cpus(vcpus))
        source = await self.vm(spec, "source", vcpus)
        await asyncio.sleep(BEFORE_S)
        destination = await self.vm(spec, "destination", vcpus)
        migration = await self.run.migrate(
            source,
            destination,
            bandwidth=NETWORK,
            downtime_ms=1,
            capabilities=capabilities,
            parameters=settings,
        )
        return source, destination, migration

    async def end(self, source: Vm, destination: Vm, migration: Migration) -> Truth:
        """Let it complete, whatever is left to send, and take the last counts."""
        with suppress(qemu.QemuError):  # it may have completed by itself
            parameters = {"downtime-limit": 20_000, "max-bandwidth": 1 << 33}
            await source.qemu.command_qmp("migrate-set-parameters", **parameters)
        await migration.status("completed")
        said = await source.qemu.query_migrate()
        await destination.qemu.wait_event(lambda event: event.name == "RESUME", "RESUME")
        await asyncio.sleep(AFTER_S)
        answer = await destination.qemu.command_qmp("query-migrate")
        return Truth(
            self.counts["source"],
            self.counts["destination"],
            self.throttle,
            self.limit,
            answer.get("postcopy-blocktime"),
            said.downtime_ms,
            tuple(self.reference[cpu] for cpu in _cpus(len(self.counts["source"][0]) - 1)),
        )


async def _vcpu_threads(vm: Vm) -> list[int]:
    return [each["thread-id"] for each in await vm.qemu.command_qmp("query-cpus-fast")]


def _cpus(vcpus: int) -> list[int]:
    """The CPU of each vCPU. The last one is on the last CPU."""
    cpus = sorted(os.sched_getaffinity(0))
    return [cpus[(vcpu - vcpus) % len(cpus)] for vcpu in range(vcpus)]


def prefer(pid: int, nice: int = -10) -> None:
    """Whatever else this machine does, it is not what slows this process most. It leads a session of its own."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(task.name), nice)
    _between_sessions(pid, nice)


def _between_sessions(pid: int, nice: int) -> None:
    """With CONFIG_SCHED_AUTOGROUP a process's niceness counts within its session only, and this one between them."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def _none(vcpus: int = 1) -> Callable[[Stage], Awaitable[Truth]]:
    async def play(stage: Stage) -> Truth:
        source, destination, migration = await stage.begin(vcpus=vcpus)
        await asyncio.sleep(DURING_S)
        return await stage.end(source, destination, migration)

    return play


def _throttled(percent: int, vcpus: int = 1) -> Callable[[Stage], Awaitable[Truth]]:
    async def play(stage: Stage) -> Truth:
        source, destination, migration = await stage.begin(
            vcpus=vcpus,
            capabilities=("auto-converge",),
            settings=auto_converge(percent),
        )
        for _ in range(400):
            answer = await source.qemu.command_qmp("query-migrate")
            stage.throttle = answer.get("cpu-throttle-percentage")
            if stage.throttle or answer.get("status") not in ("setup", "active"):
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(DURING_S)
        return await stage.end(source, destination, migration)

    return play


async def _dirty_limit(stage: Stage) -> Truth:
    source, destination, migration = await stage.begin(
        accel="kvm,dirty-ring-size=4096", turns=1, pages=12_000, rest=REST
    )
    await stage.run.act("set-vcpu-dirty-limit", source, dirty_rate=1)
    await asyncio.sleep(DURING_S)
    (answer,) = await source.qemu.command_qmp("query-vcpu-dirty-limit")
    stage.limit = answer["limit-rate"], answer["current-rate"]
    await stage.run.act("cancel-vcpu-dirty-limit", source)
    return await stage.end(source, destination, migration)


def _ring_full(rest: int) -> Callable[[Stage], Awaitable[Truth]]:
    async def play(stage: Stage) -> Truth:
        source, destination, migration = await stage.begin(
            accel="kvm,dirty-ring-size=1024", turns=1, pages=12_000, rest=rest
        )
        await asyncio.sleep(DURING_S)
        return await stage.end(source, destination, migration)

    return play


@contextmanager
def _hogged(threads: Iterable[int]) -> Iterator[None]:
    """Let these threads share a CPU with two programs that never rest."""
    cpu = {max(os.sched_getaffinity(0))}
    command = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(command, start_new_session=True) for _ in range(2)]
    try:
        for hog in hogs:
            os.sched_setaffinity(hog.pid, cpu)
            prefer(hog.pid)
        for thread in threads:
            os.sched_setaffinity(thread, cpu)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


async def _cpu_hog(stage: Stage) -> Truth:
    source, destination, migration = await stage.begin()
    with _hogged(int(task.name) for task in Path(f"/proc/{source.qemu.pid}/task").iterdir()):
        await asyncio.sleep(DURING_S)
    return await stage.end(source, destination, migration)


async def _one_hogged(stage: Stage) -> Truth:
    source, destination, migration = await stage.begin(vcpus=2)
    answer = await source.qemu.command_qmp("query-cpus-fast")
    with _hogged(each["thread-id"] for each in answer if each["cpu-index"] == 1):
        await asyncio.sleep(DURING_S)
    return await stage.end(source, destination, migration)


def _postcopy(bandwidth: int) -> Callable[[Stage], Awaitable[Truth]]:
    async def play(stage: Stage) -> Truth:
        source, destination, migration = await stage.begin(
            capabilities=("postcopy-ram", "postcopy-blocktime"),
            settings={"max-postcopy-bandwidth": bandwidth},
        )
        await asyncio.sleep(0.5)
        await stage.run.act("migrate-start-postcopy", source)
        # Otherwise the end of the limit for precopy sends most of the pages before.
        await migration.status("postcopy-active")
        return await stage.end(source, destination, migration)

    return play


PLAYS: Mapping[str, tuple[str, Callable[[Stage], Awaitable[Truth]]]] = {
    "none": ("a slow network, nothing else", _none()),
    "throttle-20": ("auto-converge at 20 %", _throttled(20)),
    "throttle-50": ("auto-converge at 50 %", _throttled(50)),
    "throttle-99": ("auto-converge at 99 %", _throttled(99)),
    "dirty-limit": ("set-vcpu-dirty-limit 1 MB/s", _dirty_limit),
    "ring-full": ("a dirty ring of 1024 entries that stays full", _ring_full(0)),
    "ring-fills": (
        "a dirty ring of 1024 entries that fills several times a second",
        _ring_full(REST),
    ),
    "cpu-hog": ("two other programs on the guest's CPU", _cpu_hog),
    "postcopy-fast": ("post-copy, 64 MiB/s", _postcopy(64 * MIB)),
    "postcopy-slow": ("post-copy, 4 MiB/s", _postcopy(4 * MIB)),
    "two-vcpus": ("two vCPUs, a slow network, nothing else", _none(vcpus=2)),
    "two-throttled": ("two vCPUs, auto-converge at 50 %", _throttled(50, vcpus=2)),
    "one-hogged": ("two vCPUs, two other programs on the CPU of the second", _one_hogged),
}


async def _play(name: str, workdir: Path) -> Truth:
    with tempfile.TemporaryDirectory(prefix="vm-", dir=workdir) as directory:
        async with AsyncExitStack() as stack:
            run = Run(name, qemu.find_qemu(), Path(directory), stack, lambda _: None)
            return await PLAYS[name][1](Stage(run, stack))


def play(name: str, target: Path) -> Truth:
    """Play one traced; its recording becomes `target`."""
    return traced_vms(name, target, lambda directory: asyncio.run(_play(name, directory)))


@dataclass(frozen=True)
class Judged:
    """What vftrace made of a brownout, beside the guest's own count: speeds as parts of before, on the same times.

    `held`: the part of the time that the vCPUs were held, from when they first were. `part_errors` are those of rounds,
    and of post-copy, that lasted for a second at least, `vcpu_errors` those of each vCPU on the source; in points.
    """

    speed: float
    counted: float
    held: float | None
    waited_ns: int
    pace: float | None
    """The reference's turns in a second of running during the migration, as a part of those before."""
    part_errors: tuple[float, ...]
    vcpu_errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """In points."""
        return 100 * (self.speed - self.counted)


def turns(counts: Counts, at_ns: int, vcpu: int | None = None) -> float:
    """The guest's counter at a time, of one vCPU or of all together."""

    def count(row: tuple[int, ...]) -> int:
        return sum(row[1:]) if vcpu is None else row[1 + vcpu]

    index = bisect_left(counts, at_ns, key=itemgetter(0))
    if index in (0, len(counts)):
        return count(counts[min(index, len(counts) - 1)])
    before, after = counts[index - 1], counts[index]
    part = (at_ns - before[0]) / (after[0] - before[0])
    return count(before) + (count(after) - count(before)) * part


@dataclass(frozen=True)
class Pace:
    """How fast a CPU is: turns of the reference in a ns of running, each until a time."""

    until_ns: list[int]
    turns_per_ns: list[float]

    @classmethod
    def of(cls, reference: Counts) -> "Pace":
        """From the samples of the reference on that CPU."""
        pace = cls([], [])
        start = reference[0]
        for row in reference[1:]:
            if row[2] - start[2] >= LEAST_RAN_NS:
                pace.until_ns.append(row[0])
                pace.turns_per_ns.append((row[1] - start[1]) / (row[2] - start[2]))
                start = row
        return pace

    def at(self, at_ns: int) -> float:
        """The pace at a time."""
        return self.turns_per_ns[min(bisect_left(self.until_ns, at_ns), len(self.until_ns) - 1)]


def paced(counts: Counts, reference: Sequence[Counts], before: tuple[int, int]) -> Counts:
    """The counts as they were if each CPU had always been as fast as its mean between the two times `before`.

    Not in the reference's own unit: in one run it was a fifth slower all the time than the guest on the same CPU.
    """
    if not reference:
        return counts
    paces = [Pace.of(each) for each in reference]
    usual = [_pace(each, *before) for each in reference]
    corrected = [0.0] * len(paces)
    found: Counts = [(counts[0][0], *(0 for _ in paces))]
    for earlier, after in pairwise(counts):
        for vcpu, pace in enumerate(paces):
            made = after[1 + vcpu] - earlier[1 + vcpu]
            corrected[vcpu] += made * usual[vcpu] / pace.at(after[0])
        found.append((after[0], *map(round, corrected)))
    return found


def judge(found: Found, truth: Truth) -> Judged:
    """Compare the guest's speed, over the whole migration and by round, with its own count."""
    brownout = found.brownout
    assert brownout is not None
    assert brownout.baseline is not None
    since, until = brownout.baseline.from_ns, brownout.baseline.until_ns
    source = paced(truth.source, truth.reference, (since, until))
    # The counter was zero before the guest ran; the baseline begins with that.
    rate = (turns(source, until) - turns(source, since)) / (until - since)

    def counted(start: int, end: int, counts: Counts) -> float:
        return (turns(counts, end) - turns(counts, start)) / rate

    stopped = found.downtime.times[Checkpoint.VCPUS_STOPPED]
    pieces = [(found.started_at_ns, stopped, source)]
    late = [span for span in brownout.timeline if span.side == "destination"]
    if late:
        # The guest continues from the source's last count. Until the page with it has arrived, the destination has an
        # older copy of it, or none.
        last = truth.source[-1][1:]
        continued: Counts = [
            (at_ns, *map(max, counts, last)) for at_ns, *counts in truth.destination
        ]
        continued = paced(continued, truth.reference, (since, until))
        pieces.append((late[0].vcpus.start_ns, late[-1].vcpus.end_ns, continued))
    assert brownout.speed is not None
    edges = [*(r.at_ns for r in found.rounds), stopped]
    parts = [
        (speed, a, b, source)
        for (a, b), speed in zip(pairwise(edges), brownout.rounds, strict=True)
        if speed is not None
    ]
    if late and (could_run := added(span.vcpus for span in late).could_run) is not None:
        parts.append((could_run / brownout.baseline.could_run, *pieces[-1]))
    # Before, a vCPU may have waited longer than another: as the speed, the rate is that of all of them.
    each_rate = rate / (len(source[0]) - 1)
    by_vcpu = []
    for use in brownout.vcpus:
        if use.side == "source" and use.number is not None and use.total.could_run is not None:
            a, b, n = use.total.start_ns, use.total.end_ns, use.number
            own = (turns(source, b, n) - turns(source, a, n)) / each_rate / (b - a)
            by_vcpu.append(100 * (use.total.could_run / brownout.baseline.could_run - own))
    waits = brownout.waits
    return Judged(
        brownout.speed,
        sum(counted(*piece) for piece in pieces) / sum(end - start for start, end, _ in pieces),
        brownout.holds[0].share if brownout.holds else None,
        waits.ns if waits else 0,
        _pace_between(truth.reference, (since, until), (found.started_at_ns, stopped)),
        tuple(
            100 * (speed - counted(start, end, counts) / (end - start))
            for speed, start, end, counts in parts
            if end - start >= LEAST_PART_NS
        ),
        tuple(by_vcpu),
    )


def _pace_between(
    reference: Sequence[Counts], before: tuple[int, int], during: tuple[int, int]
) -> float | None:
    """How fast the CPUs were, as a part of before."""
    if not reference:
        return None

    parts = [_pace(each, *during) / _pace(each, *before) for each in reference]
    return sum(parts) / len(parts)


def _pace(reference: Counts, start_ns: int, end_ns: int) -> float:
    """Turns in a ns of running, between two times."""
    made, ran = (turns(reference, end_ns, at) - turns(reference, start_ns, at) for at in range(2))
    return made / ran


def main() -> None:
    print(
        "| run | guest speed | by its own count | error, points | CPU's speed | without it | held | QEMU says "
        "| worst part or vCPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, recording, truth in played(PLAYS, play, KEPT):
        found = migration_of(recording, name)
        alone = judge(found, replace(truth, reference=()))
        print(_row(name, judge(found, truth), alone, truth), flush=True)


def _row(name: str, judged: Judged, alone: Judged, truth: Truth) -> str:
    said = ""
    if truth.throttle_percent is not None:
        said = f"throttle {truth.throttle_percent} %"
    elif truth.limit_mb_per_second is not None:
        said = f"limit and rate {truth.limit_mb_per_second} MB/s"
    elif truth.blocked_ms is not None:
        said = f"blocked {truth.blocked_ms} ms; vftrace {judged.waited_ns / 1e6:.0f} ms"
    worst = max((*judged.part_errors, *judged.vcpu_errors), key=abs, default=None)
    return (
        f"| {name} | {100 * judged.speed:.1f} % | {100 * judged.counted:.1f} % | {judged.error:+.1f} "
        f"| {'-' if judged.pace is None else f'{100 * judged.pace:.1f} %'} | {alone.error:+.1f} "
        f"| {'-' if judged.held is None else f'{100 * judged.held:.0f} %'} | {said or '-'} "
        f"| {'-' if worst is None else f'{worst:+.1f}'} |"
    )


if __name__ == "__main__":
    main()
