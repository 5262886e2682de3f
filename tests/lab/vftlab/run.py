# SPDX-License-Identifier: MIT
"""Run jobs in the emulated machine: `tests/lab/run KERNEL JOB [JOB ...]`."""

from __future__ import annotations

import argparse
import json
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
from dataclasses import dataclass, replace
from pathlib import Path

from vftlab.build import DEFAULT_USERSPACE, KERNELS, ensure
from vftlab.common import LAB, TREE, LabError, Progress
from vftlab.images import USERSPACES
from vftlab.installed import install
from vftlab.machine import Machine, die_with_parent

EXIT_TIMEOUT = 124
EXIT_DIED = 125
TIMEOUT_S = 600.0
# Handed to jobs as they are, so that one job can be run in several ways.
PASSED_ON = re.compile(r"VFTRACE(_.*)?|LAB_.*")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    `code` is 0 or the worst of the jobs' exit codes, `codes` has each (77: not on this kernel);
    `seconds` is from power on to power off; `results` has a directory for each job.
    """

    code: int
    seconds: float
    results: Path
    codes: dict[str, int]


def jobs() -> dict[str, str]:
    """The jobs there are and what each is for: first lines of the functions in tests/lab/jobs."""
    sys.path.insert(0, str(LAB))
    from jobs import JOBS

    return {name: (job.__doc__ or "").strip().splitlines()[0] for name, job in JOBS.items()}


def _prepare(results: Path, extra: dict[str, str]) -> None:
    shutil.rmtree(results, ignore_errors=True)
    (results / ".lab").mkdir(parents=True)
    settings = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    settings.pop("VFTRACE_LAB_CACHE", None)
    settings |= extra
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
    (results / ".lab/env").write_text("".join(lines))


def _ended(machine: Machine, begun: float) -> Outcome:
    rc = machine.results / ".lab/rc"
    text = rc.read_text().strip() if rc.exists() else ""
    seconds = time.monotonic() - begun
    codes = machine.results / ".lab/codes"
    return Outcome(
        int(text) if text.isdigit() else EXIT_DIED,
        seconds,
        machine.results,
        json.loads(codes.read_text()) if codes.exists() else {},
    )


def run_jobs(
    kernel: str,
    names: Sequence[str],
    results: Path,
    *,
    script: str | None = None,
    timeout_s: float = TIMEOUT_S,
    environment: dict[str, str] | None = None,
    progress: Progress | None = None,
    userspace: str = DEFAULT_USERSPACE,
    package: Path | None = None,
) -> Outcome:
    """Boot `kernel`, run the jobs one after the other, copy their output to standard output.

    With `script`, a path in the tree, that is run instead, and `names` are its arguments.
    With `package`, vftrace's Debian package, systemd boots with it installed, and `vftrace.service`
    traces the jobs. `results` is emptied first. The exit code is 124 when it took longer than `timeout_s`, 125 when
    the machine ended without the jobs. Raises LabError if images are missing and cannot be built.
    An interrupt ends the machine.
    """
    if package is not None:
        userspace = "systemd"
    built = ensure([kernel], progress or Progress(), userspace)[kernel]
    what = {"LAB_JOBS": " ".join(names)}
    if script is not None:
        what = {"LAB_SCRIPT": script, "LAB_ARGUMENTS": shlex.join(names)}
    if package is not None:
        what["LAB_SERVICE"] = "1"
    _prepare(results, what | (environment or {}))
    machine = Machine(built, results)
    if package is not None:
        install(package, built.inside, results / ".lab" / "installed.tar")
        machine = replace(machine, programs="programs-service")
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
                while chunk := os.read(process.stdout.fileno(), 65536):
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
        return replace(outcome, code=EXIT_TIMEOUT)
    return outcome


def run_shell(kernel: str, results: Path, progress: Progress) -> Outcome:
    """Boot `kernel` and give the terminal to a shell in it, until the shell ends."""
    built = ensure([kernel], progress)[kernel]
    size = shutil.get_terminal_size()
    rows, columns = str(size.lines), str(size.columns)
    _prepare(results, {"LAB_SHELL": "1", "LAB_ROWS": rows, "LAB_COLUMNS": columns})
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
        prog="tests/lab/run",
        description="Run jobs on a stock kernel in an emulated machine, all in one boot.",
        epilog="VFTRACE=1 in the environment: vftrace records them all, VFTRACE=each: each apart."
        " Exit code: 0, the worst of the jobs' (77: not on this kernel), 124 timeout, 125 the"
        " machine died, 2 usage.",
    )
    parser.add_argument("kernel", nargs="?", metavar="KERNEL", help=f"of {', '.join(KERNELS)}")
    parser.add_argument(
        "jobs", nargs="*", metavar="JOB", help="see --list, or `all`; or a script's arguments"
    )
    parser.add_argument("--list", action="store_true", help="print the jobs")
    parser.add_argument("--shell", action="store_true", help="a shell instead of jobs")
    parser.add_argument(
        "--script", metavar="FILE", help="an executable in the tree instead of jobs"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="120, and 60 more for each job")
    parser.add_argument(
        "--userspace",
        choices=USERSPACES,
        default=DEFAULT_USERSPACE,
        help="the Debian inside, and with it the BCC (default: %(default)s)",
    )
    parser.add_argument(
        "--service",
        type=Path,
        metavar="DEB",
        help="boot systemd with this package of vftrace, whose service traces the jobs",
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="emptied first")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    known = jobs()
    if options.list:
        for name, text in known.items():
            print(f"{name:24} {text}")
        return 0
    names = list(known) if options.jobs == ["all"] else options.jobs
    if options.kernel is None or not (names or options.shell or options.script):
        parser.error("KERNEL and a JOB, --shell or --script are needed")
    if not options.script and (unknown := [name for name in names if name not in known]):
        parser.error(f"no job {unknown[0]!r}; --list prints them")
    progress = Progress()
    label = "shell" if options.shell else names[0] if len(names) == 1 else "jobs"
    results = (options.results or LAB / "results" / f"{options.kernel}-{label}").resolve()
    try:
        if options.shell:
            outcome = run_shell(options.kernel, results, progress)
        else:
            outcome = run_jobs(
                options.kernel,
                names,
                results,
                script=_in_tree(options.script) if options.script else None,
                timeout_s=options.timeout or 120 + 60 * len(names),
                progress=progress,
                userspace=options.userspace,
                package=options.service,
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
    for name, code in outcome.codes.items():
        progress.say(f"{name}: " + {0: "ok", 77: "not on this kernel"}.get(code, "FAILED"))
    progress.say(f"exit code {outcome.code}, machine on for {outcome.seconds:.1f} s, see {results}")
    return outcome.code


def _in_tree(script: str) -> str:
    path = Path(script).resolve()
    if not path.is_relative_to(TREE) or not os.access(path, os.X_OK):
        raise LabError(
            f"{script} is not an executable in the tree, which is all that is seen inside"
        )
    return str(path.relative_to(TREE))
