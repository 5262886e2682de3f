# SPDX-License-Identifier: MIT
"""Compares forecasts with real migrations over a grid that is written down here before they run.

    .venv/bin/python benchmarks/forecast_grid.py run [--json FILE]     some seven minutes; needs root, KVM, QEMU
    .venv/bin/python benchmarks/forecast_grid.py judge [--json FILE]   fits on one half, judges on the other
    .venv/bin/python benchmarks/forecast_grid.py run --fresh           24 other runs, only judged by
    .venv/bin/python benchmarks/forecast_grid.py run --pinned          40 of larger guests with locked memory
    .venv/bin/python benchmarks/forecast_grid.py run --limits          40 whose limits the forecast does not know
    .venv/bin/python benchmarks/forecast_grid.py run --limits2         40 more of these

Each run is a guest of 128 MiB (640 with --pinned) that dirties a known pattern, moved to a second QEMU on this
machine with a `max-bandwidth` and a `downtime-limit`, and traced. A run that has not stopped after CUT_ROUNDS sweeps or
CUT_SECONDS is cancelled: it did not converge. Raw results (rounds, bytes, times) go into the JSON file beside
this one, so that judging needs no second run.
"""

import argparse
import asyncio
import dataclasses
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from vftrace.analysis.forecast.answer import Assumptions
from vftrace.analysis.forecast.channel import PAGE_ON_WIRE
from vftrace.analysis.forecast.costs import FITTED, Fitted
from vftrace.analysis.forecast.precopy import forecast
from vftrace.analysis.forecast.replay import Recorded, of_replay
from vftrace.analysis.forecast.working_set import Shape
from vftrace.collect.live import LiveSource
from vftrace.collect.pump import Pump
from vftrace.demo import guest, qemu
from vftrace.demo.scenarios import MEMORY_MIB, MIB, Migration, Run, Scenario
from vftrace.model.migration import Forecast, Round

HERE = Path(__file__).resolve().parent
PAGES_AFTER = 16
"""Sets lie at the end of memory, but for so many: what is unsent when a round ends then costs something, as in a guest
that has filled its memory. Zeroes there would go in no time."""

PINNED_MIB = 640

CUT_ROUNDS = 10
CUT_SECONDS = 9.0
NEAR = 0.2
"""A run in which some sweep found new pages within 20 % of the threshold is within one round of the limit, and so
is one that stopped or was cut in the last round it had."""

LONG_DOWNTIME_NS = 50_000_000
SETS = {16: 8192, 32: 12288, 64: 24576}
"""Pages of the set by bandwidth in MiB/s: the first round takes 1.5 to 2 s."""
LIMITS_MS = (50, 300, 900)
PATTERNS = ("fixed", "growing", "sliding", "bursts")
RATIOS = (0.3, 0.5, 0.8, 1.5)
"""Page writes a second by what the bandwidth can send; taken in turn."""
HOT = (0.5, 0.85, 1.2, 2.0)
"""Sizes of a small set that is written all the time, by what fits the threshold at 300 ms."""

LARGE = (18000, 26000)
"""Sets whose last pages take long at a limit of 2 s: the only downtimes of 50 ms and more here, where the channel is
this machine's memory."""


