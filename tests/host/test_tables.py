# SPDX-License-Identifier: MIT
"""The kernel side's tables: hundreds of channels are exact, what has ended leaves no entry, and what does not fit is
counted."""

import json
import os
import resource
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.pumping import until
from tests.kernel_tables import WHILE_TRACED, entries, vms_of
from vftrace.collect.live import LiveSource
from vftrace.collect.pump import Pump
from vftrace.probes.tables import BY_THREAD, BY_VM

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHANNELS, OTHER_FDS = 255, 300

# Each line on stdin is an order. A channel is /dev/null, opened again each time.
VMM = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from kvmslots import GIB, PAGE, Bitmap, Vm

def null():
    return os.open("/dev/null", os.O_WRONLY)

def migrate(vm, bitmap, channels):
    main, others = null(), [null() for _ in range(channels)]
    vm.log(0, on=True)
    os.write(main, bytes(16))
    sent = 16
    for number in range(3):
        vm.get(0, bitmap)
        sent += os.write(main, bytes(PAGE))
        # as QEMU's multifd: each channel has a thread of its own
        threads = [Thread(target=os.write, args=(fd, bytes(1000 + number))) for fd in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sent += channels * (1000 + number)
    vm.log(0, on=False)
    for fd in (main, *others):
        os.close(fd)
    return sent

def life():
    child = os.fork()
    if not child:
        with Vm(0) as vm:
            vm.add_slot(0, 4 * GIB, GIB)
            migrate(vm, Bitmap(GIB // PAGE), 3)
        os._exit(0)
    os.waitpid(child, 0)

with Vm(0) as vm:
    bitmap = Bitmap(GIB // PAGE)
    vm.add_slot(0, 4 * GIB, GIB)
    print("ready", flush=True)
    kept = []
    for line in sys.stdin:
        what, count, channels = line.split()
        done = 0
        for _ in range(int(count)):
            if what == "write":
                kept.append(null())
                os.write(kept[-1], bytes(100))
            elif what == "life":
                life()
            else:
                # as QEMU: a thread of its own for each
                with ThreadPoolExecutor(1) as thread:
                    done += thread.submit(migrate, vm, bitmap, int(channels)).result()
        print(json.dumps(done), flush=True)
"""


class Machine:
    """A VMM that obeys, and a tracer that came later."""

    def __init__(self) -> None:
        self.vmm = subprocess.Popen(
            [sys.executable, "-c", VMM],
            cwd=BENCHMARKS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready\n"
        self.source = LiveSource()
        self.pump = Pump(self.source)
        self.steps(5)

    def order(self, what: str, count: int = 1, channels: int = 0) -> int:
        """Have the VMM do something; what it sent."""
        assert self.vmm.stdin is not None
        assert self.vmm.stdout is not None
        self.vmm.stdin.write(f"{what} {count} {channels}\n")
        self.vmm.stdin.flush()
        answers: list[str] = []

        reader = threading.Thread(target=lambda: answers.append(self._answer()))
        reader.start()
        until(self.pump, lambda: not reader.is_alive())
        self.steps(20)
        return int(json.loads(answers[0]))

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.pump.step()

    def entries(self) -> dict[str, int]:
        """By table: entries but those of other VMs that live on this host."""
        tables = self.source.probes._tables
        others = tables._ids()
        others.pop(self.vmm.pid, None)
        found = {}
        for name in BY_VM:
            found[name] = self._count(name, slice(0, 4), set(others.values()))
        for name in BY_THREAD:
            found[name] = self._count(name, slice(4, 8), set(others))
        found["vms"] = self._count("vms", slice(0, 4), set(others))
        del found["deleted_channels"]
        return found

    def _count(self, table: str, owner: slice, others: set[int]) -> int:
        keys = (key for key, _ in self.source.probes._bpf.raw(table).items())
        return sum(int.from_bytes(key[owner], "little") not in others for key in keys)

    def every_table(self) -> Counter[str]:
        """By table of every object that is loaded: entries but those of other VMs that live on this host, and of what
        is traced for half a minute longer (tests/leftovers.py waits for that)."""
        others = vms_of(os.getpid()) - {self.vmm.pid}
        found = entries(os.getpid(), {pid for pid in others if Path(f"/proc/{pid}").exists()})
        return Counter({name: n for name, n in found.items() if name not in WHILE_TRACED})

    def close(self) -> None:
        self.vmm.kill()
        self.vmm.wait()
        self.pump.close()

    def _answer(self) -> str:
        assert self.vmm.stdout is not None
        return self.vmm.stdout.readline()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        yield made
    finally:
        made.close()


def test_255_channels_of_a_vm_that_has_written_on_300_fds(machine: Machine) -> None:
    machine.order("write", OTHER_FDS)
    sent = [machine.order("migrate", channels=CHANNELS) for _ in range(2)]
    found = [m for m in machine.pump.snapshot().migrations if m.pid == machine.vmm.pid]
    assert [m.channel.bytes for m in found] == sent
    assert machine.source.probes.uncounted() == {}
    assert not any(machine.source.probes.full().values())


def test_what_has_ended_leaves_no_entry(machine: Machine) -> None:
    """20 migrations of a VM that lives on, each on fds that it then closes, and 100 VMs that live and end."""
    machine.order("write", 1)
    machine.order("migrate")
    until(machine.pump, lambda: machine.entries()["channels"] == 2)
    before = machine.every_table()
    machine.order("migrate", 19, channels=5)
    machine.order("life", 100)
    machine.order("migrate")
    until(machine.pump, lambda: machine.every_table() == before)
    # One VM with one slot, which has written on stdout and on the fd that it kept.
    left = {"vms": 1, "slot_pages": 1, "channels": 2, "touched": 0, "threads": 0, "sending": 0}
    until(machine.pump, lambda: machine.entries() == left)
    found = [m for m in machine.pump.snapshot().migrations if m.pid == machine.vmm.pid]
    assert len(found) == 21
    assert len({m.channel.bytes for m in found[1:20]}) == 1


def test_more_fds_than_a_vm_may_have_are_counted(machine: Machine) -> None:
    """What the limit in bpf/common.h leaves out is counted by table and by process."""
    limit = 1024

    soft, hard = resource.prlimit(machine.vmm.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(machine.vmm.pid, resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    machine.order("write", limit + 50)
    probes = machine.source.probes
    assert probes.full()["channels"] == probes.uncounted()[machine.vmm.pid] >= 50
    assert machine.entries()["channels"] == limit
    full = (("channels", probes.full()["channels"]),)
    until(machine.pump, lambda: machine.pump.snapshot().tables_full == full)
