# SPDX-License-Identifier: MIT
"""Capabilities, no_new_privs, users and socket families, each in a process that is used up by it."""

import os
import pwd
import subprocess
import sys

import pytest

from vftrace.errors import UsageError
from vftrace.host import privileges

SHOW = """
from pathlib import Path
def show(*names):
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    found = dict(line.split(":\\t", 1) for line in lines)
    print(*(found[name].strip() for name in names))
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"from vftrace.host import privileges\n{SHOW}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_is_kept() -> None:
    out = run(
        "privileges.keep_only(()); show('CapPrm', 'CapEff', 'CapInh', 'CapAmb', 'NoNewPrivs')"
    )
    assert out.split() == ["0000000000000000"] * 4 + ["1"]


@pytest.mark.needs("root")
def test_what_is_named_is_kept_and_inherited() -> None:
    code = """
import subprocess
privileges.keep_only((privileges.CAP_SYS_PTRACE, privileges.CAP_BPF))
show('CapPrm')
subprocess.run(["grep", "CapEff", "/proc/self/status"], check=True)
"""
    wanted = f"{1 << privileges.CAP_SYS_PTRACE | 1 << privileges.CAP_BPF:016x}"
    # The child writes at once, this process when it ends.
    assert sorted(run(code).split()) == sorted([wanted, "CapEff:", wanted])


@pytest.mark.needs("root")
def test_nothing_is_gained_again() -> None:
    """Not by root's id, which gives all capabilities to a program that is executed, and not by asking."""
    code = """
import os, subprocess
from vftrace.errors import VftraceError
privileges.keep_only(())
assert os.geteuid() == 0
subprocess.run(["grep", "CapEff", "/proc/self/status"], check=True)
try:
    privileges._capset(1, 1, 0)
except VftraceError as error:
    print(error)
"""
    out = run(code)
    assert "CapEff:\t0000000000000000" in out
    assert "Operation not permitted" in out


@pytest.mark.needs("root")
def test_root_becomes_a_user_with_the_capabilities_that_are_named() -> None:
    nobody = pwd.getpwnam("nobody")
    out = run(
        "privileges.keep_only((privileges.CAP_BPF,), 'nobody')\n"
        "show('Uid', 'Gid', 'CapEff', 'CapAmb', 'Groups')\n"
    )
    words = out.split()
    assert set(words[:4]) == {str(nobody.pw_uid)}
    assert set(words[4:8]) == {str(nobody.pw_gid)}
    assert words[8:10] == [f"{1 << privileges.CAP_BPF:016x}"] * 2
    assert "0" not in words[10:]


@pytest.mark.needs("root")
def test_an_unprivileged_user_sees_its_own_files() -> None:
    """A change of user makes a process undumpable; its own metrics count the files in /proc/self/fd."""
    assert (
        int(
            run(
                "import os\nprivileges.keep_only((), 'nobody')\nprint(len(os.listdir('/proc/self/fd')))"
            )
        )
        > 2
    )


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="there is no user 'no-such-user'"):
        privileges.keep_only((), "no-such-user")


@pytest.mark.needs("root")
def test_only_root_changes_the_user() -> None:
    code = """
import os
from vftrace.errors import UsageError
os.setresuid(65534, 65534, 65534)
try:
    privileges.keep_only((), "daemon")
except UsageError as error:
    print(error)
"""
    assert run(code) == "only root can change to the user 'daemon'"


@pytest.mark.needs("root")
def test_suspended_rights_come_back() -> None:
    code = """
show('CapEff')
with privileges.suspended():
    show('CapEff')
show('CapEff')
"""
    before, during, after = run(code).split()
    assert before == after
    assert int(during, 16) == 0 < int(before, 16)


def test_no_socket_of_the_internet_is_opened() -> None:
    code = """
import errno, socket
privileges.keep_only(())
assert privileges.deny_internet()
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET, socket.AF_VSOCK):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        print(errno.errorcode[error.errno])
for family in (socket.AF_UNIX, socket.AF_NETLINK):
    socket.socket(family, socket.SOCK_DGRAM).close()
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(256)
assert libc.syscall(425, 8, buffer) == -1  # io_uring_setup(2)
print(errno.errorcode[ctypes.get_errno()])
"""
    assert run(code).split() == ["EAFNOSUPPORT"] * 5


def test_the_filter_knows_this_machine() -> None:
    assert os.uname().machine in privileges._SYSTEM_CALLS
