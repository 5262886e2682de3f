# SPDX-License-Identifier: MIT
"""Recordings from the lab's stock kernels, compared with QEMU's figures and the drivers' own logs.

`lab/NAME.vft.gz` is one recording of several jobs on one kernel with one way to attach, and
`lab/NAME.truth.json` what each job wrote down without vftrace (tests/lab/README.md). Kept by lab/keep.py.
VFTRACE_LAB_RECORDINGS is another directory of such pairs, VFTRACE_LAB_NOISE_MS what its clocks' readers may be
apart: tests/lab holds what it has just recorded to the same.
"""

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.golden.losses import unexplained
from vftrace import events
from vftrace.analysis import dirty
from vftrace.analysis.devices.device import Devices, VfioEvent
from vftrace.analysis.hosts.outage import (
    BLACKOUT,
    CONFIGURING,
    GONE,
    LINK,
    MAPPING,
    PROBING,
    RESUME,
    UNPLUG,
    UNSEEN,
    HostSide,
    conditions,
    spans_of,
)
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.model.brownout import VcpuState
from vftrace.model.migration import Checkpoint, DeviceUse, Migration, Snapshot

Truth = dict[str, Any]

LAB = Path(os.environ.get("VFTRACE_LAB_RECORDINGS", Path(__file__).parent / "lab"))
NAMES = sorted(path.name.removesuffix(".vft.gz") for path in LAB.glob("*.vft.gz"))

MS = 1_000_000
NEAR = int(os.environ.get("VFTRACE_LAB_NOISE_MS", "2")) * MS
"""How far vftrace and the drivers' own logs may be apart. The golden recordings were made on a quiet machine."""


NO_MIGRATION = ("unplug-only", "requests", "iommufd-requests")
REFUSED = ("steer-fail-stop-copy", "steer-error")
ENDS = {
    "vfio-cancel-precopy": ("cancelled", "cancelled", None),
    "steer-fail-resuming": ("failed", "device-refused", "vf0: RESUMING refused, -22"),
    "steer-fail-resuming-early": ("failed", "device-refused", "vf0: RESUMING refused, -22"),
    "steer-fail-load": ("failed", "device-failed", "vf0: load failed, -5"),
    "steer-fail-save": ("failed", "device-failed", "vf0: save failed, -5"),
    "steer-refuse": ("failed", "device-refused", "vf0: PRE_COPY refused, -16"),
}


@functools.cache
def truths(name: str) -> dict[str, Truth]:
    text = (LAB / f"{name}.truth.json").read_text()
    found: dict[str, Truth] = json.loads(text)
    return found


@functools.cache
def snapshot(name: str) -> Snapshot:
    tracker = Tracker()
    for event in events_of(Recording(LAB / f"{name}.vft.gz")):
        tracker.feed(event)
    tracker.finish()
    return tracker.snapshot()


def traces_vcpus(name: str) -> bool:
    """Whether the recording's vftrace had the probes of calls and vCPUs."""
    return "vcpus" in {probe.name for probe in Recording(LAB / f"{name}.vft.gz").host.probes}


def jobs(
    prefix: str = "", *, without: tuple[str, ...] = (), names: Sequence[str] = NAMES
) -> list[tuple[str, str]]:
    """Recording and job, for the jobs whose name begins so."""
    return [
        (name, job)
        for name in names
        for job in sorted(truths(name))
        if job.startswith(prefix) and job not in without
    ]


def migrations(name: str, job: str) -> list[Migration]:
    truth = truths(name)[job]
    begin, end = truth["started_at_ns"], truth["ended_at_ns"]
    return [m for m in snapshot(name).migrations if begin <= m.started_at_ns <= end]


def migration(name: str, job: str) -> Migration:
    (found,) = migrations(name, job)
    return found


def uses(found: Migration, role: str) -> list[DeviceUse]:
    return [device for device in found.devices if device.role == role]


def test_nothing_was_lost() -> None:
    for name in NAMES:
        found = snapshot(name)
        assert (unexplained(found), found.unknown_records) == (0, 0)
        # Figures are checked all the same where runs were skipped.
        assert not any(m.incomplete and not m.missed_runs for m in found.migrations)


# -- state sequences ----------------------------------------------------------------------------

