# SPDX-License-Identifier: MIT
"""`python -m vftrace.demo`: play one scenario by hand, without any tracer."""

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from vftrace.demo.scenarios import SCENARIOS, run_scenario
from vftrace.errors import MachineError, VftraceError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vftrace.demo", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("name", nargs="?", help="scenario to play")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write QEMU's own account (JSON) here, not to stdout",
    )
    parser.add_argument(
        "--workdir", type=Path, help="where its files live while it runs (default: a temporary one)"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:26} {scenario.title}")
        return 0
    if options.name is None:
        parser.error("give a scenario's name, or --list")
    # SIGTERM works like Ctrl-C: all VMs are ended first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1)
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            workdir = options.workdir or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="vftrace-demo-"))
            )
            truth = run_scenario(options.name, workdir, _progress)
        text = truth.to_json()
        if options.out:
            options.out.write_text(text + "\n")
        else:
            print(text)
    except VftraceError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, MachineError) and error.fix is not None:
            print(f"  to fix: {error.fix}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
