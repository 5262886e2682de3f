# SPDX-License-Identifier: MIT
"""Who a VMM is, from command lines as QEMU's manual, libvirt and people write them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vftrace.demo import libvirt
from vftrace.host import processes
from vftrace.host.processes import Identity, identity_of

UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
QEMU = "/usr/bin/qemu-system-x86_64"


# As libvirt 9 writes it (src/qemu/qemu_command.c), shortened to what matters and what could mislead.
LIBVIRT = [
    QEMU,
    *("-name", "guest=web-1,debug-threads=on"),
    "-S",
    *("-object", '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/var/lib/key"}'),
    *("-machine", "pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram"),
    *("-accel", "kvm"),
    *("-uuid", UUID),
    "-no-user-config",
    *("-chardev", "socket,id=charmonitor,fd=23,server=on,wait=off"),
    *("-smbios", "type=1,uuid=11111111-2222-3333-4444-555555555555"),
    *("-netdev", '{"type":"tap","fd":"24","id":"hostnet0","name":"not-this"}'),
    *("-incoming", "defer"),
    *("-msg", "timestamp=on"),
]


def test_libvirts_command_line() -> None:
    assert identity_of(LIBVIRT) == Identity(UUID, "web-1", "qemu-system-x86_64", True, True)


def test_the_demos_own_like_libvirt(tmp_path: Path) -> None:
    arguments = libvirt.arguments("demo", UUID, tmp_path / "rom", tmp_path, 128, incoming=True)
    found = identity_of([QEMU, *arguments])
    assert (found.uuid, found.name, found.incoming, found.started_paused) == (
        *(UUID, "demo"),
        *(True, True),
    )


@pytest.mark.parametrize(
    ("option", "name"),
    [
        (["-name", "web"], "web"),
        (["-name", "web,process=qemu-web"], "web"),
        (["-name", "guest=web"], "web"),
        (["-name", "debug-threads=on,guest=web"], "web"),
        (["--name", "guest=web"], "web"),
        (["-name", "guest=a,,b,debug-threads=on"], "a,b"),
        (["-name", "a,,b"], "a,b"),
        (["-name", "guest=a=b"], "a=b"),
        # What QEMU 7.2 answers to query-name: it takes no JSON here, and two commas before any `=` are a name's.
        (["-name", "a,,b=c"], "a,b=c"),
        (["-name", "{no json"], "{no json"),
        (["-name", '{"guest":7}'], '{"guest":7}'),
        (["-name", "guest={x,debug-threads=on"], "{x"),
        (["-name", "first", "-name", "guest=second"], "second"),
        (["-name", "guest=ünï code"], "ünï code"),
        (["-name", "guest=\x1b[2Jgone\n"], "�[2Jgone�"),
        (["-name", "debug-threads=on"], None),
        (["-name", "guest="], None),
        (["-name", ""], None),
        (["-name", '["guest"]'], '["guest"]'),
        (["-name"], None),
        ([], None),
    ],
)
def test_name(option: list[str], name: str | None) -> None:
    assert identity_of([QEMU, *option]).name == name


@pytest.mark.parametrize(
    ("option", "uuid"),
    [
        (["-uuid", UUID], UUID),
        (["--uuid", UUID], UUID),
        (["-uuid", UUID.upper()], UUID),
        (["-smbios", f"type=1,uuid={UUID}"], UUID),
        (["-smbios", f"type=1,manufacturer=Acme,,Inc,uuid={UUID},serial=1"], UUID),
        (["-smbios", "type=0,vendor=x", "-smbios", f"type=1,uuid={UUID}"], UUID),
        # QEMU takes -uuid for SMBIOS too, unless type 1 has its own (hw/smbios/smbios.c).
        (["-smbios", "type=1,uuid=11111111-2222-3333-4444-555555555555", "-uuid", UUID], UUID),
        (["-uuid", "00000000-0000-0000-0000-000000000000"], None),
        (["-uuid", "no-uuid"], None),
        (["-uuid", f"{UUID}0"], None),
        (["-smbios", f"file=/tmp/{UUID}"], None),
        (["-uuid"], None),
        ([], None),
    ],
)
def test_uuid(option: list[str], uuid: str | None) -> None:
    assert identity_of([QEMU, *option]).uuid == uuid


@pytest.mark.parametrize(
    ("option", "incoming", "paused"),
    [
        ([], False, False),
        (["-incoming", "tcp:0:4444"], True, False),
        (["-incoming", '{"channel-type":"main"}'], True, False),
        (["--incoming", "defer", "--S"], True, True),
        (["-S"], False, True),
        (["-s"], False, False),
    ],
)
def test_how_it_was_started(option: list[str], incoming: bool, paused: bool) -> None:
    found = identity_of([QEMU, *option])
    assert (found.incoming, found.started_paused) == (incoming, paused)


@pytest.mark.parametrize(
    ("argv", "vmm"),
    [
        (["/usr/libexec/qemu-kvm"], "qemu-kvm"),
        (["cloud-hypervisor", "--kernel", "x"], "cloud-hypervisor"),
        (["firecracker"], "firecracker"),
        (["/tmp/\x1b]0;x"], "�]0;x"),
        ([""], "unknown"),
        ([], "unknown"),
    ],
)
def test_any_executable(argv: list[str], vmm: str) -> None:
    assert identity_of(argv).vmm == vmm


WORD = st.sampled_from(["-name", "-uuid", "-smbios", "-incoming", "-S", QEMU]) | st.text(
    max_size=20
)


@given(st.lists(WORD, max_size=8))
def test_no_command_line_is_too_strange(argv: list[str]) -> None:
    found = identity_of(argv)
    assert found.uuid is None or len(found.uuid) == 36


# -- /proc ------------------------------------------------------------------------------------------


def test_a_process_of_our_own() -> None:
    program = "print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, "-name", "guest=me", "a b"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    # Its command line is there once it runs.
    child.stdout.readline()
    try:
        argv = processes.command_line(child.pid)
        assert argv[1:] == ["-c", program, "-name", "guest=me", "a b"]
        assert identity_of(argv).name == "me"
        start = processes.start_time(child.pid)
        assert start is not None
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        assert abs(uptime - start / os.sysconf("SC_CLK_TCK")) < 30
        assert child.pid not in set(processes.vmm_pids())
        assert list(processes.threads_in_kvm_run(child.pid)) == []
        child.kill()
        # It stays as a zombie until it is waited for, and a zombie is no more.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.start_time(child.pid) is None
    finally:
        child.kill()
        child.communicate()
    assert processes.command_line(child.pid) == []
    assert processes.start_time(child.pid) is None


def _fake(root: Path, pid: int, *, syscall: str, comm: str, stat: str = "") -> None:
    task = root / str(pid) / "task" / str(pid)
    task.mkdir(parents=True)
    (task / "syscall").write_text(syscall)
    (task / "comm").write_text(comm + "\n")
    (root / str(pid) / "stat").write_text(stat)


def test_threads_in_kvm_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/PID/task/TID/syscall: ioctl's second argument, or `running` under a vCPU's name."""
    monkeypatch.setattr(processes, "PROC", tmp_path)
    _fake(tmp_path, 1, syscall="16 0xd 0xae80 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n", comm="anything")
    _fake(tmp_path, 2, syscall="16 0xd 0xae81 0x0 0x0 0x0 0x0 0x7ffc 0x7f00\n", comm="CPU 0/KVM")
    _fake(tmp_path, 3, syscall="running\n", comm="CPU 0/KVM")
    _fake(tmp_path, 4, syscall="running\n", comm="worker")
    _fake(tmp_path, 5, syscall="-1 0x7ffc 0x7f00\n", comm="CPU 0/KVM")
    found = [list(processes.threads_in_kvm_run(pid)) for pid in range(1, 7)]
    assert found == [[1], [], [3], [], [], []]