# What a VMM asks for, by what the device can do: the table of QEMU's docs/devel/migration/vfio.rst
# and hw/vfio/migration.c. STOP_COPY 1, P2P 2, PRE_COPY 4.
SOURCE = {
    7: "RUNNING PRE_COPY PRE_COPY_P2P STOP_COPY STOP",
    5: "RUNNING PRE_COPY STOP_COPY STOP",
    3: "RUNNING RUNNING_P2P STOP STOP_COPY STOP",
    1: "RUNNING STOP STOP_COPY STOP",
}
DESTINATION = {
    7: "RUNNING RESUMING RUNNING_P2P RUNNING",
    5: "RUNNING RESUMING RUNNING",
    3: "RUNNING RESUMING RUNNING_P2P RUNNING",
    1: "RUNNING RESUMING RUNNING",
}


@pytest.mark.parametrize(("name", "job"), jobs("vfio-", without=("vfio-cancel-precopy",)))
def test_states_are_those_of_what_the_device_can_do(name: str, job: str) -> None:
    found = migration(name, job)
    wanted = {
        device["uuid"]: (SOURCE if device["role"] == "source" else DESTINATION)[device["flags"]]
        for device in truths(name)[job]["devices"]
    }
    seen = {d.address: " ".join(state.state for state in d.states) for d in found.devices}
    assert seen == wanted


@pytest.mark.parametrize(("name", "job"), jobs("vfio-", without=("vfio-cancel-precopy",)))
def test_states_are_reached_between_the_drivers_arcs(name: str, job: str) -> None:
    """mtty logs each arc as it begins one. The clock of the kernel's log is off by up to 50 ms, the same for all."""
    truth = truths(name)[job]
    matched = []
    for device in truth["devices"]:
        arcs = [arc for arc in device["log"] if arc["at_ns"] > truth["migration"]["asked_at_ns"]]
        ends = [arc["at_ns"] for arc in arcs[1:]] + [truth["ended_at_ns"]]
        walk = zip(arcs, ends, strict=True)
        (use,) = [d for d in migration(name, job).devices if d.address == device["uuid"]]
        for state in use.states[1:]:
            arc, end = next((arc, end) for arc, end in walk if arc["to"] == state.state)
            matched.append((arc["at_ns"], state.at_ns, end))
    off = min(at - begin for begin, at, _ in matched)
    assert abs(off) < 50 * MS
    assert all(at - off < end + NEAR for _, at, end in matched)


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-downtime"), *jobs("steer-dma")])
def test_states_are_reached_near_the_drivers_answer(name: str, job: str) -> None:
    for device in truths(name)[job]["devices"]:
        answers = [(e["to"], e["at_ns"]) for e in device["log"] if e["what"] == "answer"]
        (use,) = [d for d in migration(name, job).devices if d.address == device["uuid"]]
        for state in use.states[1:]:
            assert any(to == state.state and 0 <= state.at_ns - at < NEAR for to, at in answers), (
                state
            )


# -- what moved ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "job"),
    [
        (name, job)
        for name, job in jobs()
        if truths(name)[job].get("migration", {}).get("query_migrate", {}).get("status")
        == "completed"
        and truths(name)[job]["migration"]["vfio_bytes"]
        and job != "steer-fail-load"
    ],
)
def test_device_bytes_are_qemus(name: str, job: str) -> None:
    found = migration(name, job)
    wanted = truths(name)[job]["migration"]["vfio_bytes"]
    assert sum(device.bytes or 0 for device in uses(found, "source")) == wanted
    assert sum(device.bytes or 0 for device in uses(found, "destination")) == wanted


@pytest.mark.parametrize(("name", "job"), jobs("steer-"))
def test_device_bytes_are_the_drivers(name: str, job: str) -> None:
    """A destination that died has read a little more than was reported last: totals go out every 100 ms."""
    truth = truths(name)[job]
    found = migration(name, job)
    for device in truth["devices"]:
        wanted = sum(
            entry["bytes"]
            for entry in device["log"]
            if entry["what"] in ("saved", "loaded", "lost")
        )
        for use in found.devices:
            if use.address != device["uuid"]:
                continue
            if found.outcome == "failed" and use.role == "destination":
                assert (use.bytes or 0) <= wanted
            else:
                assert (use.bytes or 0) == wanted


