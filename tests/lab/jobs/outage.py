# SPDX-License-Identifier: MIT
"""Jobs in which a VM loses a VF of an i40e or ice card, migrates, and gets another one.

The VFs that QEMU opens are the igb card's, whose interface is down, so that igb takes no interrupt of its mailbox and
says nothing. The card of memory (modules/fakei40e, fakeice) has igb's PCI address, and its VFs 0 and 1 are virtfn0 and
virtfn1. We speak for the guest's driver, which the guest does not have.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from vftlab.devices import PCI, PF, functions
from vftlab.job import Job, JobError, boottime_ns, modprobe
from vftlab.vm import vm, vm_truth

from jobs.igb import moved, plug_device, unplug_device
from jobs.mailbox import ip, messages, netdev, wait_for_probes

STEP_S = 0.2
"""Between two messages: longer than all that vftrace may take for the same moment."""
START = ("version", "resources", "vectors", "address", "rings", "up")
END = ("down", "address gone", "reset")


def _card(driver: str) -> Path:
    """Load the card of memory in igb's place; its directory in debugfs."""
    modprobe(driver)
    fake = f"fake{driver}"
    # An earlier job may have loaded it with the host bridge's address.
    subprocess.run(["modprobe", "-r", fake], check=False)
    done = subprocess.run(
        ["modprobe", fake, f"card={PF}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise JobError(f"modprobe {fake}: {done.stderr.strip()}")
    wait_for_probes(f"{driver}_reset_vf")
    return Path("/sys/kernel/debug") / fake


def _outage(job: Job, driver: str) -> None:
    first, second = functions(2)
    ip("link", "set", netdev(PCI / "devices" / PF), "down")
    directory = _card(driver)
    log: list[dict[str, object]] = []

    def command(what: str, vf: int, text: str) -> None:
        time.sleep(STEP_S)
        at_ns = boottime_ns()
        (directory / "control").write_text(text)
        *lines, _ = (directory / "answer").read_text().strip().splitlines()
        answers = [[int(word) for word in line.split()[:4]] for line in lines]
        log.append({"at_ns": at_ns, "what": what, "vf": vf, "answers": answers})

    def say(vf: int, steps: tuple[str, ...]) -> None:
        known = {what: (opcode, content) for what, opcode, content in messages(driver, vf)}
        for what in steps:
            opcode, content = known[what]
            command(what, vf, f"send {vf} {opcode} {content.hex()}".rstrip())

    try:
        with (
            vm("source", job.results, devices=[f"vfio-pci,host={first},id=vf0"]) as source,
            vm("destination", job.results, incoming=True) as destination,
        ):
            say(0, START)
            time.sleep(1)
            say(0, END)
            acts = [{"vm": "source", "address": first, **unplug_device(source, "vf0")}]
            command("flr", 0, "flr 0")
            migration = moved(source, destination)
            back = plug_device(destination, "vf0", second)
            acts.append({"vm": "destination", "address": second, **back})
            say(1, START)
            time.sleep(1)
            job.write_truth(
                {
                    "vms": [vm_truth(source, "source"), vm_truth(destination, "destination")],
                    "migration": migration,
                    "pf": PF,
                    "driver": driver,
                    "acts": acts,
                    "log": log,
                }
            )
    finally:
        # The next job's card has the host bridge's address again.
        subprocess.run(["modprobe", "-r", f"fake{driver}"], check=False)


def outage_i40e(job: Job) -> None:
    """A VF of i40e is unplugged, the VM migrates, another one is plugged: mailbox, VFIO and KVM in one recording."""
    _outage(job, "i40e")


def outage_ice(job: Job) -> None:
    """The same with ice."""
    _outage(job, "ice")


JOBS: dict[str, Callable[[Job], None]] = {"outage-i40e": outage_i40e, "outage-ice": outage_ice}
