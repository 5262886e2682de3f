# SPDX-License-Identifier: MIT
"""Run operations: record each with vftrace, keep recording and truth, and compare.

tests/libvirt/run --list
tests/libvirt/run direct abort --results DIRECTORY
tests/libvirt/run                     all of them
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.libvirt import split, verdict
from tests.libvirt.domains import IMAGES
from tests.libvirt.hosts import HostError, Pair, two_hosts
from tests.libvirt.operations import OPERATIONS, Operation
from tests.libvirt.play import PROXIED, OperationError, Play
from tests.libvirt.truth import MonitorLog, attempts, job_info
from vftrace.cli import main as vftrace

_VFTRACE = (sys.executable, "-m", "vftrace")
_RECORD_LIMIT = "180s"


@dataclass(frozen=True)
class Result:
    """An operation that was run: its truth, vftrace's report of it, and what is wrong in that."""

    truth: Mapping[str, Any]
    report: Mapping[str, Any]
    problems: tuple[str, ...]


class Session:
    """The hosts that operations share; one that an operation has spoilt is made anew."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._stacks: dict[bool, ExitStack] = {}
        self._pairs: dict[bool, Pair] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for own_pids in list(self._pairs):
            self._drop(own_pids)

    def run(self, operation: Operation) -> Result:
        """Play one operation, recorded, and compare; raises OperationError or HostError."""
        pair = self._pair(operation.own_pids)
        recording = self.results / f"{operation.name}.vft.gz"
        try:
            truth = _record(pair, operation, recording)
            clean_up(pair)
        except BaseException:
            self._drop(operation.own_pids)
            raise
        report, problems = compare(recording, truth)
        return Result(truth, report, tuple(problems))

    def _pair(self, own_pids: bool) -> Pair:
        if own_pids not in self._pairs:
            stack = self._stacks[own_pids] = ExitStack()
            self._pairs[own_pids] = stack.enter_context(two_hosts(own_pids))
        return self._pairs[own_pids]

    def _drop(self, own_pids: bool) -> None:
        del self._pairs[own_pids]
        self._stacks.pop(own_pids).close()


def _record(pair: Pair, operation: Operation, recording: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        for host in pair.hosts:
            # The daemon appends: an empty log is this operation's alone.
            host.log.write_bytes(b"")
        play = Play(pair, stack, logs={h.name: MonitorLog(h.log, h.name) for h in pair.hosts})
        if operation.before is not None:
            operation.before(play)
        raw = pair.shared / "recording"
        with recording_to(raw):
            operation.play(play)
            play.note_pids()
            # What vftrace says of the end it may say a little later.
            time.sleep(0.3)
        truth = truth_of(play, operation)
    pids = {pid for side in play.pids.values() for pid in side}
    meta, records = split.read(raw)
    # Other VMs of this machine are not part of it.
    split.write(recording, meta, split.only(records, pids))
    return truth


@contextmanager
def recording_to(path: Path) -> Iterator[None]:
    """`vftrace record`, from its "ready" to the end of the block."""
    command = [*_VFTRACE, "record", "-o", str(path), "--duration", _RECORD_LIMIT]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        try:
            said = []
            for line in tracer.stderr:
                if line.strip() == "ready":
                    break
                said.append(line)
            else:
                raise OperationError(f"vftrace record did not start: {''.join(said)}")
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=30)


def truth_of(play: Play, operation: Operation) -> dict[str, Any]:
    """Return the account of QEMU and libvirt in the form of truth.json."""
    said = [message for log in play.logs.values() for message in log.poll()]
    qemu = []
    for domain in play.domains:
        names = {domain.name} | (play.aliases if domain is play.domain else set())
        qemu += [attempt.to_json() for attempt in attempts(said, names)]
    completed = ("domjobinfo", "--completed", play.domain.name)
    return {
        "uuid": play.domain.uuid,
        "what": operation.what,
        "domains": [{"name": d.name, "uuid": d.uuid} for d in play.domains],
        "expect": [{**asdict(each), "compare": sorted(each.compare)} for each in operation.expect],
        "qemu": qemu,
        "libvirt": {
            host.name.upper(): job_info(host.virsh(*completed, check=False)) or "-"
            if host.answers()
            else "-"
            for host in play.pair.hosts
        },
        "pids": {name.upper(): sorted(pids) for name, pids in play.pids.items()},
    }


def clean_up(pair: Pair) -> None:
    """End all domains and forget them; start daemons again that were killed."""
    for host in pair.hosts:
        if not host.answers():
            host.start_daemon()
        for name in host.virsh("list", "--all", "--name").split():
            host.virsh("destroy", name, check=False)
            options = ("--managed-save", "--snapshots-metadata", "--checkpoints-metadata")
            host.virsh("undefine", name, *options, check=False)
        if host.qemus():
            raise HostError(f"{host.name}: QEMUs left behind")
        host.run("rm", "-rf", str(IMAGES), str(PROXIED))
    for left in pair.shared.iterdir():
        left.unlink()


def report_of(*recordings: Path) -> dict[str, Any]:
    """vftrace's report of these recordings, as JSON."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        arguments = ["report", "--format", "json", "-o", out.name, *map(str, recordings)]
        if vftrace(arguments):
            raise OperationError(f"vftrace {' '.join(arguments)}: see above")
        report: dict[str, Any] = json.loads(Path(out.name).read_text())
    return report