@pytest.mark.parametrize(("name", "job"), jobs("steer-dma"))
def test_pages_that_dma_wrote(name: str, job: str) -> None:
    truth = truths(name)[job]
    dirty = migration(name, job).dirty
    if truth["tracking"] == "device":
        assert dirty.vfio_pages == truth["touched"]
    else:
        assert (dirty.vfio_pages, dirty.iommu_pages) == (None, truth["touched"])


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-dma"), *jobs("plain")])
def test_who_told_the_pages_that_devices_wrote(name: str, job: str) -> None:
    wanted = truths(name)[job].get("tracking", "none")
    assert migration(name, job).dirty.dma == wanted


@pytest.mark.parametrize(("name", "job"), jobs("vfio-iommufd"))
def test_a_device_without_an_iommu_that_cannot_log_is_untracked(name: str, job: str) -> None:
    found = migration(name, job)
    assert found.dirty.dma == "untracked"
    assert [(r.vfio_pages, r.iommu_pages) for r in found.rounds] == [(None, None)] * len(
        found.rounds
    )


@pytest.mark.parametrize(("name", "job"), jobs("steer-dma"))
def test_pages_that_dma_wrote_are_in_a_round_after_they_were_written(name: str, job: str) -> None:
    """Each sweep has what was reported for it; none before the device wrote has any."""
    truth = truths(name)[job]
    log = next(d["log"] for d in truth["devices"] if d["role"] == "source")
    written_at = min(e["at_ns"] for e in log if e["what"] == "touched")
    rounds = migration(name, job).rounds
    pages = [(r.at_ns + r.duration_ns, (r.vfio_pages or 0) + (r.iommu_pages or 0)) for r in rounds]
    assert sum(n for _, n in pages) == truth["touched"]
    assert not any(n for end, n in pages if end < written_at - NEAR)


@pytest.mark.parametrize(("name", "job"), jobs("steer-dma"))
def test_a_device_that_nobody_tracks_is_untracked(name: str, job: str) -> None:
    """The same run as if the kernel had refused to track (-EOPNOTSUPP), as it does for mtty behind iommufd."""
    tracker = Tracker()
    for event in events_of(Recording(LAB / f"{name}.vft.gz")):
        if isinstance(event, events.VfioDirtyTracking | events.VfioDirty):
            event = structs.replace(event, ret=-95)
        tracker.feed(event)
    started = migration(name, job).started_at_ns
    (dma,) = (m.dirty.dma for m in tracker.snapshot().migrations if m.started_at_ns == started)
    # Not claimed where a record of the VM is lost, which may be the one that would refute it.
    assert dma in ({"untracked", None} if migration(name, job).incomplete else {"untracked"})


# -- downtime -----------------------------------------------------------------------------------


def _asked(log: list[Truth], olds: tuple[str, ...], since_ns: int) -> int:
    """When the driver was first asked to leave one of these states."""
    return next(
        int(entry["at_ns"])
        for entry in log
        if entry["what"] == "ask"
        and entry["at_ns"] > since_ns
        and entry["from"] in olds
        and entry["to"] not in ("RUNNING", "PRE_COPY")
    )


def _runs(log: list[Truth], since_ns: int) -> int:
    return next(
        int(entry["at_ns"])
        for entry in log
        if entry["what"] == "state" and entry["to"] == "RUNNING" and entry["at_ns"] > since_ns
    )


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-downtime"), *jobs("steer-dma")])
def test_each_devices_downtime_is_the_drivers(name: str, job: str) -> None:
    truth = truths(name)[job]
    since = truth["migration"]["asked_at_ns"]
    sources = [d for d in truth["devices"] if d["role"] == "source"]
    targets = [d for d in truth["devices"] if d["role"] == "destination"]
    found = migration(name, job).downtime
    assert len(found.devices) == len(sources)
    wanted = {}
    for source, target in zip(sources, targets, strict=True):
        left = _asked(source["log"], ("RUNNING", "PRE_COPY"), since)
        wanted[source["uuid"]] = _runs(target["log"], left) - left
    for device in found.devices:
        assert device.ns is not None
        assert abs(device.ns - wanted[device.address]) < NEAR
    assert found.slowest_device == max(wanted, key=lambda address: wanted[address])


@pytest.mark.parametrize(
    ("name", "job"), [*jobs("vfio-", without=("vfio-cancel-precopy",)), *jobs("steer-downtime")]
)
def test_the_blackouts_checkpoints_are_all_there(name: str, job: str) -> None:
    found = migration(name, job).downtime
    times = {c.name: c.at_ns for c in found.checkpoints}
    # Nobody had to say `cont`.
    assert [checkpoint for checkpoint, at in times.items() if at is None] == ["held"]
    assert sum(c.ns or 0 for c in found.checkpoints) == found.vcpu_ns


