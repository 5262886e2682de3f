# SPDX-License-Identifier: MIT
"""`vftrace demo`: traces a real migration on this machine, and prints the report beside QEMU's own figures."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from vftrace.commands.common import add_force_argument
from vftrace.errors import MachineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vftrace.collect.pump import Pump
    from vftrace.demo.qemu_figures import Comparison
    from vftrace.demo.scenarios import Scenario, Truth
    from vftrace.model.migration import Snapshot

HELP = "migrate a small VM on this machine, traced, and report it"
EXAMPLES = (
    ("vftrace demo", "migrate a small guest and report it"),
    ("vftrace demo --list", "list the scenarios"),
    ("vftrace demo --replay", "replay a recording that ships with vftrace, without root or KVM"),
)

DEFAULT_SCENARIO = "completed-slow"

SAMPLE = Path(__file__).resolve().parent.parent / "demo" / "sample.vft.gz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--scenario`, `--list`, `--keep`, `--replay`, `--ascii`, `--no-live`."""
    parser.add_argument(
        "--scenario",
        metavar="NAME",
        help=f"scenario to play, one of those that --list prints (default: {DEFAULT_SCENARIO})",
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep the recording")
    add_force_argument(parser)
    parser.add_argument(
        "--replay", action="store_true", help="replay the recording that ships with vftrace"
    )
    parser.add_argument(
        "--no-live", action="store_true", help="print progress lines instead of the live view"
    )
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII characters only")


def run(args: argparse.Namespace) -> int:
    """Play, trace and report a scenario. If the machine cannot, print why and replay a real recording."""
    if args.list:
        for scenario in _scenarios().values():
            print(f"{scenario.name:26} {scenario.title}")
        return 0
    if args.replay and args.scenario is not None:
        raise UsageError(
            "--replay has one recording, which ships with vftrace: leave out --scenario or --replay"
        )
    args.scenario = args.scenario or DEFAULT_SCENARIO
    if not args.replay:
        try:
            scenarios = _scenarios()
            if args.scenario not in scenarios:
                raise UsageError(f"no scenario {args.scenario!r}; see: vftrace demo --list")
            _check_machine()
            return _play(args)
        except MachineError as error:
            print(f"vftrace: no live demo here: {error}", file=sys.stderr)
            if error.fix:
                print(f"  to fix: {error.fix}", file=sys.stderr)
            print("vftrace: replaying a recording of a real migration instead", file=sys.stderr)
    return _replay(args)


def _scenarios() -> "Mapping[str, Scenario]":
    """Return all scenarios. Raises MachineError if the library that drives QEMU is missing."""
    try:
        from vftrace.demo.scenarios import SCENARIOS
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "qemu":
            raise
        raise MachineError(
            "Python's qemu.qmp, which drives QEMU, is not installed", "pip install 'vftrace[demo]'"
        ) from error
    return SCENARIOS


def _check_machine() -> None:
    """Raise MachineError, which names what is missing and how to install it. QEMU itself is checked later."""
    kvm = Path("/dev/kvm")
    if not kvm.exists():
        raise MachineError("there is no /dev/kvm", fix="modprobe kvm-intel   (or kvm-amd)")
    try:
        kvm.open("r+b", buffering=0).close()
    except OSError as error:
        raise MachineError(f"/dev/kvm: {error.strerror}", fix="run it with sudo") from error
    if shutil.which("qemu-system-x86_64") is None:
        raise MachineError(
            "QEMU is not installed",
            fix="apt-get install qemu-system-x86   (Fedora: dnf install qemu-system-x86-core)",
        )


def _play(args: argparse.Namespace) -> int:
    from vftrace.collect.pump import Pump
    from vftrace.collect.session import Opening
    from vftrace.demo.qemu_figures import compare
    from vftrace.model.report import live_report
    from vftrace.model.select import select
    from vftrace.outputs.report.text import render_report
    from vftrace.outputs.text.printing import show

    live = sys.stdout.isatty() and not args.no_live
    # SIGTERM works like Ctrl-C: the VMs are ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1)
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="vftrace-demo-") as directory:
        player = Player(args.scenario, Path(directory))
        output = args.keep or Path(directory) / "demo.vft"
        # The VMs that it starts have the rights of its caller.
        with Opening(output=output, force=args.force, keep_privileges=True).finish() as session:
            pump = Pump(session)
            try:
                player.start()
                _watch(pump, player, live=live, ascii=args.ascii)
            finally:
                player.stop()
                pump.close()
        truth = player.result()
        # The demo reports only the VMs that it started.
        own = [str(process.pid) for process in truth.processes]
        snapshot = select(pump.snapshot(), own)
    show(render_report(live_report(pump.host, snapshot), ascii=args.ascii), soft_wrap=True)
    _print_comparison(truth, compare(truth, snapshot))
    if args.keep:
        print(f"vftrace: the recording is {args.keep}: vftrace report {args.keep}", file=sys.stderr)
    return 0


