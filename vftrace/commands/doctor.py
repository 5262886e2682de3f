# SPDX-License-Identifier: MIT
"""`vftrace doctor`: prints how each probe is attached, or why not and the fix."""

import argparse
from typing import TYPE_CHECKING

from vftrace.errors import MachineError

if TYPE_CHECKING:
    from vftrace.probes.checks import Finding

HELP = "check what this machine can trace, and print fixes"
EXAMPLES = (
    ("vftrace doctor", "check this machine; root sees more"),
    ("vftrace doctor --way kprobe", "check one attach method"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--way`."""
    parser.add_argument(
        "--way",
        choices=("fentry", "kprobe", "tracepoint"),
        help="try only this attach method (default: the cheapest that this kernel accepts)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 if vftrace can work here, 3 if not."""
    from vftrace.probes.checks import findings

    found = list(findings())
    found += _probe_findings(args.way) if all(f.state != "bad" for f in found) else []
    width = max(len(finding.name) for finding in found)
    for finding in found:
        print(f"{finding.state:4}  {finding.name:{width}}  {finding.text}")
        if finding.fix:
            print(f"{'':{width + 8}}to fix: {finding.fix}")
    bad = [finding for finding in found if finding.state == "bad"]
    if bad:
        raise MachineError(
            f"vftrace cannot trace here: {', '.join(f.name for f in bad)}", fix=bad[0].fix
        )
    print("vftrace can trace migrations on this machine.")
    return 0


def _probe_findings(way: str | None) -> "list[Finding]":
    from vftrace.probes.checks import Finding, programs, proved
    from vftrace.probes.loader import Probes
    from vftrace.probes.registry import BY_NAME, MAILBOX, NO_MIGRATION

    try:
        with Probes(lambda _: None, way) as probes:
            found = []
            for status in probes.status:
                name, probe = f"probe {status.name}", BY_NAME[status.name]
                if status.reason == NO_MIGRATION:
                    found.append(Finding(name, "ok", f"attached while a VM migrates: {probe.what}"))
                elif status.method is None:
                    bad = probe.needed and not status.waits
                    state = "bad" if bad else "note" if status.waits else "warn"
                    refused = probes.mailbox.refused if status.name == MAILBOX.name else None
                    if refused is not None:
                        then = f" (and mailboxes cannot be traced here: {refused})"
                    else:
                        then = " (vftrace attaches once it is)" if status.waits else ""
                    found.append(Finding(name, state, f"not attached: {status.reason}{then}"))
                else:
                    tried = f" ({status.reason})" if status.reason else ""
                    found.append(Finding(name, "ok", f"{status.method}: {probe.what}{tried}"))
            return [*found, proved(probes.unproved), programs(probes.cached)]
    except MachineError as error:
        return [Finding("probes", "bad", str(error))]