TRACES_VCPUS = [name for name in NAMES if traces_vcpus(name)]


@pytest.mark.parametrize(("name", "job"), jobs("steer-downtime", names=TRACES_VCPUS))
def test_a_device_that_takes_its_time_is_named_in_the_blackout(name: str, job: str) -> None:
    """The destination's devices were set to take this long, which is the first cause of the blackout."""
    found = migration(name, job)
    assert found.calls is not None
    told_ns = {(e["from"], e["to"]): 1000 * e["us"] for e in truths(name)[job]["set_times"]}
    wanted = {
        Checkpoint.CLOCK_SET: told_ns["RESUMING", "STOP"],
        Checkpoint.VCPUS_RUNNING: told_ns["RUNNING_P2P", "RUNNING"],
    }
    named = {
        step.checkpoint: cause.ns
        for step in found.calls.steps
        for cause in step.causes
        if (cause.side, cause.call) == ("destination", "VFIO_DEVICE_FEATURE")
    }
    for checkpoint, ns in wanted.items():
        assert 0 <= named[checkpoint] - ns < NEAR + ns / 20, checkpoint
    first = found.calls.causes[0]
    assert (first.side, first.call) == ("destination", "VFIO_DEVICE_FEATURE")
    assert first.target == "vfio-device"


@pytest.mark.parametrize(
    ("name", "job"), jobs(without=(*ENDS, *REFUSED, *NO_MIGRATION), names=TRACES_VCPUS)
)
def test_a_blackout_is_named_and_a_guests_time_adds_up(name: str, job: str) -> None:
    """Of a guest in hardware virtualization as the kernel offers it: it runs, and dirty logging makes it fault."""
    found = migration(name, job)
    assert found.outcome == "completed"
    assert found.calls is not None
    assert found.brownout is not None
    assert found.calls.named_ns >= 0.95 * found.calls.ns
    for vcpu in found.brownout.vcpus:
        lasted_ns = vcpu.total.end_ns - vcpu.total.start_ns
        # The probes are attached a moment after it began, which takes longest where processors are busy.
        assert 0.9 * lasted_ns - 15 * NEAR <= vcpu.total.total_ns <= lasted_ns + NEAR
    total = found.brownout.total
    assert total is not None
    assert total.of(VcpuState.GUEST) > 0
    assert total.of(VcpuState.FAULT) > 0


# -- how it ended -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "job"),
    jobs(without=(*REFUSED, *NO_MIGRATION)),
)
def test_outcome_cause_and_words(name: str, job: str) -> None:
    found = migration(name, job)
    wanted = ENDS.get(job, ("completed", None, None))
    assert (found.outcome, found.cause, found.cause_detail) == wanted


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-fail-stop-copy"), *jobs("steer-error")])
def test_a_refused_stop_copy_is_reported_with_the_reset_after_it(name: str, job: str) -> None:
    log = next(d["log"] for d in truths(name)[job]["devices"] if d["role"] == "source")
    refused = next(i for i, entry in enumerate(log) if entry.get("ret"))
    reset = any(entry["what"] == "reset" for entry in log[refused:])
    found = migration(name, job)
    assert (found.outcome, found.cause) == ("failed", "device-refused")
    assert found.cause_detail == "vf0: STOP_COPY refused, -5" + (", then reset" if reset else "")


def test_an_unplug_without_a_migration_is_none() -> None:
    for name, job in jobs("unplug-only"):
        assert migrations(name, job) == []


# -- strategies ---------------------------------------------------------------------------------


STRATEGIES = {
    "outage-i40e": "unplug",
    "outage-ice": "unplug",
    "unplug": "unplug",
    "unplug-iommufd": "unplug",
    "late-unplug": "late-unplug",
    "late-unplug-iommufd": "late-unplug",
    "plug-after": "plain",
    "plain": "plain",
}


@pytest.mark.parametrize(("name", "job"), jobs(without=NO_MIGRATION))
def test_strategy(name: str, job: str) -> None:
    wanted = STRATEGIES.get(job, "vfio")
    assert migration(name, job).strategy == wanted


