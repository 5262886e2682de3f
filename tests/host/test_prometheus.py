# SPDX-License-Identifier: MIT
"""A real Prometheus that scrapes `vftrace serve` while a guest here is too fast for its migration's channel."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.dashboards.expressions import BOARDS, ask, expressions
from tests.dashboards.prom import Stage, quick
from vftrace.demo import guest, qemu
from vftrace.demo.scenarios import FIRST_PAGE, Run, Vm

pytestmark = pytest.mark.needs("prometheus")

MIB = 1 << 20
TOO_FAST = guest.fixed(FIRST_PAGE, 4096, 3000)
"""12 MiB/s where 8 MiB/s are sent."""

HOT = guest.fixed(FIRST_PAGE, 500, 8000)
"""245 ms of what 8 MiB/s send, all of it written again in each round: QEMU's default limit allows it, 20 ms do not."""

NOT_CONVERGING = "ALERTS{alertname='VftracePrecopyNotConverging', alertstate='firing'}"

COUNTED = "sum(vftrace_migrations_total{outcome='completed', role='stitched'} offset 1s) > 0"
"""A step of a range query ago: a rate that is asked for earlier may have been taken at no time since."""

NOT_HERE = ("vfio_device_state", 'kind="device"', "vm_events_lost_total", "untraced_vms_total")
"""The guest has no device passed through, nothing is lost, and every VM has room in the tables."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A minute of the rules is a second."""
    rules = quick(tmp_path / "quick.rules.yml", 60, {})
    with Stage(tmp_path, ("here",), (rules,)) as found:
        found.serve("here")
        found.wait_ready("here")
        yield found


async def migrate(
    stage: Stage, directory: Path, dirty: guest.DirtySet, limit_ms: int
) -> tuple[Vm, float]:
    """Until the alert fires; then the channel gets wider. Returns the source, and the seconds between QEMU's
    events STOP and RESUME."""
    async with AsyncExitStack() as stack:
        run = Run("too-fast", qemu.find_qemu(), directory, stack, lambda line: None)
        source = await run.source(run.firmware(dirty))
        destination = await run.destination(source)
        moved = await run.migrate(source, destination, bandwidth=8 * MIB, downtime_ms=limit_ms)
        await asyncio.to_thread(stage.wait, NOT_CONVERGING, 60)
        await source.qemu.command_qmp("migrate-set-parameters", **{"max-bandwidth": 256 * MIB})
        await run.arrived(moved)
        # A migration is counted a second after its end.
        await asyncio.to_thread(stage.wait, COUNTED, 20)
        stop = next(event for event in source.qemu.events if event.name == "STOP")
        resume = next(event for event in destination.qemu.events if event.name == "RESUME")
        return source, (resume.at_ns - stop.at_ns) / 1e9


@pytest.mark.parametrize(
    ("dirty", "limit_ms"), [(TOO_FAST, 300), (HOT, 20)], ids=["too-fast", "low-limit"]
)
def test_a_guest_that_does_not_converge(
    stage: Stage, tmp_path: Path, dirty: guest.DirtySet, limit_ms: int
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        source, seconds = asyncio.run(migrate(stage, Path(directory), dirty, limit_ms))
    vm = source.spec.uuid
    # It may have fired for one evaluation only.
    fired = stage.query_range(NOT_CONVERGING, step=0.5)
    assert {series.labels["vm"] for series in fired} == {vm}
    assert stage.wait("absent(ALERTS{alertname='VftracePrecopyNotConverging'})", 20)
    (downtime,) = stage.query(f'vftrace_migration_last_downtime_seconds{{vm="{vm}", kind="vcpu"}}')
    assert -0.0005 <= downtime.value - seconds <= 0.01
    check_boards(stage, str(vm))
    assert [rule for rule in stage.rules() if rule["health"] != "ok"] == []


def check_boards(stage: Stage, vm: str) -> None:
    """What a board of migrations shows of this one; one of virtual functions has nothing here."""
    shown = [
        expression
        for board in BOARDS
        for expression in expressions(board)
        if board.stem != "vftrace-vf" and not any(word in expression.text for word in NOT_HERE)
    ]
    # How a migration ended is served a second after its end, and scraped some time later.
    deadline = time.monotonic() + 20
    while shown := [e for e in shown if not ask(stage, e, 60, {"vm": vm})]:
        assert time.monotonic() < deadline, [str(expression) for expression in shown]
        time.sleep(0.5)
