# SPDX-License-Identifier: MIT
"""Whose VM is it: pids that are used again, an exec, a fork, and fds that other processes hold."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.host.pumping import until
from vftrace.collect.live import LiveSource
from vftrace.collect.pump import Pump
from vftrace.model.migration import Migration

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KIB = 1024

# Each program's own account is the truth. GET_DIRTY_LOG of a VM that does not protect manually returns and clears.
COMMON = """
import array, errno, json, os, socket, sys
from concurrent.futures import ThreadPoolExecutor
from kvmslots import GIB, PAGE, Bitmap, Vm

FIRST = 4 * GIB // PAGE
bitmap = Bitmap(GIB // PAGE)

def new_vm():
    vm = Vm(0)
    vm.add_slot(0, FIRST * PAGE, GIB)
    return vm

def begin(vm):
    channel = os.open("/dev/null", os.O_WRONLY)
    vm.log(0, on=True)
    os.write(channel, bytes(16))
    vm.get(0, bitmap)
    os.write(channel, bytes(PAGE))
    return channel

def end(vm, channel, pages, size):
    vm.dirty(FIRST + number for number in range(pages))
    vm.get(0, bitmap)
    assert bitmap.count() == pages
    os.write(channel, bytes(size))
    vm.log(0, on=False)
    os.close(channel)
    return {"pid": os.getpid(), "pages": pages, "bytes": 16 + PAGE + size}

# As in a VMM: one thread from begin to end, and not the vCPU's.
thread = None

def in_thread(what, *arguments):
    global thread
    thread = thread or ThreadPoolExecutor(1)
    return thread.submit(what, *arguments).result()

def migrate(vm, pages, size):
    return in_thread(lambda: end(vm, begin(vm), pages, size))

def refused(vm):
    # KVM serves the memory of the process that made the VM, and no other (kvm_vm_ioctl, kvm->mm).
    try:
        vm.get(0, bitmap)
    except OSError as error:
        return error.errno == errno.EIO
    return False
"""

LIFE = (
    COMMON
    + """
pages, size = map(int, sys.argv[1:3])
print(json.dumps(migrate(new_vm(), pages, size)), flush=True)
"""
)

EXEC = (
    COMMON
    + """
if sys.argv[1] == "first":
    vm = new_vm()
    in_thread(begin, vm)
    sys.stdin.readline()
    os.set_inheritable(vm._fd, True)
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], str(vm._fd), sys.argv[2], "-name", "second"])
old = Vm.__new__(Vm)
old._fd = int(sys.argv[1])
assert refused(old)
print(json.dumps(migrate(new_vm(), 40, 300_000)), flush=True)
"""
)

FORK = (
    COMMON
    + """