@pytest.mark.parametrize(("name", "job"), jobs("unplug", without=("unplug-only",)))
def test_the_functions_absence_is_timed(name: str, job: str) -> None:
    """QEMU was asked and answered: it closed and opened the device in between."""
    unplug, plug = truths(name)[job]["acts"]
    found = migration(name, job)
    vf, successor = found.vfs
    (absent,) = vf.phases
    assert (successor.role, successor.address) == ("destination", plug["address"])
    # The guest is a firmware without a driver, so the function is not probed.
    assert [phase.name for phase in successor.phases] == ["probing"]
    assert (vf.pf, vf.vf, vf.address) == (truths(name)[job]["pf"], 0, unplug["address"])
    assert unplug["asked_at_ns"] < absent.start_at_ns < unplug["done_at_ns"]
    assert absent.end_at_ns is not None
    assert plug["asked_at_ns"] < absent.end_at_ns < plug["done_at_ns"]
    assert [d.ns for d in found.downtime.devices] == [absent.end_at_ns - absent.start_at_ns]


@pytest.mark.parametrize(("name", "job"), jobs("outage-"))
def test_a_virtchnl_vfs_outage_is_reported_from_both_ends(name: str, job: str) -> None:
    """QEMU closed and opened the VF between QMP's request and answer, and the rest is what was sent to its card."""
    truth = truths(name)[job]
    unplug, plug = truth["acts"]
    begins = [entry["at_ns"] for entry in truth["log"]]
    sent = {
        (entry["vf"], entry["what"]): (begin, end)
        for entry, begin, end in zip(
            truth["log"], begins, [*begins[1:], truth["ended_at_ns"]], strict=True
        )
    }
    found = migration(name, job)
    _, destination = found.vfs
    assert [vf.pf for vf in found.vfs] == [truth["pf"]] * 2
    assert [(vf.vf, vf.address) for vf in found.vfs] == [
        (0, unplug["address"]),
        (1, plug["address"]),
    ]
    assert [phase.name for phase in destination.phases] == ["probing", "configuring", "ready"]
    histories = {(vf.pf, vf.vf): vf for vf in snapshot(name).vfs}
    side = HostSide(found.pid, histories, (), (), 0)
    start, end = sent[0, "down"][0], truth["ended_at_ns"]
    spans = spans_of(start, end, conditions(found, side, side))
    assert [span.name for span in spans] == [
        *(UNSEEN, UNPLUG, GONE, BLACKOUT, RESUME, GONE, MAPPING, PROBING, CONFIGURING, LINK, UNSEEN)
    ]
    ends = {span.name: span.end_at_ns for span in spans[:-1]}
    # Its driver has stopped once DISABLE_QUEUES is granted; the VMM closes it, and opens the next one after mapping.
    assert sent[0, "down"][0] < ends[UNSEEN] < sent[0, "down"][1]
    assert unplug["asked_at_ns"] < ends[UNPLUG] < unplug["done_at_ns"]
    assert plug["asked_at_ns"] < ends[GONE] < ends[MAPPING] < plug["done_at_ns"]
    # Its driver's first word is VERSION; it is up once ENABLE_QUEUES is granted, which the card's word on the link
    # follows within the same call.
    assert sent[1, "version"][0] < ends[PROBING] < sent[1, "version"][1]
    assert sent[1, "up"][0] < ends[CONFIGURING] < ends[LINK] < sent[1, "up"][1]


# The drivers of the lab's devices, by the bus that their names are of.
DRIVERS = {"0000:": "vfio-pci", "vft.": "vft"}


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-"), *jobs("vfio-")])
def test_devices_have_their_drivers_names(name: str, job: str) -> None:
    mediated = "mtty" if job.startswith("vfio-") else "vftsteer"
    for device in migration(name, job).devices:
        wanted = next(
            (d for begin, d in DRIVERS.items() if device.address.startswith(begin)), mediated
        )
        assert device.driver == wanted


