# SPDX-License-Identifier: MIT
"""Runs the lab's jobs on stock kernels, traced, and compares vftrace's reports with the jobs' truths.

All jobs of one kernel run in one boot, with one tracer. LAB_FULL=1 runs every job on every kernel;
otherwise 6.12 runs all but the LONG ones and the others those in ESSENTIAL. LAB_KERNELS="6.1 7.x"
picks kernels.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from jobs import JOBS
from vftlab import golden
from vftlab.build import KERNELS
from vftlab.common import LAB
from vftlab.run import Outcome, run_jobs

pytestmark = pytest.mark.lab

EXIT_CANNOT_HERE = 77
ESSENTIAL = (
    "hello",
    "vfio-precopy-p2p",
    "steer-downtime",
    "steer-error",
    "steer-dma",
    "mailbox-igb",
    "mailbox-ixgbe",
    "mailbox-i40e",
    "mailbox-ice",
    "mailbox-assisted",
    "mailbox-held",
    "unplug",
    "late-unplug",
)
# Where there is an iommufd, too.
IOMMUFD = ("steer-dma-phys", "unplug-iommufd", "late-unplug-iommufd", "iommufd-requests")
# Minutes of compiling under emulation, a flood, or no other tracer beside it: LAB_FULL=1 runs these too.
LONG = {"late", "doctor", "mailbox-flood"}
# LAB_FULL=1: with no other tracer beside it; in a boot where vftrace starts before the modules it traces.
ALONE, FOLLOW = ("late-kvm", "missed-runs", "killed", "clock-set", "ways"), "follow"
# LAB_FULL=1: each with a recording of its own, as their cards have the same address, and a card has one driver.
OUTAGES = ("outage-i40e", "outage-ice")
# What the messages of the helped migration are called.
OPTIONS = "--profile /src/docs/profiles/assisted-ixgbe.toml"
# VFIO got precopy, and mtty its migration, in 6.2 and later.
# vftlab/iommufd.py builds iommufd, which came with 6.2.
NOT_ON_6_1 = {name for name in JOBS if name.startswith("vfio-")} | {
    *("steer-refuse", "steer-dma-iommufd", *IOMMUFD)
}


def _jobs(kernel: str) -> list[str]:
    every = [job for job in JOBS if job not in (FOLLOW, *ALONE, *OUTAGES)]
    if _full():
        return every
    if kernel == "6.12":
        return [job for job in every if job not in LONG]
    return [*ESSENTIAL, *(IOMMUFD if kernel != "6.1" else ())]


def _full() -> bool:
    return os.environ.get("LAB_FULL") == "1"


def _kernels() -> list[str]:
    return os.environ.get("LAB_KERNELS", " ".join(KERNELS)).split()


_outcomes: dict[str, Outcome] = {}


def outcome(kernel: str, *, again: bool = False) -> Outcome:
    """One boot of the kernel with all its jobs, when the first test asks for it; another one with `again`."""
    if again or kernel not in _outcomes:
        _outcomes[kernel] = _run(kernel)
    return _outcomes[kernel]


def _run(kernel: str) -> Outcome:
    """A boot in which every job did what it is there for.

    The machine is emulated on processors that others use: one that panics before its first job (a
    timer that came late), or a job that waits too long, shows nothing and gets another try, which is
    told.
    """
    done = _boot(kernel)
    for _ in range(2):
        failed = [job for job in _jobs(kernel) if not _ended_well(done, kernel, job)]
        if not failed:
            break
        print(f"lab: {kernel}: {' '.join(failed)} failed, another boot")
        done = _boot(kernel)
    return done


def _boot(kernel: str) -> Outcome:
    return run_jobs(
        kernel,
        _jobs(kernel),
        LAB / "results" / f"{kernel}-test",
        timeout_s=240 + 60 * len(_jobs(kernel)),
        environment={"VFTRACE": "1", "VFTRACE_OPTIONS": OPTIONS},
    )


def _ended_well(done: Outcome, kernel: str, job: str) -> bool:
    cannot = kernel == "6.1" and job in NOT_ON_6_1
    return done.codes.get(job) == (EXIT_CANNOT_HERE if cannot else 0)


def truth(kernel: str, job: str) -> dict[str, Any]:
    """A job's truth.json; the test is skipped where the kernel cannot run the job."""
    done = outcome(kernel)
    if done.codes.get(job) == EXIT_CANNOT_HERE:
        pytest.skip("not on this kernel")
    found: dict[str, Any] = json.loads((done.results / job / "truth.json").read_text())
    return found


