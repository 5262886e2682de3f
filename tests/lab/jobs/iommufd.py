# SPDX-License-Identifier: MIT
"""A job with tinyvmm and an iommufd: requests that QEMU makes never or hardly ever, granted and refused."""

from __future__ import annotations

from collections.abc import Callable

from vftlab.devices import PF, Phys, Steer, functions, need_iommufd
from vftlab.job import Job, JobError, modprobe, say
from vftlab.tinyvmm import Answer, TinyError, TinyVmm, tiny_vmm
from vftlab.vm import MIB

from jobs.steer import best_kind

MEMORY = 16 * MIB
WHOLE = f"0 {MEMORY}"
RUNNING, RUNNING_P2P = 2, 5
ENOENT, EEXIST, EINVAL, ENOTTY, EOPNOTSUPP = -2, -17, -22, -25, -95


def expect(answer: Answer, **wanted: object) -> None:
    """Say what came of an act; JobError unless it is what is wanted."""
    seen = {key: answer[key] for key in wanted}
    say(f"{answer['what']} {answer.get('argument', answer.get('device', ''))}: {seen}")
    if seen != wanted:
        raise JobError(f"{answer['what']} gave {seen}, not {wanted}")


def expect_no_pages(answer: Answer) -> None:
    """A bitmap without tracking: 6.12 refuses it, 7.3 answers that nothing was written."""
    if answer["ret"] != EINVAL:
        expect(answer, ret=0, dirty_pages=0)


def _expect_cdev(machine: TinyVmm, name: str, *, tracks: bool) -> None:
    """Open a device; its IOMMU must say whether it can track (IOMMU_HW_CAP_DIRTY_TRACKING; 7.x has more bits)."""
    answer = machine(f"cdev {name}")
    expect(answer, hwpt_ret=0)
    if bool(answer["capabilities"] & 1) != tracks:
        raise JobError(f"{name} has capabilities {answer['capabilities']:#x}")


def _maps(machine: TinyVmm) -> bool:
    """More mappings of the same memory; whether this kernel maps a file too, as it does since 6.13."""
    expect(machine(f"iomap {MEMORY} {MIB}"), ret=0)
    expect(machine(f"iomap {MEMORY} {MIB}"), ret=EEXIST)
    maps_files = bool(machine(f"iomap {2 * MEMORY} {MIB} file")["ret"] == 0)
    say(f"a file {'is mapped' if maps_files else 'cannot be mapped on this kernel'}")
    if maps_files:
        expect(machine(f"iounmap {2 * MEMORY} {MIB}"), ret=0)
    expect(machine(f"iocopy {MEMORY} {MIB} {3 * MEMORY}"), ret=0)
    expect(machine(f"iounmap {3 * MEMORY} {MIB}"), ret=0)
    expect(machine(f"iounmap {MEMORY} {MIB}"), ret=0)
    expect(machine(f"iounmap {MEMORY} {MIB}"), ret=ENOENT)
    return maps_files


def _page_table(machine: TinyVmm) -> bool:
    """Two devices behind an IOMMU that tracks, on one page table; what `_maps` found."""
    first, second = Phys.take(0), Phys.take(1)
    _expect_cdev(machine, first.name, tracks=True)
    expect(machine("bind"), ret=EINVAL)
    expect(machine(f"cdev {second.name}"), hwpt_ret=0)
    expect(machine("bind"), ret=EINVAL)
    maps_files = _maps(machine)
    expect_no_pages(machine(f"written {WHOLE}"))
    expect(machine("hwpt on"), ret=0)
    first.command(f"touch {8 * MIB} 7")
    second.command(f"touch {12 * MIB} 70")
    expect(machine(f"written {WHOLE} 4096 keep"), ret=0, dirty_pages=77)
    expect(machine(f"written {8 * MIB} {MIB}"), ret=0, dirty_pages=7)
    expect(machine(f"written {WHOLE}"), ret=0, dirty_pages=70)
    expect(machine(f"written {WHOLE}"), ret=0, dirty_pages=0)
    # Neither the begin nor the size is a multiple of the IOMMU's pages.
    expect(machine(f"written 100 {MIB}"), ret=EINVAL)
    expect(machine("written 4096 5000"), ret=EINVAL)
    # Larger pages: the 33 small ones from the middle of one on lie in three of 64 KiB, and in one of 2 MiB.
    second.command(f"touch {4 * MIB + 32 * 1024} 33")
    expect(machine(f"written {WHOLE} 65536 keep"), ret=0, dirty_pages=3)
    expect(machine(f"written {WHOLE} {2 * MIB}"), ret=0, dirty_pages=1)
    expect(machine(f"state {RUNNING_P2P}"), ret=0)
    expect(machine(f"state {RUNNING}"), ret=0)
    expect(machine("reset"), ret=0)
    # These devices have no log of their own, and are on no bus that could be reset.
    expect(machine("dma on"), ret=ENOTTY)
    expect(machine("hot-reset"), ret=ENOTTY)
    machine("close")
    first.command(f"touch {8 * MIB} 5")
    expect(machine(f"written {WHOLE}"), ret=0, dirty_pages=5)
    expect(machine("hwpt off"), ret=0)
    expect_no_pages(machine(f"written {WHOLE}"))
    machine("done")
    return maps_files


def _no_tracking(machine: TinyVmm, function: str) -> None:
    """A card's function, whose IOMMU cannot track, and a mediated device, which has none."""
    _expect_cdev(machine, function, tracks=False)
    expect(machine("hwpt on"), ret=EOPNOTSUPP)
    expect(machine(f"written {WHOLE}"), ret=EOPNOTSUPP)
    expect(machine("reset"), ret=0)
    machine("done")
    device = Steer.create(10, best_kind())
    expect(machine(f"cdev {device.name}"), hwpt_ret=ENOENT)
    expect(machine("hwpt on"), ret=ENOENT)
    expect(machine("dma on"), ret=0)
    device.command(f"touch {4 * MIB} 33")
    expect(machine(f"report {WHOLE}"), ret=0, dirty_pages=33)
    expect(machine("dma off"), ret=0)
    machine("done")


def iommufd_requests(job: Job) -> None:
    """An iommufd's requests one after the other: binding, mapping, page tables and what they report."""
    need_iommufd()
    modprobe("igb")
    (function,) = functions(1)
    devices = [Phys.take(number) for number in (0, 1)]
    try:
        with tiny_vmm() as machine:
            machine("run")
            maps_files = _page_table(machine)
            _no_tracking(machine, function)
            machine("stop")
            job.write_truth(
                {
                    "pf": PF,
                    "maps_files": maps_files,
                    "tiny": [{"pid": machine.pid, "role": "none", "log": machine.log}],
                    "devices": [{"uuid": device.name, "log": device.log()} for device in devices],
                }
            )
    except TinyError as failure:
        raise JobError(str(failure)) from None


JOBS: dict[str, Callable[[Job], None]] = {"iommufd-requests": iommufd_requests}
