# SPDX-License-Identifier: MIT
"""A hostile process has a victim's name and UUID on its command line, and waits as a destination does, while the
victim migrates: what the kernel saw decides, and what stays in doubt is marked."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.host.test_another_vmm import recorded
from vftrace.demo.scenarios import run_scenario

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCENARIO = "completed-fast"
NAME, UUID = f"demo-{SCENARIO}", str(uuid.uuid5(uuid.NAMESPACE_URL, f"vftrace/demo/{SCENARIO}/0"))
LESS_NS, MORE_NS = 1_000_000, 100_000_000
"""vftrace's downtime is the vCPUs', who stop before QEMU says so and run after it: on a busy machine much later."""

# Each runs until its standard input ends.
COMMON = """
import fcntl, os, select, struct, sys, time
from concurrent.futures import ThreadPoolExecutor
from kvmslots import GIB, PAGE, Bitmap, Vm

SET_CLOCK, SET_MP_STATE, RUN = 0x4030AE7B, 0x4004AE99, 0xAE80

def over():
    return bool(select.select([sys.stdin], [], [], 0.002)[0])

def vm_like_it():
    vm = Vm(0)
    vm.add_slot(0, 0, 128 << 20)
    return vm
"""

PROGRAMS = {
    "waits": """
vm = vm_like_it()
print("ready", flush=True)
while not over():
    pass
""",
    # As a destination that loads: registers, the clock, and then it runs; again and again.
    "acts": """
vm = vm_like_it()
print("ready", flush=True)
clock = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 5 * 10**9
while not over():
    fcntl.ioctl(vm._vcpu, SET_MP_STATE, struct.pack("<I", 0))
    vm._call(SET_CLOCK, struct.pack("<Q40x", clock))
    clock += 2_000_000
    try:
        fcntl.ioctl(vm._vcpu, RUN)
    except OSError:
        pass
""",
    # As its source: the same memory, logged and sent.
    "sends": """
vm = vm_like_it()
bitmap = Bitmap((128 << 20) // PAGE)
def migrate():
    channel = os.open("/dev/null", os.O_WRONLY)
    vm.log(0, on=True)
    print("ready", flush=True)
    while not over():
        vm.get(0, bitmap)
        os.write(channel, bytes(PAGE))
    vm.log(0, on=False)
with ThreadPoolExecutor(1) as thread:
    thread.submit(migrate).result()
""",
}


@contextmanager
def impostor(kind: str) -> Iterator[int]:
    """A process that claims to be the victim, or its destination; yields its pid."""
    claims = ["-name", NAME, "-uuid", UUID, *([] if kind == "sends" else ["-incoming", "defer"])]
    with subprocess.Popen(
        [sys.executable, "-c", COMMON + PROGRAMS[kind], *claims],
        cwd=BENCHMARKS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        assert process.poll() is None
        process.communicate("")
    assert process.returncode == 0


@pytest.mark.parametrize("kinds", [("waits",), ("acts",), ("sends",), ("waits", "acts", "sends")])
def test_a_victims_migration_is_right_or_marked(kinds: tuple[str, ...], tmp_path: Path) -> None:
    with recorded(tmp_path / "r.vft") as migrations, ExitStack() as stack:
        impostors: list[int] = []

        def progress(text: str) -> None:
            # Printed when both QEMUs run, before the migration is requested; the driver waits for this thread.
            if "migrates over" in text:
                impostors.extend(stack.enter_context(impostor(kind)) for kind in kinds)

        truth = run_scenario(SCENARIO, tmp_path, progress)
    assert len(impostors) == len(kinds)
    (attempt,) = truth.attempts
    (found,) = [m for m in migrations if m["vm"]["pid"] == attempt.source_pid]
    stop, resume = (
        next(e.at_ns for e in truth.events if e.name == name and e.pid == pid)
        for name, pid in (("STOP", attempt.source_pid), ("RESUME", attempt.destination_pid))
    )
    assert found["outcome"] == "completed"
    assert found["role"] == "stitched"
    assert found["peer_pid"] == attempt.destination_pid
    assert -LESS_NS < found["downtime"]["vcpu_ns"] - (resume - stop) < MORE_NS
    assert not found["incomplete"]
    # The victim's destination has no migration of its own. What the impostors did is theirs, under the name that they
    # took; a move that one of them claims to have received is in doubt.
    real = {attempt.source_pid, attempt.destination_pid}
    assert attempt.destination_pid not in {m["vm"]["pid"] for m in migrations}
    for m in migrations:
        if m["vm"]["pid"] in impostors:
            assert m["peer_pid"] not in real
            assert m["role"] == "source" or m["contested"], json.dumps(m)[:2000]