@pytest.mark.parametrize(
    ("kernel", "job"), [(kernel, job) for kernel in _kernels() for job in _jobs(kernel)]
)
def test_job(kernel: str, job: str) -> None:
    done = outcome(kernel)
    output = (done.results / "output").read_text(errors="replace")
    assert job in done.codes, f"the machine ended with {done.code} before this job:\n{output}"
    assert _ended_well(done, kernel, job), output


def is_rerun(request: pytest.FixtureRequest) -> bool:
    """Whether the test has failed before: a clock that stood still in between spoils a figure, not twice."""
    return bool(getattr(request.node, "execution_count", 1) > 1)


@pytest.mark.flaky(reruns=1)
@pytest.mark.parametrize("kernel", _kernels())
def test_vftrace_says_what_was_done(
    kernel: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What was recorded just now passes what the golden recordings pass: states, bytes, times, causes."""
    golden.check_lab(outcome(kernel, again=is_rerun(request)).results, kernel, tmp_path)


@pytest.mark.flaky(reruns=1)
@pytest.mark.parametrize("kernel", _kernels())
def test_vftrace_heard_what_was_said(
    kernel: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The mailbox jobs just recorded pass what their golden recordings pass, message by message."""
    results = outcome(kernel, again=is_rerun(request)).results
    golden.keep("mailbox/keep.py", str(results), kernel, str(tmp_path))
    golden.check("test_mailbox_recordings.py", "VFTRACE_LAB_MAILBOX", tmp_path)


@pytest.mark.parametrize("kernel", _kernels())
def test_qemu_and_the_driver_agree_on_bytes(kernel: str) -> None:
    found = truth(kernel, "steer-downtime")
    saved, loaded = (
        sum(
            entry["bytes"]
            for device in found["devices"]
            if device["role"] == role
            for entry in device["log"]
            if entry["what"] == what
        )
        for role, what in (("source", "saved"), ("destination", "loaded"))
    )
    assert saved == loaded == sum(found["set_bytes"]) == found["migration"]["vfio_bytes"]


def blackout_ns(found: dict[str, Any], number: int) -> int:
    """From the source device's first arc towards a stop to its successor's RUNNING."""
    source, target = (
        [device for device in found["devices"] if device["role"] == role][number]["log"]
        for role in ("source", "destination")
    )
    migrated_at = found["migration"]["asked_at_ns"]
    left = next(
        entry["at_ns"]
        for entry in source
        if entry["at_ns"] > migrated_at
        and entry["what"] == "arc"
        and entry["to"] in ("PRE_COPY_P2P", "RUNNING_P2P", "STOP")
    )
    again = [
        entry["at_ns"] for entry in target if entry["what"] == "state" and entry["to"] == "RUNNING"
    ]
    return int(again[-1]) - int(left)


@pytest.mark.parametrize("kernel", _kernels())
def test_a_device_is_away_for_at_least_what_it_was_told_to_take(kernel: str) -> None:
    found = truth(kernel, "steer-downtime")
    names = [
        [device["uuid"] for device in found["devices"] if device["role"] == role]
        for role in ("source", "destination")
    ]
    for number, pair in enumerate(zip(*names, strict=True)):
        told_ns = sum(1000 * entry["us"] for entry in found["set_times"] if entry["uuid"] in pair)
        assert blackout_ns(found, number) >= told_ns


@pytest.mark.parametrize("kernel", _kernels())
def test_a_broken_device_is_in_error_until_it_is_reset(kernel: str) -> None:
    found = truth(kernel, "steer-error")
    (source,) = (device["log"] for device in found["devices"] if device["role"] == "source")
    kinds = [entry["what"] for entry in source]
    broken = next(i for i, entry in enumerate(source) if entry.get("to") == "ERROR")
    assert source[broken]["ret"] == -5
    assert "reset" in kinds[broken:]
    between = source[broken + 1 : broken + kinds[broken:].index("reset")]
    assert not [entry for entry in between if entry["what"] == "state"]


@pytest.mark.parametrize("kernel", _kernels())
def test_the_unplugged_vf_was_gone_before_the_migration(kernel: str) -> None:
    found = truth(kernel, "unplug")
    away, back = found["acts"]
    statuses = {entry["status"]: entry["at_ns"] for entry in found["migration"]["statuses"]}
    assert away["done_at_ns"] < found["migration"]["asked_at_ns"]
    assert statuses["completed"] < back["asked_at_ns"]
    assert away["address"] != back["address"]


@pytest.mark.parametrize("kernel", _kernels())
def test_devices_log_dma_themselves_on_every_kernel(kernel: str) -> None:
    """Debian's own kernels after 6.1 have no iommufd, and with it no bitmap to report into; the lab's modules have."""
    assert truth(kernel, "steer-dma")["tracking"] == "device"


def test_a_file_was_mapped_into_an_iommufd() -> None:
    """Linux 6.13 and later can (IOMMU_IOAS_MAP_FILE). QEMU 10.0 never requests it, and tinyvmm does."""
    for kernel in {"6.12", "7.x"} & set(_kernels()):
        assert truth(kernel, "iommufd-requests")["maps_files"] == (kernel == "7.x")


def test_an_iommu_that_tracks_is_asked_by_iommufd() -> None:
    for kernel in {"6.12", "7.x"} & set(_kernels()):
        found = truth(kernel, "steer-dma-phys")
        assert (found["tracking"], found["reported"]) == ("iommu", found["touched"])


@pytest.mark.parametrize("kernel", _kernels())
def test_the_other_vmms_migration_was_in_its_order(kernel: str) -> None:
    source, destination = (vmm["log"] for vmm in truth(kernel, "late-unplug")["tiny"])
    order = [
        act["what"] for act in source if act["what"] in ("open", "log", "close", "stop", "save")
    ]
    assert order == ["open", "log", "close", "stop", "save"]
    assert [act["what"] for act in destination][-3:] == ["load", "run", "open"]
    (closed_at,) = (act["at_ns"] for act in source if act["what"] == "close")
    assert len([a for a in source if a["what"] == "round" and a["at_ns"] < closed_at]) == 5


def _full_only(why: str) -> None:
    if not _full():
        pytest.skip(f"{why}: LAB_FULL=1 runs it")


@pytest.mark.parametrize("kernel", _kernels())
def test_modules_come_after_vftrace(kernel: str, tmp_path: Path) -> None:
    """What is recorded after each module's probes have come is as it is elsewhere."""
    _full_only("a boot of its own")
    names = [FOLLOW, "late-unplug", "requests", "unplug"]
    results = LAB / "results" / f"{kernel}-{FOLLOW}-test"
    environment = {"VFTRACE": "1", "LAB_LATE_MODULES": "1"}
    done = run_jobs(kernel, names, results, environment=environment)
    assert done.codes == dict.fromkeys(names, 0)
    golden.check_lab(results, kernel, tmp_path)


@pytest.mark.parametrize("kernel", _kernels())
def test_jobs_with_a_tracer_of_their_own(kernel: str) -> None:
    _full_only("a boot with tracers of its own")
    results = LAB / "results" / f"{kernel}-alone-test"
    assert run_jobs(kernel, ALONE, results, timeout_s=900).codes == dict.fromkeys(ALONE, 0)


@pytest.mark.parametrize("kernel", _kernels())
def test_outages_and_devices_by_tracepoint(kernel: str, tmp_path: Path) -> None:
    """By this method too each figure is what the VMMs and the drivers say; and VFIO, KVM and the mailbox of an i40e or
    ice card are in one recording."""
    _full_only("a boot with recordings of their own")
    names = [*OUTAGES, "steer-downtime", "steer-dma", "unplug", "requests"]
    if kernel != "6.1":
        names += [
            "steer-dma-container",
            "steer-dma-iommufd",
            "vfio-iommufd",
            "unplug-iommufd",
            *IOMMUFD,
        ]
    results = LAB / "results" / f"{kernel}-tracepoint-test"
    environment = {"VFTRACE": "each", "VFTRACE_OPTIONS": "--way tracepoint"}
    done = run_jobs(kernel, names, results, timeout_s=900, environment=environment)
    assert done.codes == dict.fromkeys(names, 0)
    golden.check_lab(results, kernel, tmp_path)


def test_the_newest_bcc(tmp_path: Path) -> None:
    """Debian sid's: all of vftrace's objects are compiled and loaded, and a migration is as it is elsewhere."""
    _full_only("a userspace and a boot of its own")
    names = ["hello", "doctor", "vfio-precopy-p2p", "steer-downtime"]
    results = LAB / "results/sid-test"
    done = run_jobs("6.12", names, results, environment={"VFTRACE": "1"}, userspace="sid")
    assert done.codes == dict.fromkeys(names, 0)
    golden.check_lab(results, "sid", tmp_path)