vm = new_vm()
channel = in_thread(begin, vm)
child = os.fork()
if not child:
    thread = None
    assert refused(vm)
    os.write(channel, bytes(1 << 20))
    print(json.dumps(migrate(new_vm(), 11, 50_000)), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(json.dumps(in_thread(end, vm, channel, 30, 200_000)), flush=True)
"""
)

PASSED = (
    COMMON
    + """
ours, theirs = socket.socketpair()
if os.fork():
    theirs.close()
    vm = new_vm()
    channel = in_thread(begin, vm)
    fds = array.array("i", [vm._fd, channel])
    ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    assert ours.recv(1) == b"x"
    print(json.dumps(in_thread(end, vm, channel, 30, 200_000)), flush=True)
    os._exit(0)
ours.close()
own = new_vm()
_, ((_, _, data),), _, _ = theirs.recvmsg(1, 64)
fds = array.array("i", data)
other = Vm.__new__(Vm)
other._fd = fds[0]
assert in_thread(refused, other)
os.write(fds[1], bytes(1 << 20))
theirs.send(b"x")
while theirs.recv(1):  # until the other has ended
    pass
assert refused(other)
print(json.dumps(migrate(own, 11, 50_000)), flush=True)
"""
)


@pytest.fixture(scope="module")
def pump() -> Iterator[Pump]:
    made = Pump(LiveSource())
    try:
        yield made
    finally:
        made.close()


def is_known(pump: Pump, pid: int) -> bool:
    return any(vm.pid == pid and vm.vmm for vm in pump.snapshot().vms)


def run(pump: Pump, program: str, *arguments: str) -> list[dict[str, Any]]:
    """What the processes of a program say they did."""
    command = [sys.executable, "-c", program, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=BENCHMARKS, stdin=pipe, stdout=pipe) as child:
        # Who it is has to be read before it is something else.
        until(pump, lambda: child.poll() is not None or is_known(pump, child.pid))
        assert child.stdin is not None
        child.stdin.close()
        until(pump, lambda: child.poll() is not None)
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
    assert child.returncode == 0
    return [json.loads(line) for line in lines]


def migrations_of(pump: Pump, pids: Sequence[int], count: int) -> list[Migration]:
    """Return the migrations of these processes in order of time, once `count` have ended; there are no more."""

    def found() -> list[Migration]:
        mine = [m for m in pump.snapshot().migrations if m.pid in pids]
        return sorted(mine, key=lambda m: m.started_at_ns)

    until(pump, lambda: sum(m.ended_at_ns is not None for m in found()) >= count)
    for _ in range(10):
        pump.step()
    assert len(found()) == count
    return found()


def check(found: Migration, truth: dict[str, Any]) -> None:
    """Its figures are those of the process itself."""
    assert found.pid == truth["pid"]
    assert found.channel.bytes == truth["bytes"]
    assert found.rounds[-1].new_pages == truth["pages"]
    assert not found.incomplete


class _CloneArguments(ctypes.Structure):
    """struct clone_args (include/uapi/linux/sched.h)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size"),
            *("tls", "set_tid", "set_tid_size", "cgroup"),
        )
    ]


def spawn_as(pid: int, command: list[str], output: Path) -> None:
    """Begin a process under a pid that is free (clone3 with set_tid)."""
    wanted = ctypes.c_int32(pid)
    arguments = _CloneArguments(exit_signal=17, set_tid=ctypes.addressof(wanted), set_tid_size=1)
    libc = ctypes.CDLL(None, use_errno=True)
    made = libc.syscall(435, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if made == 0:
        os.chdir(BENCHMARKS)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
        os.execv(command[0], command)
    if made != pid:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.needs("root")
def test_a_pid_that_is_used_again_is_another_vm(pump: Pump, tmp_path: Path) -> None:
    """Each life follows the one before at once."""
    lives = [(5 + 7 * number, 50_000 * (number + 1)) for number in range(4)]
    (first,) = run(pump, LIFE, "3", "1000", "-name", "life-3")
    truths = [first]
    for pages, size in lives:
        arguments = (str(pages), str(size), "-name", f"life-{pages}")
        spawn_as(first["pid"], [sys.executable, "-c", LIFE, *arguments], tmp_path / "said")
        until(pump, lambda: os.waitpid(first["pid"], os.WNOHANG) != (0, 0))
        truths.append(json.loads((tmp_path / "said").read_bytes()))
    found = migrations_of(pump, [first["pid"]], len(truths))
    for each, truth in zip(found, truths, strict=True):
        check(each, truth)
        # None if it ended before a busy reader looked at it.
        assert each.name in (None, f"life-{truth['pages']}")


def test_an_exec_in_the_middle_of_a_migration_ends_it(pump: Pump) -> None:
    """The VM's memory ends with the program that made it; the next program has another VM."""
    (second,) = run(pump, EXEC, "first", EXEC, "-name", "first")
    found = migrations_of(pump, [second["pid"]], 2)
    assert [m.name for m in found] == ["first", "second"]
    assert found[0].outcome not in (None, "completed")
    assert found[0].channel.bytes == 16 + 4096
    check(found[1], second)


def test_a_fork_has_no_part_in_its_parents_migration(pump: Pump) -> None:
    child, parent = run(pump, FORK)
    found = {m.pid: m for m in migrations_of(pump, [child["pid"], parent["pid"]], 2)}
    check(found[parent["pid"]], parent)
    check(found[child["pid"]], child)


def test_a_vm_whose_fd_another_process_holds_is_not_its(pump: Pump) -> None:
    """It outlives its own process there, and KVM serves neither of them any more."""
    first, second = run(pump, PASSED)
    found = migrations_of(pump, [first["pid"], second["pid"]], 2)
    check(found[0], first)
    check(found[1], second)