@dataclass(frozen=True)
class Point:
    """One run of the grid. Bandwidth in MiB/s, sizes in pages, rates in page writes a second."""

    number: int
    bandwidth: int
    limit_ms: int
    pattern: str
    pages: int
    rate: int
    memory_mib: int = MEMORY_MIB
    pinned: bool = False
    """Whether all memory is there and locked, on both sides, as VFIO wants it for a passed-through function."""
    throttled: bool = False
    """Whether QEMU slows the guest down round by round (auto-converge)."""

    def dirty(self) -> guest.DirtySet:
        n, rate = self.pages, self.rate
        first = self.memory_mib * 256 - PAGES_AFTER - n
        if self.pattern == "growing":
            return guest.growing(first, n // 8, n // 16, n, rate)
        if self.pattern == "sliding":
            return guest.sliding(first, n // 4, n // 16, n, rate)
        if self.pattern == "bursts":
            # with locked memory no zeroes at the end: what they cost is the other grids' question
            return guest.bursts(first, n if self.pinned else n // 2, 1, 0.3, rate)
        return guest.fixed(first, n, rate)

    def words(self) -> tuple[str, ...]:
        """QEMU's words beside the demo's own; the last -m counts."""
        locked = ("-overcommit", "mem-lock=on") if self.pinned else ()
        return ("-m", str(self.memory_mib), *locked)


def _rate(ratio: float, bandwidth: int) -> int:
    """Page writes a second, a multiple of the guest's 200 ticks."""
    return round(ratio * bandwidth * 256 / 200) * 200


def grid() -> list[Point]:
    """56 runs."""
    points = []
    for index, (bandwidth, limit, pattern) in enumerate(
        itertools.product(SETS, LIMITS_MS, PATTERNS)
    ):
        ratio = RATIOS[(index + index // 4) % len(RATIOS)]
        rate = _rate(ratio, bandwidth)
        points.append(Point(index, bandwidth, limit, pattern, SETS[bandwidth], rate))
    for bandwidth, size in itertools.product(SETS, HOT):
        pages = round(size * 0.3 * bandwidth * 256)
        rate = _rate(2.5, bandwidth)
        points.append(Point(len(points), bandwidth, 300, "fixed", pages, rate))
    for bandwidth, pages, ratio in itertools.product((64, 128), LARGE, (0.6, 2.0)):
        rate = _rate(ratio, bandwidth)
        points.append(Point(len(points), bandwidth, 2000, "fixed", pages, rate))
    return points


def fresh_grid() -> list[Point]:
    """24 more, to judge by alone: the model was not changed any more once they had run.

    Other bandwidths, limits and sets than `grid` has; every third has a limit of seconds, so that the last pages
    take long.
    """
    draw = random.Random(2)
    points = []
    for number in range(100, 124):
        bandwidth = draw.choice((24, 40, 56, 96))
        limit = draw.choice((1500, 2500)) if number % 3 == 0 else draw.choice((100, 400, 600))
        pages = round(draw.uniform(0.6, 1.6) * bandwidth * 256) + 2048
        rate = _rate(draw.choice((0.2, 0.4, 0.6, 0.9, 1.3, 2.0)), bandwidth)
        pattern = PATTERNS[number % len(PATTERNS)]
        points.append(Point(number, bandwidth, limit, pattern, min(pages, 26000), rate))
    return points


def pinned_grid() -> list[Point]:
    """40 more, with memory that is locked: the destination has not to find it while it loads.

    The limit leaves 70 to 250 MiB for the last pages, of a set that is 1.4 to 3 times as large: several rounds, and
    downtimes that can be seen.
    """
    draw = random.Random(3)
    points = []
    for number in range(200, 240):
        bandwidth = draw.choice((96, 128, 192, 256))
        last_mib = draw.uniform(70, 250)
        pages = round(min(draw.uniform(1.4, 3) * last_mib, 560) * 256)
        rate = _rate(draw.choice((0.1, 0.2, 0.3, 0.5, 0.8, 1.2)), bandwidth)
        points.append(
            Point(
                number,
                bandwidth,
                round(last_mib / bandwidth * 1000),
                PATTERNS[number % len(PATTERNS)],
                pages,
                rate,
                PINNED_MIB,
                pinned=True,
            )
        )
    return points


UNLIMITED = 8192
"""MiB/s that no channel here carries: libvirt's default is no limit at all."""


def limits_grid(seed: int = 4, number: int = 300) -> list[Point]:
    """40 more, for what-if under the recorded settings and for downtime limits that the rounds refute.

    Written down on 2026-11-29 before any of them ran. Most limits are far below 300 ms.
    """
    draw = random.Random(seed)
    bandwidths = (16, 24, 32, 48, 64, 96)
    points: list[Point] = []

    def hot(low: float, high: float, *, throttled: bool = False) -> None:
        """A small set that is written all the time; the limit leaves room for `low` to `high` of it."""
        bandwidth, share = draw.choice(bandwidths), draw.uniform(0.15, 0.85)
        limit_ms = max(1, round(300 * share * draw.uniform(low, high)))
        pages, rate = round(share * 0.3 * bandwidth * 256), _rate(2.5, bandwidth)
        points.append(
            Point(
                number + len(points), bandwidth, limit_ms, "fixed", pages, rate, throttled=throttled
            )
        )

    for _ in range(14):
        hot(0.2, 0.7)
    for _ in range(6):
        hot(1.3, 2.0)
    for index in range(10):
        bandwidth = draw.choice(bandwidths)
        pages = min(26000, round(draw.uniform(0.6, 1.5) * bandwidth * 256))
        rate = _rate(draw.choice((0.3, 0.5, 0.8, 1.3)), bandwidth)
        limit_ms = draw.choice((50, 150, 300, 600))
        pattern = PATTERNS[index % len(PATTERNS)]
        points.append(Point(number + len(points), bandwidth, limit_ms, pattern, pages, rate))
    for _ in range(4):
        hot(0.4, 0.8, throttled=True)
    for pages, limit_ms in ((40_000, 300), (90_000, 100), (130_000, 30)):
        points.append(
            Point(
                number + len(points),
                UNLIMITED,
                limit_ms,
                "fixed",
                pages,
                20_000,
                PINNED_MIB,
                pinned=True,
            )
        )
    for bandwidth in (16, 32, UNLIMITED):
        # Mostly zero pages: the first round takes long and sends little.
        points.append(Point(number + len(points), bandwidth, 300, "fixed", 500, 20_000, 2048))
    return points


def second_limits_grid() -> list[Point]:
    """40 more of the same kind with another seed, to judge what was changed after the first ones had been seen."""
    return limits_grid(5, 400)


GRIDS = {
    "": grid,
    "_fresh": fresh_grid,
    "_pinned": pinned_grid,
    "_limits": limits_grid,
    "_limits2": second_limits_grid,
}
"""By what the name of its results ends with."""


def halves(points: Iterable[Point]) -> tuple[set[int], set[int]]:
    """Numbers of the runs to fit on, and of those to judge by; drawn once, with a fixed seed."""
    numbers = [point.number for point in points]
    random.Random(1).shuffle(numbers)
    middle = len(numbers) // 2
    return set(numbers[:middle]), set(numbers[middle:])


# -- running ------------------------------------------------------------------------------------


class Tracer:
    """The pump in a thread of its own."""

    def __init__(self) -> None:
        self.pump = Pump(LiveSource())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.is_set():
            self.pump.step()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.pump.close()


async def play(point: Point, directory: Path) -> tuple[int, dict[str, Any] | None]:
    """One run; the source's pid and QEMU's figures."""
    name = f"grid-{point.number:02d}"
    scenario = Scenario(name, name, _nothing)
    binary = qemu.find_qemu()
    async with AsyncExitStack() as stack:
        run = Run(name, binary, directory, stack, _quiet)
        spec = structs.replace(run.firmware(point.dirty()), extra=point.words())
        source = await run.source(spec)
        destination = await run.destination(source)
        migration = await run.migrate(
            source,
            destination,
            bandwidth=point.bandwidth * MIB,
            downtime_ms=point.limit_ms,
            capabilities=("auto-converge",) if point.throttled else (),
        )
        done = asyncio.ensure_future(migration.status("completed"))
        cut = asyncio.ensure_future(_cut(migration))
        await asyncio.wait({done, cut}, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if not done.done():
            await run.act("migrate_cancel", source)
            await asyncio.wait({done})
        if done.exception() is None:
            await run.arrived(migration)
        else:
            await destination.qemu.ended()
            await run.finish(migration)
        truth = run.truth(scenario)
    figures = truth.attempts[0].counted
    return source.qemu.pid, structs.asdict(figures) if figures else None


def _quiet(_line: str) -> None:
    """What a run says of its progress."""


async def _nothing(run: Run) -> None:
    """A scenario's steps; they are played here instead."""


async def _bounded(point: Point, directory: Path) -> tuple[int, dict[str, Any] | None]:
    # A cancel that meets the end of a migration may leave both QEMUs waiting.
    async with asyncio.timeout(25):
        return await play(point, directory)


async def _cut(migration: Migration) -> None:
    try:
        async with asyncio.timeout(CUT_SECONDS):
            await migration.dirty_sync(CUT_ROUNDS + 1)
    except TimeoutError:
        pass


def run_grid(path: Path, every: list[Point], wanted: set[int]) -> None:
    """Run everything and write the raw results."""
    tracer = Tracer()
    results = []
    points = [point for point in every if not wanted or point.number in wanted]
    try:
        with tempfile.TemporaryDirectory() as directory:
            for count, point in enumerate(points):
                began = time.monotonic()
                try:
                    pid, figures = asyncio.run(_bounded(point, Path(directory)))
                except (qemu.QemuError, TimeoutError) as error:
                    print(f"left out: {point}: {error!r}", file=sys.stderr, flush=True)
                    continue
                time.sleep(0.4)
                results.append(_result(point, pid, figures, tracer.pump))
                seen = results[-1]["outcome"], len(results[-1]["rounds"])
                print(
                    f"{count + 1}/{len(points)} {point} {seen} {time.monotonic() - began:.1f} s, "
                    f"load {os.getloadavg()[0]:.1f}",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        tracer.close()
        path.write_text(
            json.dumps({"cut_rounds": CUT_ROUNDS, "runs": results}, separators=(",", ":"))
        )


def _result(point: Point, pid: int, figures: dict[str, Any] | None, pump: Pump) -> dict[str, Any]:
    migration = next(m for m in pump.snapshot().migrations if m.pid == pid)
    rounds = [
        {k: v for k, v in structs.asdict(r).items() if k != "slots"} for r in migration.rounds
    ]
    return {
        "point": dataclasses.asdict(point),
        "qemu": figures,
        "load": os.getloadavg()[0],
        "outcome": migration.outcome,
        "incomplete": migration.incomplete,
        "started_at_ns": migration.started_at_ns,
        "stopped_at_ns": migration.stopped_at_ns,
        "ended_at_ns": migration.ended_at_ns,
        "downtime_ns": migration.downtime.vcpu_ns,
        "rounds": rounds,
    }


# -- judging ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """A run as it happened; `rounds` are the sweeps while the guest ran, `every` all of them."""

    point: Point
    rounds: tuple[Round, ...]
    every: tuple[Round, ...]
    started_at_ns: int
    stopped_at_ns: int | None
    converged: bool
    total_ns: int | None
    downtime_ns: int | None
    near: bool


def load(path: Path) -> list[Played]:
    """The raw results; runs that were not traced whole are left out, with a warning."""
    runs = []
    for raw in json.loads(path.read_text())["runs"]:
        point = Point(**raw["point"])
        if raw["incomplete"] or raw["outcome"] not in ("completed", "cancelled", "failed"):
            print(f"left out: {point}: {raw['outcome']}, incomplete={raw['incomplete']}")
            continue
        stopped = raw["stopped_at_ns"]
        every = [Round(**{**r, "slots": ()}) for r in raw["rounds"]]
        rounds = tuple(r for r in every if stopped is None or r.at_ns < stopped)
        converged = raw["outcome"] == "completed"
        total = raw["ended_at_ns"] - raw["started_at_ns"] if converged else None
        runs.append(
            Played(
                point,
                rounds,
                tuple(every),
                raw["started_at_ns"],
                stopped,
                converged,
                total,
                raw["downtime_ns"] if converged else None,
                _near(point, rounds, converged),
            )
        )
    return runs


def _near(point: Point, rounds: tuple[Round, ...], converged: bool) -> bool:
    threshold = point.bandwidth * MIB * point.limit_ms / 1e3
    found = [(r.new_pages or 0) * PAGE_ON_WIRE / threshold for r in rounds[1:]]
    last = converged and len(rounds) >= CUT_ROUNDS - 1
    return last or any(1 - NEAR <= ratio <= 1 + NEAR for ratio in found)


@dataclass(frozen=True)
class Guess:
    """The forecast of a run."""

    run: Played
    converges: bool
    total_ns: int | None
    downtime_ns: int | None


def guess(run: Played, sweeps: int, fitted: Fitted) -> Guess | None:
    """The forecast from the first sweeps; None where the guest was stopped before them, or nothing is said."""
    if len(run.rounds) < sweeps:
        return None
    assumed = Assumptions(
        downtime_limit_ns=run.point.limit_ms * 1_000_000, max_rounds=CUT_ROUNDS - sweeps
    )
    told = forecast(run.rounds[:sweeps], run.started_at_ns, assumed, fitted)
    if told is None or told.converges is None:
        return None
    return Guess(run, _in_time(told), told.total_ns, told.downtime_ns)


def _in_time(told: Forecast) -> bool:
    if not told.converges or told.total_ns is None:
        return False
    return told.total_ns - (told.downtime_ns or 0) <= CUT_SECONDS * 1e9


def baseline(run: Played, sweeps: int) -> Guess | None:
    """The last round's rate held constant, the mean bandwidth, and the downtime limit's arithmetic."""
    if len(run.rounds) < sweeps:
        return None
    rounds = run.rounds[:sweeps]
    sent = sum(r.sent_bytes or 0 for r in rounds[:-1])
    bandwidth = sent * 1e9 / (rounds[-1].at_ns - rounds[0].at_ns)
    interval = rounds[-1].at_ns - rounds[-2].at_ns
    rate = (rounds[-1].new_pages or 0) * PAGE_ON_WIRE * 1e9 / interval
    threshold = bandwidth * run.point.limit_ms / 1e3
    left = float((rounds[-1].new_pages or 0) * PAGE_ON_WIRE)
    ns = float(rounds[-1].at_ns - run.started_at_ns)
    for _ in range(CUT_ROUNDS - sweeps + 1):
        if left < threshold:
            down = left * 1e9 / bandwidth
            total = ns + down
            return Guess(run, ns <= CUT_SECONDS * 1e9, round(total), round(down))
        took_ns = left * 1e9 / bandwidth
        ns += took_ns
        left = rate * took_ns / 1e9
    return Guess(run, False, None, None)


def errors(guesses: Iterable[Guess]) -> tuple[list[float], list[float], list[float]]:
    """Convergence right (1 or 0); relative errors of total time; of downtimes of 50 ms and more."""
    right, total, down = [], [], []
    for each in guesses:
        run = each.run
        right.append(float(each.converges == run.converged))
        if run.converged and each.total_ns is not None and run.total_ns is not None:
            total.append(abs(each.total_ns - run.total_ns) / run.total_ns)
        long = run.downtime_ns is not None and run.downtime_ns >= LONG_DOWNTIME_NS
        if run.converged and each.downtime_ns is not None and long:
            assert run.downtime_ns is not None
            down.append(abs(each.downtime_ns - run.downtime_ns) / run.downtime_ns)
    return right, total, down


def fit(runs: list[Played]) -> Fitted:
    """The constants that do best on these runs: how early a full set was full, and what a short downtime takes.

    How fast a guest dirties memory within the only interval there is, is not fitted: it says no more than a mean.
    """
    clear = [run for run in runs if not run.near]

    def cost(full: float) -> float:
        fitted = structs.replace(FITTED, shape=Shape(full=full))
        guesses = [g for run in clear if (g := guess(run, 3, fitted)) is not None]
        right, total, _ = errors(guesses)
        return 2 * (1 - statistics.mean(right or [0.0])) + (statistics.mean(total) if total else 0)

    full = min((1.0, 1.1, 1.25, 1.5, 2.0, 3.0), key=cost)
    short = [r.downtime_ns for r in runs if r.downtime_ns and r.downtime_ns < LONG_DOWNTIME_NS]
    fixed = round(min(short, default=FITTED.fixed_downtime_ns) / 1e5) * 100_000
    return structs.replace(FITTED, shape=Shape(full=full), fixed_downtime_ns=fixed)


def fit_sustained(runs: list[Played]) -> Fitted:
    """How much faster than its bursts a channel is that is held back no more, on these runs."""

    def cost(sustained: float) -> float:
        fitted = structs.replace(FITTED, sustained=sustained)
        guesses = [g for run in runs if not run.near and (g := guess(run, 3, fitted)) is not None]
        _, _, down = errors(guesses)
        return statistics.median(down)

    return structs.replace(FITTED, sustained=min((1 + n / 20 for n in range(17)), key=cost))


FITS = {"": fit, "_pinned": fit_sustained}
"""The grids with a half to fit on, and what is fitted there."""


def judge(path: Path, which: str) -> None:
    """Fit, judge, print. The fresh grid is judged whole, with the constants in use."""
    runs = load(path)
    fitted, judged = FITTED, runs
    if which in FITS:
        first, second = halves(GRIDS[which]())
        fitted = FITS[which]([run for run in runs if run.point.number in first])
        print(f"fitted on {len(first)} runs: {fitted}\nin use: {FITTED}\n")
        judged = [run for run in runs if run.point.number in second]
    print("| runs | forecast | after | convergence | total time, median | downtime, median |")
    print("|---|---|---|---|---|---|")
    for kind, near in (("clear", False), ("within one round of the limit", True)):
        some = [run for run in judged if run.near == near]
        for sweeps in (2, 3):
            model = [g for run in some if (g := guess(run, sweeps, fitted)) is not None]
            plain = [g for run in some if (g := baseline(run, sweeps)) is not None]
            for name, guesses in (("vftrace", model), ("rate held constant", plain)):
                print(f"| {kind} | {name} | sweep {sweeps} | {_cells(guesses)} |")
    print(f"\nMisses (judged runs, after sweep 2 and 3):\n\n{_MISSES}")
    for run, sweeps in itertools.product(judged, (2, 3)):
        told = guess(run, sweeps, fitted)
        if told is not None and _failed(told):
            print(_row(told, f"sweep {sweeps}"))
    judge_what_if(runs)
    judge_refuted(runs)


def _cells(guesses: list[Guess]) -> str:
    right, total, down = errors(guesses)
    cells = [f"{sum(right):.0f} of {len(right)}"]
    cells += [f"{statistics.median(x):.1%} of {len(x)}" if x else "none" for x in (total, down)]
    return " | ".join(cells)


# -- what-if, and limits that are not known -----------------------------------------------------


def what_if(run: Played, *, bandwidth: bool, limit: bool) -> Guess | None:
    """A replay under the run's own settings, those that are not given being left to the recording.

    Where there was no limit to the bandwidth there is none to give.
    """
    given = bandwidth and run.point.bandwidth != UNLIMITED
    assumed = Assumptions(
        bandwidth_bytes_per_second=run.point.bandwidth * MIB if given else None,
        downtime_limit_ns=run.point.limit_ms * 1_000_000 if limit else None,
        max_rounds=CUT_ROUNDS,
    )
    recorded = Recorded(run.every, run.started_at_ns, run.stopped_at_ns, run.downtime_ns)
    told = of_replay(recorded, assumed)
    if told is None or told.converges is None:
        return None
    return Guess(run, _in_time(told), told.total_ns, told.downtime_ns)


def judge_what_if(runs: list[Played]) -> None:
    """Total time and downtime of replays, beside what happened."""
    print(
        "\n| what-if with | converges as it did | total time, median | within 20 % | downtime, median |"
    )
    print("|---|---|---|---|---|")
    for bandwidth, limit in itertools.product((True, False), (True, False)):
        guesses = [what_if(run, bandwidth=bandwidth, limit=limit) for run in runs]
        known = [g for g in guesses if g is not None]
        right, total, down = errors(known)
        given = [name for name, on in (("bandwidth", bandwidth), ("limit", limit)) if on]
        near = sum(error <= 0.2 for error in total)
        print(
            f"| {' and '.join(given) or 'nothing'} | {sum(right):.0f} of {len(runs)} | "
            f"{statistics.median(total):.1%} of {len(total)} | {near} of {len(total)} | "
            f"{f'{statistics.median(down):.1%} of {len(down)}' if down else 'none'} |"
        )
        if bandwidth and limit:
            misses = [g for g in known if _failed(g)]
    print(f"\nMisses with bandwidth and limit:\n\n{_MISSES}")
    for told in misses:
        print(_row(told, "replay"))


def judge_refuted(runs: list[Played]) -> None:
    """Forecasts without a given limit, after each sweep from the one on that refutes QEMU's default."""
    counts: dict[tuple[str, str, str], int] = {}
    wrong = []
    for run in runs:
        seen = False
        for sweeps in range(2, min(len(run.rounds), CUT_ROUNDS) + 1):
            assumed = Assumptions(max_rounds=max(1, CUT_ROUNDS - sweeps))
            told = forecast(run.rounds[:sweeps], run.started_at_ns, assumed)
            if told is None or told.limit_from != "rounds":
                continue
            said = None if told.converges is None else _in_time(told)
            answer = "open" if said is None else "right" if said == run.converged else "wrong"
            if answer == "wrong":
                wrong.append(_row(Guess(run, bool(said), None, None), f"sweep {sweeps}"))
            kind = "near the limit" if run.near else "clear"
            for when in ("each sweep", *(() if seen else ("the first",))):
                key = kind, when, answer
                counts[key] = counts.get(key, 0) + 1
            seen = True
    print("\n| limit not given, default refuted | after | right | wrong | open |")
    print("|---|---|---|---|---|")
    for kind, when in itertools.product(("clear", "near the limit"), ("the first", "each sweep")):
        cells = [str(counts.get((kind, when, answer), 0)) for answer in ("right", "wrong", "open")]
        print(f"| {kind} | {when} | {' | '.join(cells)} |")
    print("\nWrong:\n", _MISSES, *wrong, sep="\n")


_MISSES = """\
| run | pattern | MiB/s | limit, ms | pages | writes/s | near | after | sweeps | converged | total, ms | downtime, ms |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def _failed(told: Guess) -> bool:
    right, total, down = errors([told])
    return not all(right) or any(e > 0.1 for e in total) or any(e > 0.2 for e in down)


def _row(told: Guess, after: str) -> str:
    """A miss as a row: forecast → real."""
    run, p = told.run, told.run.point
    cells = (
        p.number,
        p.pattern,
        "none" if p.bandwidth == UNLIMITED else p.bandwidth,
        p.limit_ms,
        p.pages,
        p.rate,
        "near" if run.near else "",
        after,
        len(run.rounds),
        f"{_yes(told.converges)} → {_yes(run.converged)}",
        f"{_ms(told.total_ns)} → {_ms(run.total_ns)}",
        f"{_ms(told.downtime_ns)} → {_ms(run.downtime_ns)}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _yes(converges: bool) -> str:
    return "yes" if converges else "no"


def _ms(ns: int | None) -> str:
    return "-" if ns is None else f"{ns / 1e6:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Forecasts against real migrations")
    parser.add_argument("what", choices=("run", "judge"))
    parser.add_argument("--json", type=Path, help="raw results; default forecast_grid[_...].json")
    which = parser.add_mutually_exclusive_group()
    for name in ("fresh", "pinned", "limits", "limits2"):
        which.add_argument(
            f"--{name}", dest="grid", action="store_const", const=f"_{name}", default=""
        )
    parser.add_argument("--only", type=int, nargs="*", default=[], help="numbers of runs, to try")
    args = parser.parse_args()
    path = args.json or HERE / f"forecast_grid{args.grid}.json"
    if args.what == "run":
        run_grid(path, GRIDS[args.grid](), set(args.only))
    judge(path, args.grid)


if __name__ == "__main__":
    main()