@functools.cache
def knows_page_tables(name: str) -> bool:
    """Whether the recording is of a vftrace that reads HWPT_ALLOC and ATTACH."""
    made = events_of(Recording(LAB / f"{name}.vft.gz"))
    return any(isinstance(event, events.VfioPageTable) for event in made)


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-dma"), *jobs("vfio-")])
def test_which_devices_have_a_page_table_that_tracks(name: str, job: str) -> None:
    """Ours is behind an IOMMU that can; a mediated device is attached to an address space, a container's to neither."""
    wanted = {"steer-dma-phys": True, "steer-dma-iommufd": False, "vfio-iommufd": False}.get(job)
    seen = {device.iommu_tracks for device in migration(name, job).devices}
    assert seen == {wanted if knows_page_tables(name) else None}


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-dma-"), *jobs("vfio-iommufd")])
def test_mapping_follows_a_bind_and_precedes_a_containers_device(name: str, job: str) -> None:
    truth = truths(name)[job]
    opened = {
        (event.tgid, event.how): event.at_ns
        for event in events_of(Recording(LAB / f"{name}.vft.gz"))
        if isinstance(event, events.VfioOpen) and event.at_ns > truth["started_at_ns"]
    }
    how = events.VfioOpen.GROUP if job == "steer-dma-container" else events.VfioOpen.BIND
    by_role = {vm["role"]: opened[vm["pid"], how] for vm in truth["vms"]}
    for device in migration(name, job).devices:
        assert device.mapping is not None
        assert device.mapping.maps > 0
        if how == events.VfioOpen.GROUP:
            assert device.mapping.end_at_ns <= by_role[device.role]
        else:
            assert device.mapping.start_at_ns >= by_role[device.role]


# -- a VMM that is not QEMU ---------------------------------------------------------------------


def told(name: str, job: str, role: str = "none") -> list[Truth]:
    """tinyvmm's own log, in order."""
    (found,) = [vmm["log"] for vmm in truths(name)[job]["tiny"] if vmm["role"] == role]
    log: list[Truth] = found
    return log


def acts(log: list[Truth], what: str) -> list[Truth]:
    return [act for act in log if act["what"] == what]


@pytest.mark.parametrize(("name", "job"), jobs("late-unplug"))
def test_a_late_unplug_with_its_evidence(name: str, job: str) -> None:
    source, destination = told(name, job, "source"), told(name, job, "destination")
    (close,) = acts(source, "close")
    (opened,) = acts(destination, "open") + acts(destination, "cdev")
    rounds = acts(source, "round")
    found = migration(name, job)
    first, second = truths(name)[job]["addresses"]
    at = {evidence.event: evidence.at_ns for evidence in found.strategy_evidence}
    assert set(at) == {
        "second round begins",
        f"source closes {first}",
        f"destination opens {second}",
    }
    assert rounds[1]["at_ns"] <= at["second round begins"] <= rounds[1]["swept_at_ns"]
    closed_at, opened_at = at[f"source closes {first}"], at[f"destination opens {second}"]
    assert close["at_ns"] <= closed_at <= close["done_at_ns"]
    assert opened["at_ns"] <= opened_at <= opened["done_at_ns"]
    assert [r.new_pages for r in found.rounds[1:]] == [r["new_pages"] for r in rounds[1:]]
    assert [(d.address, d.ns) for d in found.downtime.devices] == [(first, opened_at - closed_at)]


def kernel_events(name: str, job: str) -> list[events.Event]:
    """What the kernel side recorded of the one tinyvmm of a job."""
    (vmm,) = truths(name)[job]["tiny"]
    begin, end = vmm["log"][0]["at_ns"], vmm["log"][-1]["done_at_ns"]
    return [
        event
        for event in events_of(Recording(LAB / f"{name}.vft.gz"))
        if event.tgid == vmm["pid"] and begin <= event.at_ns <= end + MS
    ]


# tinyvmm's name of each request, and the marks by which vftrace's event of it is found.
REQUESTS: dict[str, Callable[[events.Event], bool]] = {
    "track": lambda e: (
        isinstance(e, events.VfioDirtyTracking) and e.by == events.VfioDirtyTracking.CONTAINER
    ),
    "dma": lambda e: (
        isinstance(e, events.VfioDirtyTracking) and e.by == events.VfioDirtyTracking.DEVICE
    ),
    "dirty": lambda e: (
        isinstance(e, events.VfioDirty)
        and (e.by, e.unmap) == (events.VfioDirtyTracking.CONTAINER, 0)
    ),
    "unmap": lambda e: (
        isinstance(e, events.VfioDirty)
        and (e.by, e.unmap) == (events.VfioDirtyTracking.CONTAINER, 1)
    ),
    "report": lambda e: isinstance(e, events.VfioDirty) and e.by == events.VfioDirtyTracking.DEVICE,
    "state": lambda e: isinstance(e, events.VfioState) and e.op == events.VfioState.SET,
    "reset": lambda e: isinstance(e, events.VfioReset) and e.op == events.VfioReset.DEVICE,
    "hot-reset": lambda e: isinstance(e, events.VfioReset) and e.op == events.VfioReset.HOT,
    "hwpt": lambda e: (
        isinstance(e, events.VfioDirtyTracking) and e.by == events.VfioDirtyTracking.IOMMUFD
    ),
    "written": lambda e: (
        isinstance(e, events.VfioDirty) and e.by == events.VfioDirtyTracking.IOMMUFD
    ),
    "cdev": lambda e: isinstance(e, events.VfioOpen) and e.how == events.VfioOpen.BIND,
}
ASKED = {
    "requests": ("track", "dma", "dirty", "unmap", "report", "state", "reset", "hot-reset"),
    "iommufd-requests": ("hwpt", "written", "dma", "report", "state", "reset", "hot-reset"),
}