def test_a_command_with_brackets_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field 2 of stat is free text (fs/proc/array.c, do_task_stat)."""
    monkeypatch.setattr(processes, "PROC", tmp_path)
    fields = ["S", *(str(number) for number in range(4, 53))]
    _fake(tmp_path, 9, syscall="", comm="x", stat=f"9 (a) 5 (b)) {' '.join(fields)}\n")
    assert processes.start_time(9) == 22


# SYS_exit ends the calling thread only.
FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


def test_a_process_lives_on_in_its_other_threads() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FIRST_THREAD_ENDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        start = processes.start_time(child.pid)
        assert child.stdout.readline() == "ready\n"
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
            pass
        assert processes.start_time(child.pid) == start
        child.kill()
        child.stdin.close()
    assert processes.start_time(child.pid) is None


@pytest.mark.needs("qemu")
def test_a_qemu_that_emulates_is_found() -> None:
    command = [*("qemu-system-x86_64", "-accel", "tcg", "-S", "-nodefaults", "-display", "none")]
    qemu = subprocess.Popen(
        [*command, "-qmp", "stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert qemu.stdout is not None
        qemu.stdout.readline()  # QMP's greeting: it has set itself up
        assert qemu.pid in set(processes.qemu_pids())
    finally:
        qemu.kill()
        qemu.communicate()
    assert qemu.pid not in set(processes.qemu_pids())