class Player:
    """Plays a scenario in a thread of its own, so that the main thread can draw and be interrupted."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self._truth: Truth | None = None
        self._error: BaseException | None = None
        self._cancel: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scenario")
        self.lines: list[str] = []

    def start(self) -> None:
        """Start to play."""
        self._thread.start()

    @property
    def playing(self) -> bool:
        """Whether the scenario still plays."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End all VMs if the scenario still plays, and wait for their end."""
        self._cancel.set()
        self._thread.join()

    def result(self) -> "Truth":
        """Return QEMU's own account. Raises the scenario's error."""
        if self._error is not None:
            raise self._error
        assert self._truth is not None
        return self._truth

    def _run(self) -> None:
        import asyncio

        from vftrace.demo.scenarios import play

        async def until_cancelled() -> "Truth":
            task = asyncio.ensure_future(play(self._name, self._directory, self.lines.append))
            while not task.done():
                if self._cancel.is_set():
                    task.cancel()
                await asyncio.wait([task], timeout=0.1)
            return task.result()

        try:
            self._truth = asyncio.run(until_cancelled())
        except BaseException as error:
            self._error = error


def _watch(pump: "Pump", player: Player, *, live: bool, ascii: bool) -> None:  # noqa: A002
    """Read events while the scenario plays; draw the live view, or print one line for each change."""
    own = OwnVms()
    if live:
        from vftrace.commands.top import watch

        watch(pump, until=lambda: not player.playing, ascii=ascii, choose=own.of)
    # Also after q: the scenario is played to its end, with one line for each change.
    said = 0
    seen: dict[tuple[int, int], str] = {}
    while player.playing:
        pump.step()
        for line in player.lines[said:]:
            print(f"  {line}", flush=True)
            said += 1
        for line in _news(own.of(pump.snapshot()), seen):
            print(f"  {line}", flush=True)


class OwnVms:
    """Distinguishes the VMs that this process started from others on this machine."""

    def __init__(self) -> None:
        self._own: dict[int, bool] = {}

    def of(self, snapshot: "Snapshot") -> "Snapshot":
        """Return the snapshot with only the VMs that are children of this process, and their migrations."""
        return replace(
            snapshot,
            vms=tuple(vm for vm in snapshot.vms if self._is_own(vm.pid)),
            migrations=tuple(m for m in snapshot.migrations if self._is_own(m.pid)),
        )

    def _is_own(self, pid: int) -> bool:
        if pid not in self._own:
            try:
                status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
            except OSError:
                return False
            self._own[pid] = f"\nPPid:\t{os.getpid()}\n" in status
        return self._own[pid]


def _news(snapshot: "Snapshot", seen: dict[tuple[int, int], str]) -> list[str]:
    """Return a line for each migration whose phase or round has changed."""
    lines = []
    for m in snapshot.migrations:
        current = [phase.name for phase in m.phases if phase.end_at_ns is None]
        state = m.outcome or f"{', '.join(current)}, round {len(m.rounds)}"
        if seen.get((m.pid, m.attempt)) != state:
            seen[(m.pid, m.attempt)] = state
            lines.append(f"traced: {m.name or m.key}: {state}")
    return lines


def _print_comparison(truth: "Truth", comparisons: "tuple[Comparison, ...]") -> None:
    from rich.table import Table

    from vftrace.outputs.text.printing import show

    if not truth.attempts:
        print("This scenario starts no migration, and vftrace saw none.")
        return
    for comparison in comparisons:
        print()
        table = Table(
            title=f"Beside QEMU {truth.qemu_version}'s own figures", title_justify="left", box=None
        )
        table.add_column("")
        table.add_column("vftrace", justify="right", no_wrap=True)
        table.add_column("QEMU", justify="right", no_wrap=True)
        table.add_column("")
        for row in comparison.rows:
            table.add_row(row.figure, row.ours, row.qemu, row.note)
        show(table, soft_wrap=True)
        if comparison.migration is None:
            print("vftrace saw no migration in this scenario: please report it.")


def _replay(args: argparse.Namespace) -> int:
    from vftrace.collect.recording import Recording
    from vftrace.collect.replay import track
    from vftrace.model.report import live_report
    from vftrace.outputs.report.text import render_report
    from vftrace.outputs.text.printing import show

    recording = Recording(SAMPLE)
    report = live_report(recording.host, track(recording).snapshot())
    show(render_report(report, ascii=args.ascii), soft_wrap=True)
    return 0