@pytest.mark.parametrize(
    ("name", "job", "what"),
    [
        (name, job, what)
        for begin, asked in ASKED.items()
        for name, job in jobs(begin)
        for what in asked
    ],
)
def test_requests_are_those_in_the_vmms_log(name: str, job: str, what: str) -> None:
    """One event for each, between its begin and its end, with its result."""
    log = told(name, job)
    asked = acts(log, what)
    seen = [event for event in kernel_events(name, job) if REQUESTS[what](event)]
    assert asked
    assert [event.ret for event in seen] == [act["ret"] for act in asked]  # type: ignore[attr-defined]
    for event, act in zip(seen, asked, strict=True):
        assert act["at_ns"] <= event.enter_ns <= event.at_ns <= act["done_at_ns"]  # type: ignore[attr-defined]
        match event:
            case events.VfioState():
                assert event.state == int(act["argument"])
            case events.VfioDirtyTracking():
                assert bool(event.on) == (act["argument"] == "on")
            case events.VfioDirty():
                assert event.iova == int(act["argument"])


@pytest.mark.parametrize(("name", "job"), jobs("requests"))
def test_hot_resets_were_granted_and_refused(name: str, job: str) -> None:
    """A mediated device is on no bus (-ENOTTY); of a card alone behind its port the kernel resets the bus."""
    assert [act["ret"] for act in acts(told(name, job), "hot-reset")] == [-25, 0]


@pytest.mark.parametrize(("name", "job"), [*jobs("requests"), *jobs("iommufd-requests")])
def test_dirty_pages_are_those_the_vmm_was_told(name: str, job: str) -> None:
    log = told(name, job)
    asked = [act for act in log if act["what"] in ("dirty", "unmap", "report", "written")]
    happened = kernel_events(name, job)
    pieces = [e for e in happened if isinstance(e, events.Piece | events.BitmapPart)]
    for act in asked:
        (found,) = [
            event
            for event in happened
            if isinstance(event, events.VfioDirty)
            and act["at_ns"] <= event.enter_ns <= act["done_at_ns"]
        ]
        mine = [p for p in pieces if (p.tid, p.call_ns) == (found.tid, found.enter_ns)]
        assert dirty.count(dirty.bitmap_of(mine)) == act["dirty_pages"]
    assert sum(act["dirty_pages"] for act in asked) > 0


@pytest.mark.parametrize(("name", "job"), jobs("requests"))
def test_maps_are_counted(name: str, job: str) -> None:
    """The totals that come with each change of tracking: those of all memory when a device is opened, and `map`."""
    log = told(name, job)
    tracking = [e for e in kernel_events(name, job) if isinstance(e, events.VfioDirtyTracking)]
    changes = [act for act in log if act["what"] in ("track", "dma")]
    for event, change in zip(tracking, changes, strict=True):
        before = [act for act in log if act["at_ns"] < change["at_ns"]]
        assert event.dma_maps == len(acts(before, "open")) + len(acts(before, "map"))
        assert event.dma_unmaps == len(acts(before, "unmap"))


@pytest.mark.parametrize(("name", "job"), jobs("requests"))
def test_a_device_in_error_runs_after_its_reset(name: str, job: str) -> None:
    devices = Devices()
    for event in kernel_events(name, job):
        if isinstance(event, VfioEvent):
            devices.feed(event)
    states = [state.state for state in devices.all[0].states()]
    assert states == ["RUNNING", "ERROR", "RUNNING", "RUNNING_P2P", "RUNNING"]


