# SPDX-License-Identifier: MIT
"""rtnetlink notifications from bytes, laid out as include/uapi/linux has them; and from this machine's kernel."""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from vftrace.host.netlink import Learned, LinkState, parse, tap_owner

NEWLINK, DELLINK, NEWNEIGH, DELNEIGH, NEWADDR = 16, 17, 28, 29, 20
UP, LOWER_UP = 0x1, 0x10000
PERMANENT, REACHABLE = 0x80, 0x02


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link(kind: int, *, index: int = 7, flags: int = 0, master: int | None = None) -> bytes:
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 1, index, flags, 0)
    body += attribute(3, b"tap0\0") + attribute(1, bytes.fromhex("020000000001"))
    return message(kind, body + (attribute(10, struct.pack("=I", master)) if master else b""))


def neighbour(kind: int, *, family: int = socket.AF_BRIDGE, state: int = REACHABLE) -> bytes:
    body = struct.pack("=BxxxiHBB", family, 7, state, 0, 0)
    body += attribute(2, bytes.fromhex("5254000f0009")) + attribute(9, struct.pack("=I", 5))
    return message(kind, body)


def test_an_interface_with_its_bridge() -> None:
    (found,) = parse(link(NEWLINK, flags=UP | LOWER_UP, master=5))
    assert found == LinkState(7, "tap0", "02:00:00:00:00:01", 5, up=True, carrier=True, gone=False)


def test_an_interface_that_was_removed() -> None:
    (found,) = parse(link(DELLINK, flags=UP))
    assert found == LinkState(7, "tap0", "02:00:00:00:00:01", 0, up=True, carrier=False, gone=True)


def test_an_address_that_a_bridge_received_and_forgot() -> None:
    found = list(parse(neighbour(NEWNEIGH) + neighbour(DELNEIGH)))
    assert found == [
        Learned("52:54:00:0f:00:09", 7, 5, False),
        Learned("52:54:00:0f:00:09", 7, 5, True),
    ]


def test_what_is_no_bridges_or_its_own_is_left_out() -> None:
    others = neighbour(NEWNEIGH, family=socket.AF_INET) + neighbour(NEWNEIGH, state=PERMANENT)
    assert list(parse(others + message(NEWADDR, b"\0" * 8))) == []


@pytest.mark.parametrize("cut", [1, 15, 17, 40])
def test_a_cut_message_ends_the_datagram(cut: int) -> None:
    whole = link(NEWLINK)
    assert list(parse(whole + link(NEWLINK)[:cut])) == list(parse(whole))


def test_a_length_of_nothing_ends_it_too() -> None:
    assert list(parse(struct.pack("=IHHII", 0, NEWLINK, 0, 0, 0) + b"\0" * 64)) == []


LISTEN = """
import subprocess, time
from vftrace.host.netlink import LinkState, Listener
listener = Listener()
subprocess.run(["ip", "tuntap", "add", "vft0", "mode", "tap"], check=True)
subprocess.run(["ip", "link", "set", "vft0", "up"], check=True)
subprocess.run(["ip", "link", "del", "vft0"], check=True)
time.sleep(0.1)
for each in listener.read():
    if isinstance(each, LinkState):
        print(each.name, each.up, each.gone)
"""


@pytest.mark.needs("root", "ip", "unshare")
def test_the_kernel_reports_an_interface() -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", LISTEN],
        capture_output=True,
        text=True,
        check=True,
    )
    told = list(dict.fromkeys(done.stdout.splitlines()))
    assert told[0] == "vft0 False False"
    assert "vft0 True False" in told
    assert told[-1].endswith("True"), told


@pytest.mark.needs("root")
def test_a_tap_has_an_owner() -> None:
    if not Path("/dev/net/tun").exists():
        pytest.skip("no /dev/net/tun")
    held = (
        "import fcntl, os, struct\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
        "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH14x', b'vft1', 0x1002))\n"
        "print('ready', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", held],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert tap_owner("vft1", [os.getpid(), process.pid]) == process.pid
        assert tap_owner("vft", [process.pid]) is None
        process.kill()
