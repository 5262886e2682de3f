# SPDX-License-Identifier: MIT
"""kill -9 of a recorder over real migrations: `python -m tests.crash [--kills 200] [record serve top]`.

Small KVM programs migrate one after the other (benchmarks/fleet.c) and print each dirty sync as it returns. A recorder
is started and killed at a random moment. Its recording must have every dirty sync from when it was ready until it ends,
which is at most 200 ms before the kill. It must consist of whole records up to one place.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.host.programs import compiled
from vftrace import events
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of, track

ROOT = Path(__file__).parents[1]
KEPT_NS = 200_000_000
"""Events this long before the kill must be in the recording."""

LATE_NS = 100_000_000
"""Ticks are 100 ms apart. A recording that ends longer before the kill is printed with its command."""

WATCHED_S = 0.4

SETTLED_NS = 60_000_000
"""Records of several CPUs are in order within this time."""

COMMANDS = {
    "record": ("record", "-o"),
    "serve": ("serve", "--web.listen-address", "127.0.0.1:0", "--record"),
    "top": ("top", "--json", "--record"),
}


def boottime_ns() -> int:
    """CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass
class Load:
    """Migrations of small KVM programs, one pair after the other, as a context manager."""

    program: Path
    syncs: list[tuple[int, int]] = field(default_factory=list)
    """(pid, CLOCK_BOOTTIME ns) of every dirty sync."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def built(cls, directory: Path) -> Self:
        """Compile the program."""
        return cls(compiled(ROOT / "benchmarks" / "fleet.c", directory))

    def __enter__(self) -> Self:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_sync(self, since_ns: int) -> None:
        """Wait for a dirty sync after this time. AssertionError after a minute."""
        deadline = time.monotonic() + 60
        while not self.syncs or self.syncs[-1][1] <= since_ns:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._stop.is_set():
            with subprocess.Popen(
                [self.program, "2", "0", "1", "50", "1", "truth"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("sync "):
                        _, pid, at_ns = line.split()
                        self.syncs.append((int(pid), int(at_ns)))
                    else:
                        # "ready", and at the end "done".
                        process.stdin.write("x")
                        process.stdin.flush()


@contextmanager
def recorder(command: str, path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A recorder that traces; it is killed at the end if it still runs."""
    process = subprocess.Popen(
        # With the unit's priority: this test is not about records that a starved recorder had no time to write.
        ["nice", "-n", "-15", sys.executable, "-m", "vftrace", *COMMANDS[command], str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if line == "ready\n":
                break
        else:
            raise AssertionError(f"{command} did not start: {''.join(said)}")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@dataclass(frozen=True)
class Kill:
    """The result of one kill: the dirty syncs that must be recorded, and how long before the kill the recording
    ends."""

    command: str
    syncs: int
    lost_ns: int
    waited_ms: str = ""
    """What the recorder's processes waited for a CPU in the last `WATCHED_S` seconds, and the load."""


def kill_once(
    command: str, path: Path, load: Load, chance: random.Random, latest_s: float = 2.5
) -> Kill:
    """Start a recorder, kill it 0.5 to `latest_s` seconds after the first dirty sync that it sees, and check its
    recording. Raises AssertionError."""
    with recorder(command, path) as process:
        ready_ns = boottime_ns()
        load.wait_for_sync(ready_ns)
        time.sleep(chance.uniform(0.5, latest_s) - WATCHED_S)
        pids = process.pid, *_children(process.pid)
        before = [_use_ms(pid) for pid in pids]
        time.sleep(WATCHED_S)
        after = [_use_ms(pid) for pid in pids]
        killed_ns = boottime_ns()
        process.send_signal(signal.SIGKILL)
        process.wait()
    _gone(process.pid)
    kill = checked(command, path, load, ready_ns, killed_ns)
    used = [
        f"ran {then[0] - now[0]:.0f}, waited {then[1] - now[1]:.0f}"
        for now, then in zip(before, after, strict=True)
    ]
    return replace(kill, waited_ms=f"{'; '.join(used)}; load {os.getloadavg()[0]:.0f}")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _use_ms(pid: int) -> tuple[float, float]:
    """How long a process's threads have run, and waited for a CPU (Linux Documentation/scheduler/sched-stats.rst)."""
    ran = waited = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            words = stat.read_text().split()
        except OSError:
            continue
        ran += int(words[0])
        waited += int(words[1])
    return ran / 1e6, waited / 1e6


def checked(command: str, path: Path, load: Load, ready_ns: int, killed_ns: int) -> Kill:
    """Compare a recording with the dirty syncs that the load printed, up to its end."""
    time.sleep(0.1)
    recording = Recording(path)
    records = list(recording)
    seen = list(events_of(records))
    latest_ns = max((event.at_ns for event in seen), default=ready_ns)
    assert latest_ns <= killed_ns, "an event from after the kill"
    until_ns = latest_ns - SETTLED_NS
    expected = Counter(pid for pid, at_ns in list(load.syncs) if ready_ns <= at_ns <= until_ns)
    found = Counter(
        event.tgid
        for event in seen
        if isinstance(event, events.GetDirtyLog) and ready_ns <= event.at_ns <= until_ns
    )
    for pid, count in expected.items():
        # The program reads the clock after the request has returned: at either end one may fall on the other side.
        assert count <= found[pid] + 1, f"{command}: {found[pid]} of {count} dirty syncs of {pid}"
        assert found[pid] <= count + 2, f"{command}: {found[pid]} dirty syncs of {pid}, not {count}"
    mine = {pid for pid, _ in load.syncs}
    for migration in track(records).snapshot().migrations:
        if migration.pid in mine:
            assert not migration.incomplete or migration.missed_beginning, migration
    return Kill(command, expected.total(), killed_ns - latest_ns)


def _gone(session: int) -> None:
    """Every process of a killed recorder ends, and with it its BPF objects."""
    deadline = time.monotonic() + 10
    while left := _of_session(session):
        assert time.monotonic() < deadline, f"processes of a killed recorder live on: {left}"
        time.sleep(0.05)


def _of_session(session: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def main() -> int:
    """Kill recorders `--kills` times, each command in turn."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("commands", nargs="*", default=[*COMMANDS], metavar="COMMAND")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--latest", type=float, default=2.5, help="the latest kill, seconds after the first sync"
    )
    args = parser.parse_args()
    chance = random.Random(args.seed)
    kills: list[Kill] = []
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vftrace-crash-") as name:
        directory = Path(name)
        with Load.built(directory) as load:
            for number in range(args.kills):
                command = args.commands[number % len(args.commands)]
                try:
                    kills.append(
                        kill_once(command, directory / "killed.vft", load, chance, args.latest)
                    )
                except AssertionError as error:
                    failed += 1
                    print(f"kill {number}: {command}: {error}"[:300], flush=True)
                (directory / "killed.vft").unlink(missing_ok=True)
    lost = sorted(kill.lost_ns for kill in kills)
    for kill in kills:
        if kill.lost_ns > LATE_NS:
            print(
                f"{kill.command}: ends {kill.lost_ns / 1e6:.0f} ms before the kill; main process and reader, ms in"
                f" the last {WATCHED_S * 1000:.0f}: {kill.waited_ms}"
            )
    print(f"ms: {' '.join(f'{ns / 1e6:.0f}' for ns in lost)}")
    print(
        f"{len(kills)} kills of {', '.join(args.commands)}: {sum(k.syncs for k in kills)} dirty syncs, none missing;"
        f" recordings end {lost[len(lost) // 2] / 1e6:.0f} ms before the kill in the median,"
        f" {lost[int(0.9 * len(lost))] / 1e6:.0f} in 90 %, {lost[-1] / 1e6:.0f} ms at most;"
        f" {sum(ns > KEPT_NS for ns in lost)} end earlier than 200 ms before it; {failed} failed"
    )
    return 1 if failed or lost[-1] > KEPT_NS else 0


if __name__ == "__main__":
    sys.exit(main())