# -- an iommufd ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "job"), jobs("iommufd-requests"))
def test_a_bound_device_is_open_and_a_refused_bind_opens_none(name: str, job: str) -> None:
    log = told(name, job)
    devices = Devices()
    opens = []
    for event in kernel_events(name, job):
        if isinstance(event, events.VfioOpen) and event.how != events.VfioOpen.SEEN:
            opens.append(event)
        if isinstance(event, VfioEvent):
            devices.feed(event)
    bound = acts(log, "cdev")
    assert [act["ret"] for act in acts(log, "bind")] == [-22, -22]
    assert [event.how for event in opens] == [events.VfioOpen.BIND] * len(bound)
    tracks = [True, True, False, False] if knows_page_tables(name) else [None] * 4
    assert [device.iommu_tracks for device in devices.all] == tracks
    for event, act in zip(opens, bound, strict=True):
        assert act["at_ns"] <= event.at_ns <= act["done_at_ns"]
        # By tracepoint the collector reads the name from /proc and /sys.
        assert event.name in ("", act["device"])
        assert event.fd == act["fd"]
    assert all(device.closed_at_ns is not None for device in devices.all)


@pytest.mark.parametrize(("name", "job"), jobs("iommufd-requests"))
def test_bitmaps_of_a_page_table_have_their_page_size_and_were_kept_or_cleared(
    name: str, job: str
) -> None:
    """77 pages of 4 KiB, read twice, and 33 of them in 3 of 64 KiB and in one of 2 MiB."""
    read = [e for e in kernel_events(name, job) if REQUESTS["written"](e)]
    asked = acts(told(name, job), "written")
    seen = [(e.page_size, e.length, bool(e.kept)) for e in read if isinstance(e, events.VfioDirty)]
    assert seen == [(act["page_size"], act["size"], act["kept"]) for act in asked]
    assert {act["page_size"] for act in asked} == {4096, 65536, 2 << 20}
    assert any(act["kept"] for act in asked)


@pytest.mark.parametrize(("name", "job"), jobs("iommufd-requests"))
def test_reports_of_an_iommu_are_those_its_log_has(name: str, job: str) -> None:
    """The IOMMU's own log has the marked pages and whether it cleared them, for any page size of the reader."""
    (log,) = [d["log"] for d in truths(name)[job]["devices"] if d["uuid"] == "vft.0"]
    granted = [
        act for act in acts(told(name, job), "written") if act["ret"] == 0 and act["dirty_pages"]
    ]
    reports = [entry for entry in log if entry["what"] in ("reported", "peeked")]
    assert [entry["what"] == "peeked" for entry in reports] == [act["kept"] for act in granted]
    small = [
        entry["pages"]
        for entry, act in zip(reports, granted, strict=True)
        if act["page_size"] == 4096
    ]
    assert small == [act["dirty_pages"] for act in granted if act["page_size"] == 4096]


@pytest.mark.parametrize(("name", "job"), jobs("iommufd-requests"))
def test_maps_of_an_iommufd_are_counted_and_timed(name: str, job: str) -> None:
    """Granted ones alone: a new iommufd maps all memory, `iomap` and `iocopy` more of it."""
    log = told(name, job)
    happened = kernel_events(name, job)
    made: list[Truth] = []
    fresh = True
    for act in log:
        if act["what"] == "cdev" and fresh:
            made.append(act)
        fresh = act["what"] == "done" or (fresh and act["what"] != "cdev")
        if act["what"] in ("iomap", "iocopy", "iounmap") and act["ret"] == 0:
            made.append(act)
    mapped = [e for e in happened if isinstance(e, events.VfioMapped)]
    unmaps = [act for act in made if act["what"] == "iounmap"]
    assert sum(e.maps for e in mapped) == len(made) - len(unmaps)
    assert sum(e.unmaps for e in mapped) == len(unmaps)
    for some in mapped:
        for at in (some.first_ns, some.last_ns):
            assert any(act["at_ns"] <= at <= act["done_at_ns"] for act in made)
        assert 0 < some.took_ns <= some.last_ns - some.first_ns
    for event, act in zip(
        [e for e in happened if REQUESTS["hwpt"](e)], acts(log, "hwpt"), strict=True
    ):
        before = [other for other in made if other["at_ns"] < act["at_ns"]]
        gone = [other for other in before if other["what"] == "iounmap"]
        assert isinstance(event, events.VfioDirtyTracking)
        assert (event.dma_maps, event.dma_unmaps) == (len(before) - len(gone), len(gone))
