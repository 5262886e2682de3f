"""Run one job in the emulated machine: `tests/lab/run KERNEL JOB`."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vftlab.build import KERNELS, ensure
from vftlab.common import EXIT_USAGE, LAB, LabError, Progress
from vftlab.machine import Machine, die_with_parent

EXIT_TIMEOUT = 124
EXIT_DIED = 125
TIMEOUT_S = 300.0
# Handed to jobs as they are, so that one job can be run in several ways.
PASSED_ON = re.compile(r"VFTRACE(_.*)?|LAB_.*")


@dataclass(frozen=True)
class Outcome:
    """How a job ended: exit code, seconds from power on to power off, directory of results."""

    code: int
    seconds: float
    results: Path


def jobs() -> dict[str, str]:
    """The jobs there are and what each is for: first lines of the functions in tests/lab/jobs."""
    sys.path.insert(0, str(LAB))
    from jobs import JOBS

    return {name: (job.__doc__ or "").strip().splitlines()[0] for name, job in JOBS.items()}


def _prepare(results: Path, job: str, extra: dict[str, str]) -> None:
    shutil.rmtree(results, ignore_errors=True)
    (results / ".lab").mkdir(parents=True)
    settings = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    settings.pop("VFTRACE_LAB_CACHE", None)
    settings |= {"LAB_JOB": job, **extra}
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
    (results / ".lab/env").write_text("".join(lines))


def _ended(machine: Machine, begun: float) -> Outcome:
    rc = machine.results / ".lab/rc"
    text = rc.read_text().strip() if rc.exists() else ""
    seconds = time.monotonic() - begun
    return Outcome(int(text) if text.isdigit() else EXIT_DIED, seconds, machine.results)


def run_job(
    kernel: str,
    job: str,
    results: Path,
    *,
    arguments: Sequence[str] = (),
    timeout_s: float = TIMEOUT_S,
    environment: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Boot `kernel`, run the job, copy its output to standard output as it comes.

    `results` is emptied first. The exit code is the job's; 124 when it took longer than
    `timeout_s`, 125 when the machine ended without the job. Raises LabError if images are missing
    and cannot be built. An interrupt ends the machine.
    """
    built = ensure([kernel], progress or Progress())[kernel]
    _prepare(results, job, {"LAB_ARGUMENTS": shlex.join(arguments), **(environment or {})})
    machine = Machine(built, results)
    begun = time.monotonic()
    with subprocess.Popen(
        machine.command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        # Its own group: Ctrl-C is for this program, which then ends the machine.
        start_new_session=True,
        preexec_fn=die_with_parent,
    ) as process:
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            with (results / "output").open("wb") as copy:
                while chunk := process.stdout.read1(65536):
                    copy.write(chunk)
                    copy.flush()
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()
            process.wait()
        finally:
            timer.cancel()
            process.kill()
    outcome = _ended(machine, begun)
    if outcome.code == EXIT_DIED and outcome.seconds >= timeout_s:
        return Outcome(EXIT_TIMEOUT, outcome.seconds, results)
    return outcome


def run_shell(kernel: str, results: Path, progress: Progress) -> Outcome:
    """Boot `kernel` and give the terminal to a shell in it, until the shell ends."""
    built = ensure([kernel], progress)[kernel]
    size = shutil.get_terminal_size()
    sizes = {"LAB_ROWS": str(size.lines), "LAB_COLUMNS": str(size.columns)}
    _prepare(results, "shell", sizes)
    machine = Machine(built, results, shell=True)
    progress.say("booting; the tree is /src, `exit` or Ctrl-D powers off")
    begun = time.monotonic()
    # The terminal is in raw mode meanwhile, so Ctrl-C reaches the shell inside.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        subprocess.run(machine.command(), preexec_fn=die_with_parent, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    return _ended(machine, begun)


def _tail(path: Path, lines: int = 15) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.strip().splitlines()[-lines:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tests/lab/run", description="Run one job on a stock kernel in an emulated machine."
    )
    parser.add_argument("kernel", nargs="?", metavar="KERNEL", help=f"of {', '.join(KERNELS)}")
    parser.add_argument(
        "job", nargs="?", metavar="JOB", help="see --list; a path with a slash is run as a script"
    )
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="handed to the job")
    parser.add_argument("--list", action="store_true", help="print the jobs")
    parser.add_argument("--shell", action="store_true", help="a shell instead of a job")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S")
    parser.add_argument("--results", type=Path, metavar="DIR", help="emptied first")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        for name, text in jobs().items():
            print(f"{name:24} {text}")
        return 0
    if options.kernel is None or (options.job is None) != options.shell:
        parser.error("KERNEL and either JOB or --shell are needed")
    progress = Progress()
    name = "shell" if options.shell else Path(options.job).name
    results = (options.results or LAB / "results" / f"{options.kernel}-{name}").resolve()
    try:
        if options.shell:
            outcome = run_shell(options.kernel, results, progress)
        else:
            _check_job(options.job)
            outcome = run_job(
                options.kernel,
                options.job,
                results,
                arguments=options.arguments,
                timeout_s=options.timeout,
                progress=progress,
            )
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("lab: stopped", file=sys.stderr)
        return 130
    if outcome.code in (EXIT_TIMEOUT, EXIT_DIED):
        said = _tail(results / ".lab/console")
        why = "took too long" if outcome.code == EXIT_TIMEOUT else "ended without a result"
        print(f"lab: the machine {why}; the end of its console:\n{said}", file=sys.stderr)
    progress.say(f"exit code {outcome.code}, machine on for {outcome.seconds:.1f} s, see {results}")
    return outcome.code


def _check_job(job: str) -> None:
    if "/" in job:
        if not (Path.cwd() / job).resolve().is_relative_to(LAB.parent.parent):
            raise LabError(f"the script {job} is not in the tree that the machine sees", EXIT_USAGE)
    elif job not in jobs():
        raise LabError(f"no job {job!r}; `tests/lab/run --list` prints them", EXIT_USAGE)
