"""Recordings from the lab's stock kernels, held against QEMU's figures and the drivers' own logs.

`lab/NAME.vft.gz` is one recording of several jobs on one kernel with one way to attach, and
`lab/NAME.truth.json` what each job wrote down without vftrace (tests/lab/README.md). Kept by lab/keep.py.
VFTRACE_LAB_RECORDINGS is another directory of such pairs, VFTRACE_LAB_NOISE_MS what its clocks' readers may be
apart: tests/lab holds what it has just recorded to the same.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from vftrace.migration.model import DeviceUse, Migration, Snapshot
from vftrace.migration.tracker import Tracker
from vftrace.sources.recording import Recording
from vftrace.sources.replay import events_of

Truth = dict[str, Any]

LAB = Path(os.environ.get("VFTRACE_LAB_RECORDINGS", Path(__file__).parent / "lab"))
NAMES = sorted(path.name.removesuffix(".vft.gz") for path in LAB.glob("*.vft.gz"))

MS = 1_000_000
NEAR = int(os.environ.get("VFTRACE_LAB_NOISE_MS", "2")) * MS
"""How far vftrace and the drivers' own logs may be apart. The golden recordings were made on a quiet machine."""


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


def jobs(prefix: str = "", *, without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Recording and job, for the jobs whose name begins so."""
    return [
        (name, job)
        for name in NAMES
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
        assert (found.lost, found.unknown_records) == (0, 0)
        assert not any(m.incomplete for m in found.migrations)


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
            assert any(
                to == state.state and 0 <= state.at_ns - at < NEAR for to, at in answers
            ), state


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


# -- how it ended -------------------------------------------------------------------------------

ENDS = {
    "vfio-cancel-precopy": ("cancelled", "cancelled", None),
    "steer-fail-resuming": ("failed", "device-refused", "vf0: RESUMING refused, -22"),
    "steer-fail-resuming-early": ("failed", "device-refused", "vf0: RESUMING refused, -22"),
    "steer-fail-load": ("failed", "device-failed", "vf0: load failed, -5"),
    "steer-fail-save": ("failed", "device-failed", "vf0: save failed, -5"),
    "steer-refuse": ("failed", "device-refused", "vf0: PRE_COPY refused, -16"),
}


@pytest.mark.parametrize(
    ("name", "job"), jobs(without=("steer-fail-stop-copy", "steer-error", "unplug-only"))
)
def test_outcome_cause_and_words(name: str, job: str) -> None:
    found = migration(name, job)
    wanted = ENDS.get(job, ("completed", None, None))
    assert (found.outcome, found.cause, found.cause_detail) == wanted


@pytest.mark.parametrize(("name", "job"), [*jobs("steer-fail-stop-copy"), *jobs("steer-error")])
def test_a_refused_stop_copy_is_told_with_the_reset_after_it(name: str, job: str) -> None:
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


@pytest.mark.parametrize(("name", "job"), jobs(without=("unplug-only",)))
def test_strategy(name: str, job: str) -> None:
    wanted = {"unplug": "unplug", "plug-after": "plain", "plain": "plain"}.get(job, "vfio")
    assert migration(name, job).strategy == wanted


@pytest.mark.parametrize(("name", "job"), jobs("unplug", without=("unplug-only",)))
def test_the_functions_absence_is_timed(name: str, job: str) -> None:
    """QEMU was asked and answered: it closed and opened the device in between."""
    unplug, plug = truths(name)[job]["acts"]
    found = migration(name, job)
    vf, successor = found.vfs
    (absent,) = vf.phases
    assert (successor.role, successor.address) == ("destination", plug["address"])
    # The guest is a firmware without a driver: nobody probes the function.
    assert [phase.name for phase in successor.phases] == ["probing"]
    assert (vf.pf, vf.vf, vf.address) == (truths(name)[job]["pf"], 0, unplug["address"])
    assert unplug["asked_at_ns"] < absent.start_at_ns < unplug["done_at_ns"]
    assert absent.end_at_ns is not None
    assert plug["asked_at_ns"] < absent.end_at_ns < plug["done_at_ns"]
    assert [d.ns for d in found.downtime.devices] == [absent.end_at_ns - absent.start_at_ns]
