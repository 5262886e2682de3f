# SPDX-License-Identifier: MIT
"""The socket pair between the reader and the main process."""

import socket
from collections.abc import Iterator

import pytest

from vftrace.collect.messages import LONGEST, Content, Failed, Kind, Link, Message, Ready, Start
from vftrace.model.host import HostInfo, ProbeStatus

HOST = HostInfo("hv-1", "boot", "6.12", "1.0", 7, (ProbeStatus("ioctl", "kprobe"),), ("profile",))


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    ends = [Link(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
    yield ends[0], ends[1]
    for end in ends:
        end.close()


def test_contents_arrive_as_they_were(links: tuple[Link, Link]) -> None:
    here, there = links
    contents: dict[Kind, Content] = {
        Kind.START: Start("kprobe", ("a", "b"), None, "nobody"),
        Kind.READY: Ready(HOST, "refused"),
        Kind.FAILED: Failed("MachineError", "no", "a fix"),
        Kind.HOST: HOST,
    }
    for kind, content in contents.items():
        here.send_content(kind, content)
    for kind, content in contents.items():
        message = there.receive()
        assert message is not None
        assert (message.kind, message.content()) == (kind, content)
    assert there.receive() is None


@pytest.mark.parametrize("size", [0, 1, LONGEST, LONGEST + 1, 30 * LONGEST + 5])
def test_a_message_of_any_length_is_one(links: tuple[Link, Link], size: int) -> None:
    here, there = links
    data = bytes(n % 251 for n in range(size))
    here.send(Kind.RECORDS, data, 42)
    here.send(Kind.CLOSE)
    got: list[Message] = []
    while len(got) < 2:
        here.flush()
        message = there.receive()
        got += [message] if message else []
    assert got == [Message(Kind.RECORDS, 42, data), Message(Kind.CLOSE, 0, b"")]


def test_what_is_not_taken_waits(links: tuple[Link, Link]) -> None:
    here, there = links
    count = 0
    while here.flush():
        here.send(Kind.RECORDS, bytes(LONGEST), count)
        count += 1
    assert here.busy
    assert [m.at_ns for m in iter(there.receive, None)] == list(range(count - 1))
    assert here.flush()
    assert there.next_at_ns() == count - 1
    assert there.next_at_ns() == count - 1
    message = there.receive()
    assert message is not None
    assert message.at_ns == count - 1
    assert there.next_at_ns() is None


def test_the_other_side_has_gone(links: tuple[Link, Link]) -> None:
    here, there = links
    here.send(Kind.END)
    here.close()
    message = there.receive()
    assert message is not None
    assert message.kind is Kind.END
    with pytest.raises(EOFError):
        there.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        there.send(Kind.CLOSE)
