# SPDX-License-Identifier: MIT
"""Jobs with tinyvmm, a VMM of our own: an order QEMU does not take, and requests it does not make."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from vftlab.devices import PF, Steer, bind, functions, need_iommufd
from vftlab.function import VfMailbox
from vftlab.job import Job, JobError, boottime_ns, modprobe, say
from vftlab.tinyvmm import Answer, TinyError, TinyVmm, hand_over, join, tiny_vmm
from vftlab.vm import MIB, MIGRATION_PORT

from jobs.steer import best_kind

# Several passes of the guest over its pages, under emulation.
ROUND_S = 0.3
WHOLE = f"0 {16 * MIB}"
RUNNING, STOP, RUNNING_P2P = 2, 1, 5


# drivers/net/ethernet/intel/igbvf/mbx.h: the messages of igbvf when its interface is brought up, without its MAC.
RESET = (1, 0, 0)
BROUGHT_UP = (RESET, (5, 1518), (3 | 1 << 16, 0x123))
# A VF counts as up when it has sent no message for half a second (vftrace/model/vf.py).
SETTLED_S = 1.0


@contextlib.contextmanager
def _two() -> Iterator[tuple[TinyVmm, TinyVmm]]:
    modprobe("kvm-amd")
    try:
        with tiny_vmm() as source, tiny_vmm() as destination:
            yield source, destination
    except TinyError as failure:
        raise JobError(str(failure)) from None


def _round(source: TinyVmm, pages: int) -> None:
    source(f"pages {pages}")
    time.sleep(ROUND_S)
    told = source("round")
    say(f"round: {told['new_pages']} new pages, {told['sent_bytes']} bytes sent")


def _truth(machine: TinyVmm, role: str) -> dict[str, object]:
    return {"pid": machine.pid, "role": role, "log": machine.log}


def _late_unplug(job: Job, opens: str) -> None:
    """A VF is closed while the VM still runs and memory is being sent; the destination opens another.

    `opens` is the act that opens one.
    """
    first, second = functions(2)
    with _two() as (source, destination):
        source(f"{opens} {first}")
        source("run")
        join(source, destination, MIGRATION_PORT)
        source("log on")
        source("round")
        for pages in (64, 10, 150, 30):
            _round(source, pages)
        source("close")
        say(f"source closed {first}")
        _round(source, 20)
        hand_over(source, destination)
        destination(f"{opens} {second}")
        say(f"destination opened {second}")
        time.sleep(ROUND_S)
        job.write_truth(
            {
                "pf": PF,
                "addresses": [first, second],
                "tiny": [_truth(source, "source"), _truth(destination, "destination")],
            }
        )


def late_unplug(job: Job) -> None:
    """A VF is closed while the VM still runs and memory is being sent; the destination opens another."""
    _late_unplug(job, "open")


def late_unplug_iommufd(job: Job) -> None:
    """The same with VFs that are bound to an iommufd by files of their own."""
    need_iommufd()
    _late_unplug(job, "cdev")


def mailbox_held(job: Job) -> None:
    """A VM keeps its VF all the time: its driver rests over the blackout, as the patches of 2015 had it."""
    first, second = functions(2)
    acts: list[dict[str, object]] = []

    def tell(machine: TinyVmm, vf: int, what: str, *messages: tuple[int, ...]) -> None:
        acts.append({"what": what, "vf": vf, "at_ns": boottime_ns(), "messages": messages})
        for words in messages:
            VfMailbox(machine.peek, machine.poke).ask(*words)
        acts[-1]["done_at_ns"] = boottime_ns()
        say(f"VF {vf}: {what}")

    with _two() as (source, destination):
        source(f"open {first}")
        destination(f"open {second}")
        source("run")
        tell(source, 0, "up", *BROUGHT_UP)
        time.sleep(SETTLED_S)
        join(source, destination, MIGRATION_PORT)
        source("log on")
        source("round")
        for pages in (150, 10):
            _round(source, pages)
        tell(source, 0, "rest", RESET)
        _round(source, 20)
        hand_over(source, destination)
        tell(destination, 1, "up", *BROUGHT_UP)
        time.sleep(SETTLED_S)
        job.write_truth(
            {
                "pf": PF,
                "driver": "igb",
                "acts": acts,
                "tiny": [_truth(source, "source"), _truth(destination, "destination")],
            }
        )


def _expect(answer: Answer, **wanted: object) -> None:
    seen = {key: answer[key] for key in wanted}
    say(f"{answer['what']} {answer['argument']}: {seen}")
    if seen != wanted:
        raise JobError(f"{answer['what']} {answer['argument']} gave {seen}, not {wanted}")


def _dirty_pages_and_states(machine: TinyVmm) -> None:
    device = Steer.create(10, best_kind())
    machine(f"open {device.name}")
    machine("run")
    _expect(machine("track on"), ret=0)
    device.command(f"touch {8 * MIB} 7")
    # Whole mappings only (vfio_iova_dirty_bitmap), and there is one.
    _expect(machine(f"dirty {8 * MIB} {MIB}"), ret=-22)
    _expect(machine(f"dirty {WHOLE}"), ret=0, dirty_pages=7)
    device.command(f"touch {12 * MIB} 70")
    _expect(machine(f"unmap {WHOLE} dirty"), ret=0, dirty_pages=70)
    _expect(machine(f"map {WHOLE}"), ret=0)
    _expect(machine("track off"), ret=0)
    _expect(machine(f"dirty {WHOLE}"), ret=-22)
    if machine("dma on")["ret"] == 0:
        device.command(f"touch {4 * MIB} 33")
        _expect(machine(f"report {WHOLE}"), ret=0, dirty_pages=33)
        _expect(machine("dma off"), ret=0)
    else:
        say("this kernel's devices cannot log DMA themselves")
        machine(f"report {WHOLE}")
    device.command("fail RUNNING RUNNING_P2P 5 1 error")
    _expect(machine(f"state {RUNNING_P2P}"), ret=-5)
    if device.state() != "ERROR":
        raise JobError(f"the device is in {device.state()}")
    machine(f"state {RUNNING}")
    _expect(machine("reset"), ret=0)
    _expect(machine(f"state {RUNNING_P2P}"), ret=0)
    _expect(machine(f"state {RUNNING}"), ret=0)
    # A mediated device is on no bus that could be reset (-ENOTTY).
    _expect(machine("hot-reset"), ret=-25)
    machine("close")


def requests(job: Job) -> None:
    """What QEMU asks of VFIO never or hardly ever, one request after the other, granted and refused."""
    modprobe("kvm-amd", "vfio-pci", "igb")
    try:
        with tiny_vmm() as machine:
            _dirty_pages_and_states(machine)
            with bind(PF, "vfio-pci"):
                machine(f"open {PF}")
                # The card alone is behind its root port.
                _expect(machine("hot-reset"), ret=0, devices=1)
                _expect(machine("reset"), ret=0)
                machine("close")
            machine("stop")
            job.write_truth({"pf": PF, "tiny": [_truth(machine, "none")]})
    except TinyError as failure:
        raise JobError(str(failure)) from None


JOBS: dict[str, Callable[[Job], None]] = {
    "late-unplug": late_unplug,
    "late-unplug-iommufd": late_unplug_iommufd,
    "mailbox-held": mailbox_held,
    "requests": requests,
}