def compare(recording: Path, truth: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The report of a recording, and what is wrong in it: read whole, each host alone, both together."""
    whole = report_of(recording)
    wrong = verdict.problems(whole, truth)
    meta, records = split.read(recording)
    halves = {
        side: split.only(records, truth["pids"][side]) for side in "AB" if truth["pids"][side]
    }
    with tempfile.TemporaryDirectory() as directory:

        def written(side: str, half: Sequence[split.Record], kind: str) -> Path:
            path = Path(directory) / f"{side}-{kind}.vft"
            split.write(path, split.side(meta, f"host-{side}", "AB".index(side) + 1), half)
            return path

        unset = {side: written(side, half, "unset") for side, half in halves.items()}
        for side, path in unset.items():
            wrong += verdict.problems_alone(report_of(path), truth, side)
        if len(halves) > 1:
            clocked = [
                written(side, split.with_set_clocks(half), "set") for side, half in halves.items()
            ]
            wrong += verdict.problems_together(whole, report_of(*clocked), truth)
            wrong += verdict.problems_apart(whole, report_of(*unset.values()), truth)
    return whole, wrong


def table(results: Sequence[tuple[str, Result | str]]) -> str:
    """The results as Markdown; a string in a result's place says why there is none."""
    lines = ["| operation | vftrace | QEMU | libvirt | verdict |", "|---|---|---|---|---|"]
    for name, result in results:
        if isinstance(result, str):
            lines.append(f"| {name} | - | - | - | not run: {result} |")
            continue
        libvirt = "; ".join(
            f"{side}: {said}" for side, said in result.truth["libvirt"].items() if said != "-"
        )
        cells = (
            "<br>".join(verdict.said_by_vftrace(result.report, result.truth)) or "no migration",
            "<br>".join(verdict.said_by_qemu(result.truth)) or "no migration",
            libvirt or "-",
            "<br>".join([*result.problems, *_known(name, result)])
            or "; ".join(["right", *_reasons(result.truth)]),
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _known(name: str, result: Result) -> list[str]:
    """Why vftrace is wrong in an operation, where that is known."""
    known = OPERATIONS[name].known
    return [f"known: {known}"] if known and result.problems else []


def _reasons(truth: Mapping[str, Any]) -> list[str]:
    """Why the outcome is not the one that QEMU's source reports."""
    return [each["why"] for each in truth["expect"] if each["why"]]


def page(results: Sequence[tuple[str, Result | str]]) -> str:
    """docs/results/libvirt.md."""
    commit = _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    qemu = _said("qemu-system-x86_64", "--version").splitlines()[0]
    libvirt = _said("libvirtd", "--version")
    machine = f"{os.cpu_count()} CPUs, Linux {platform.release()}"
    right = sum(not isinstance(result, str) and not result.problems for _, result in results)
    ran = [result for _, result in results if not isinstance(result, str)]
    longer = sorted(
        ms for r in ran if not r.problems for ms in verdict.longer_ms(r.report, r.truth)
    )
    return _PAGE.format(
        downtimes=_downtimes(longer),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        commit=commit,
        machine=machine,
        versions=f"{libvirt}; {qemu}",
        right=right,
        of=len(results),
        table=table(results),
    )


def _downtimes(longer: Sequence[float]) -> str:
    if not longer:
        return "No downtime is compared."
    return (
        f"In these, {len(longer)} downtimes are compared: vftrace's downtime is"
        f" {longer[0]:.1f} to {longer[-1]:.1f} ms (median\n{longer[len(longer) // 2]:.1f} ms)"
        " longer than QEMU's."
    )


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


_PAGE = """\
# vftrace beside libvirt

**Question.** Do vftrace's figures equal those of QEMU and libvirt, in every operation that moves, saves or disturbs a
domain?

**Answer.** vftrace is right in {right} of {of} operations.
{downtimes}

| | |
|---|---|
| date | {date} |
| commit | {commit} |
| machine | {machine} |
| versions | {versions} |
| command | `tests/libvirt/run --results DIR --page docs/results/libvirt.md` |

Two real libvirt daemons run each operation of `tests/libvirt/run --list`, and `vftrace record` records it. QEMU's and
libvirt's figures come from the daemons' monitor logs and from `virsh domjobinfo --completed`. [Testing with
libvirt](../contributing/testing-with-libvirt.md) explains how the operations run and which rules decide that a row is
right.

- **Downtime.** vftrace's downtime ends when a vCPU enters the guest. QEMU's downtime runs from the event STOP to the
  event RESUME. libvirt's downtime includes what its daemons do between these events. If the figures differ by more
  than 1 ms, vftrace's checkpoints around the events name the cause.
- **Auto-converge** is not among the compared downtimes. The vCPU of a throttled guest sleeps outside the guest when
  QEMU stops it. vftrace counts and names this sleep, QEMU does not count it.
- **Bytes.** vftrace's bytes include the device state, which QEMU 7.2 does not count.
- **`two-at-once`.** libvirt's figures are those of the first domain.
- **Columns.** vftrace: kind, outcome with its cause, downtime, rounds, bytes. QEMU: status, downtime, dirty syncs
  (passes), bytes. libvirt: the daemon, A or B, that reports the figures; total time, downtime, downtime without the
  network's part, memory, iterations.

{table}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is named and print the table; 1 if vftrace is wrong anywhere, 2 if something did not run."""
    parser = argparse.ArgumentParser(prog="tests/libvirt/run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="*", help="operations (default: all)")
    parser.add_argument("--list", action="store_true", help="the operations and what each does")
    parser.add_argument("--results", type=Path, metavar="DIR", help="keep recordings and truth")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table as a page")
    parser.add_argument("--from", dest="again", type=Path, metavar="DIR", help="compare kept ones")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:36} {each.what}" for name, each in OPERATIONS.items()))
        return 0
    unknown = [name for name in options.name if name not in OPERATIONS]
    if unknown:
        parser.error(f"no such operation: {', '.join(unknown)} (see --list)")
    names = options.name or list(OPERATIONS)
    results = compared(names, options.again) if options.again else run(names, options.results)
    print(table(results))
    if options.page is not None:
        options.page.write_text(page(results))
    wrong = sum(not isinstance(r, str) and bool(r.problems) for _, r in results)
    not_run = sum(isinstance(r, str) for _, r in results)
    print(f"\n{len(results) - wrong - not_run} right, {wrong} wrong, {not_run} not run")
    return 2 if not_run else int(bool(wrong))


def run(names: Sequence[str], kept: Path | None) -> list[tuple[str, Result | str]]:
    """Run these operations; recordings and truth.json go to `kept`."""
    found: list[tuple[str, Result | str]] = []
    directory = kept or Path(tempfile.mkdtemp(prefix="vftrace-libvirt-results-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with Session(directory) as session:
            for name in names:
                began = time.monotonic()
                try:
                    result: Result | str = session.run(OPERATIONS[name])
                    assert isinstance(result, Result)
                    _keep(directory, name, result.truth)
                    said = "; ".join(result.problems) or "right"
                except (OperationError, HostError, subprocess.TimeoutExpired) as error:
                    said = result = str(error)
                print(f"{time.monotonic() - began:5.1f} s  {name}: {said}", file=sys.stderr)
                found.append((name, result))
    finally:
        if kept is None:
            shutil.rmtree(directory)
    return found


def compared(names: Sequence[str], kept: Path) -> list[tuple[str, Result | str]]:
    """Compare recordings that were kept, with the vftrace of now."""
    truths = json.loads((kept / "truth.json").read_text())
    found: list[tuple[str, Result | str]] = []
    for name in names:
        if name in truths:
            report, wrong = compare(kept / f"{name}.vft.gz", truths[name])
            found.append((name, Result(truths[name], report, tuple(wrong))))
    return found


def _keep(directory: Path, name: str, truth: Mapping[str, Any]) -> None:
    path = directory / "truth.json"
    truths = json.loads(path.read_text()) if path.exists() else {}
    truths[name] = truth
    path.write_text(json.dumps(truths, indent=1) + "\n")
