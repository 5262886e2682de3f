# SPDX-License-Identifier: MIT
"""The messages between the reader process and the main process over a socket pair (unix(7), SOCK_SEQPACKET).

A message is a kind, a time, and its content: JSON, or unchanged records. A message longer than `LONGEST` is sent as
several messages of kind MORE and one of its own kind.
"""

import contextlib
import socket
import struct
from enum import IntEnum, auto

import msgspec

from vftrace.faults import Where
from vftrace.model.host import HostInfo

LONGEST = 48 << 10
"""The longest content in bytes: several messages fit into the socket's buffer, whose default is 208 KiB."""
_BUFFER = 4 << 20
_HEAD = struct.Struct("<BxxxxxxxQ")
_SO_SNDBUFFORCE = 32


class Kind(IntEnum):
    """The kinds of messages."""

    START = auto()
    """To the reader: `Start`."""
    CLOSE = auto()
    """To the reader: detach, send the remaining records, end."""
    READY = auto()
    """The probes are attached: `Ready`."""
    FAILED = auto()
    """The reader ends: `Failed`."""
    HOST = auto()
    """`HostInfo`: a probe's status changed."""
    FAULTS = auto()
    """`Faults`: an error was contained in the reader."""
    RECORDS = auto()
    """Records; the message's time is when the reader took them."""
    MORE = auto()
    """The first part of the next message."""
    END = auto()
    """All records have been sent."""


class Start(msgspec.Struct, frozen=True):
    """How the reader is to trace: `LiveSource`'s arguments, and the user it becomes."""

    way: str | None
    profiles: tuple[str, ...]
    guest_memory: int | None
    user: str | None


class Ready(msgspec.Struct, frozen=True):
    """The traced host, and the reason if mailboxes cannot be traced there."""

    host: HostInfo
    mailbox_refused: str | None


class Failed(msgspec.Struct, frozen=True):
    """An error for the user: its class by name (errors.py), its message, and its fix."""

    error: str
    message: str
    fix: str | None


class Faults(msgspec.Struct, frozen=True):
    """How many errors the reader has contained, by place, and the lines about new ones."""

    counts: dict[Where, int]
    said: tuple[str, ...]


Content = Start | Ready | Failed | Faults | HostInfo
_CONTENTS: dict[Kind, type[Content]] = {
    Kind.START: Start,
    Kind.READY: Ready,
    Kind.FAILED: Failed,
    Kind.FAULTS: Faults,
    Kind.HOST: HostInfo,
}


class Message(msgspec.Struct, frozen=True):
    """A whole message."""

    kind: Kind
    at_ns: int
    data: bytes

    def content(self) -> Content:
        """Decode the JSON content. Raises msgspec.MsgspecError for any other JSON."""
        return msgspec.json.decode(self.data, type=_CONTENTS[self.kind])


class Link:
    """One end of the socket pair. Both sides may wait for its `fileno`."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        for option in (socket.SO_SNDBUF, _SO_SNDBUFFORCE):
            # The plain option is capped by net.core.wmem_max; CAP_NET_ADMIN may pass it.
            with contextlib.suppress(PermissionError):
                end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._unsent: list[bytes] = []
        self._begun = b""
        self._buffer = bytearray(_HEAD.size + LONGEST)

    def fileno(self) -> int:
        """Return the socket's fd."""
        return self._socket.fileno()

    @property
    def busy(self) -> bool:
        """Whether messages wait until the other side has read earlier ones."""
        return bool(self._unsent)

    def send(self, kind: Kind, data: bytes = b"", at_ns: int = 0) -> None:
        """Send a message now, or with the next `flush`. Raises OSError if the other side has ended."""
        first = 0
        while len(data) - first > LONGEST:
            self._unsent.append(_HEAD.pack(Kind.MORE, at_ns) + data[first : first + LONGEST])
            first += LONGEST
        self._unsent.append(_HEAD.pack(kind, at_ns) + data[first:])
        self.flush()

    def send_content(self, kind: Kind, content: Content, at_ns: int = 0) -> None:
        """Send content as JSON; `at_ns` as in `send`."""
        self.send(kind, msgspec.json.encode(content), at_ns)

    def flush(self) -> bool:
        """Send the waiting messages; returns whether all are sent. Raises OSError if the other side has ended."""
        sent = 0
        try:
            for message in self._unsent:
                self._socket.send(message, socket.MSG_NOSIGNAL)
                sent += 1
        except BlockingIOError:
            return False
        finally:
            del self._unsent[:sent]
        return True

    def receive(self) -> Message | None:
        """Return a whole message; None if none has arrived. Raises EOFError if the other side has ended."""
        while True:
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return None
            except ConnectionError as error:
                raise EOFError from error
            if size < _HEAD.size:
                raise EOFError
            kind, at_ns = _HEAD.unpack_from(self._buffer)
            data = bytes(memoryview(self._buffer)[_HEAD.size : size])
            if self._begun:
                data = self._begun + data
            if kind == Kind.MORE:
                self._begun = data
                continue
            self._begun = b""
            return Message(Kind(kind), at_ns, data)

    def next_at_ns(self) -> int | None:
        """Return the time of the message that would be received next; None without one. Any thread may call this."""
        try:
            head = self._socket.recv(_HEAD.size, socket.MSG_PEEK)
        except OSError:
            return None
        return None if len(head) < _HEAD.size else int(_HEAD.unpack(head)[1])

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
