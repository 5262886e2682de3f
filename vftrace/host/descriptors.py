# SPDX-License-Identifier: MIT
"""Describes an fd of a process: a TCP connection and its peer, a unix socket, a pipe and the program at its other end,
a file. Finds out from a VMM's command line and inherited fds what it loads its state from."""

import ipaddress
import json
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vftrace.host import processes
from vftrace.host.processes import MAX_PATH, printable

PROC = Path("/proc")


class Descriptor(msgspec.Struct, frozen=True):
    """`kind` is tcp, unix, pipe, file or unknown; `peer` is the remote `address:port` of a TCP socket.

    `path` is a file's, `program` the one that holds the other end of a pipe.
    """

    kind: str
    peer: str | None
    path: str | None = None
    program: str | None = None


class Load(msgspec.Struct, frozen=True):
    """The source of the state that a VMM loads: channel file, pipe or snapshot; a file's path or a snapshot's name; the
    program at the other end of a pipe."""

    channel: str
    path: str | None = None
    program: str | None = None


_TCP_ADDRESS = re.compile(r"(?:[0-9A-F]{8}|[0-9A-F]{32}):[0-9A-F]{4}")

_INODES = {"unix": 6, "tcp6": 9, "tcp": 9}
"""The column of the inode in each table of /proc/PID/net (Linux net/unix/af_unix.c and net/ipv4/tcp_ipv4.c)."""
_REMOTE = 2
"""The column of the remote address; that of a unix socket is a number without a colon."""
_NAMESPACES = 64
_REST = 20

UNKNOWN = Descriptor("unknown", None)


def describe(pid: int, fd: int) -> Descriptor:
    """Describe /proc/PID/fd/FD; `UNKNOWN` if the process or the fd no longer exists."""
    process = PROC / str(pid)
    try:
        target = str((process / "fd" / str(fd)).readlink())
    except OSError:
        return UNKNOWN
    if target.startswith("socket:["):
        return _socket(process, target[8:-1])
    if target.startswith("pipe:["):
        return Descriptor("pipe", None, program=_other_end(process, fd, target))
    if target.startswith("/"):
        return Descriptor("file", None, path=printable(target, MAX_PATH))
    return UNKNOWN


def load_of(pid: int, argv: list[str]) -> Load | None:
    """Return what a starting VMM loads its state from; None if that is another VMM, or if it loads none.

    QEMU's -incoming names a file, a command or an fd; libvirt passes `defer` and lets QEMU inherit an fd of the file,
    or of a pipe from its I/O helper (src/qemu/qemu_process.c, qemuProcessIncomingDefNew).
    """
    snapshot = processes.option(argv, "loadvm")
    if snapshot is not None:
        return Load("snapshot", printable(snapshot))
    incoming = processes.option(argv, "incoming")
    if incoming is None:
        return None
    scheme, value = _transport(incoming)
    if scheme == "file":
        return Load("file", printable(value, MAX_PATH))
    if scheme == "exec":
        return Load("pipe", None, printable(Path(value.split()[0]).name) if value.split() else None)
    if scheme == "fd" and value.isdigit():
        return _load_from(describe(pid, int(value)))
    return _inherited(pid) if scheme == "defer" else None


def _transport(incoming: str) -> tuple[str, str]:
    """Split the URI or JSON of `-incoming` (qapi/migration.json) into `file`, `exec`, `fd` or another, and what
    follows."""
    if not incoming.startswith("{"):
        scheme, _, value = incoming.partition(":")
        return scheme, value.partition(",offset=")[0] if scheme == "file" else value
    try:
        address = json.loads(incoming)["addr"]
        scheme = address["transport"]
        values = {"file": address.get("filename"), "exec": " ".join(address.get("args", ()))}
        fd = address.get("str") if address.get("type") == "fd" else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", ""
    return ("fd", str(fd)) if fd is not None else (str(scheme), str(values.get(scheme) or ""))


def _inherited(pid: int) -> Load | None:
    """Return the first file or pipe that a process inherited for reading, standard streams excluded. QEMU opens its own
    files with O_CLOEXEC (util/osdep.c, qemu_open_internal)."""
    process = PROC / str(pid)
    try:
        fds = sorted(int(entry.name) for entry in (process / "fd").iterdir())
    except OSError:
        return None
    for fd in fds:
        flags = _flags(process, fd)
        if fd > 2 and flags is not None and not flags & (os.O_CLOEXEC | os.O_ACCMODE):
            found = _load_from(describe(pid, fd))
            if found is not None and not (found.path or "").startswith(
                ("/dev/", "/proc/", "/sys/")
            ):
                return found
    return None


def _load_from(found: Descriptor) -> Load | None:
    if found.kind == "pipe" and found.program is None:
        return None
    return Load(found.kind, found.path, found.program) if found.kind in ("file", "pipe") else None


def _flags(process: Path, fd: int) -> int | None:
    """Return the flags with which an fd was opened (/proc/PID/fdinfo/FD)."""
    try:
        lines = (process / "fdinfo" / str(fd)).read_text().splitlines()
    except OSError:
        return None
    text = next((line.removeprefix("flags:") for line in lines if line.startswith("flags:")), "")
    try:
        return int(text, 8)
    except ValueError:
        return None


def _other_end(process: Path, fd: int, target: str) -> str | None:
    """Return the program at the other end of a pipe: it writes if this fd reads, and reads if this fd writes."""
    mine = _flags(process, fd)
    if mine is None:
        return None
    wanted = os.O_WRONLY if mine & os.O_ACCMODE == os.O_RDONLY else os.O_RDONLY
    for other in PROC.iterdir():
        if not other.name.isdigit() or other.name == process.name:
            continue
        for number in _fds_of(other, target):
            flags = _flags(other, number)
            if flags is not None and flags & os.O_ACCMODE == wanted:
                argv = processes.command_line(int(other.name))
                return printable(Path(argv[0]).name) if argv and argv[0] else None
    return None


def _fds_of(process: Path, target: str) -> Iterator[int]:
    """Yield the fds of a process that refer to the given file."""
    try:
        for entry in (process / "fd").iterdir():
            if str(entry.readlink()) == target:
                yield int(entry.name)
    except OSError:
        return


class _Table(msgspec.Struct):
    """The text of a table of sockets in a network namespace, and when it may be read again."""

    text: bytes
    again_s: float


_tables: dict[tuple[str, str], _Table] = {}
"""By network namespace and name of the table."""


def _socket(process: Path, inode: str) -> Descriptor:
    """Look a socket up in the tables of its namespace. The unix sockets are first: there are few of them, and reading
    ten thousand TCP sockets takes 20 ms, in which the reader takes no records."""
    try:
        namespace = str((process / "ns" / "net").readlink())
    except OSError:
        namespace = str(process)
    for name, column in _INODES.items():
        row = _look_up(process / "net" / name, (namespace, name), column, inode.encode())
        if row is not None:
            if name == "unix":
                return Descriptor("unix", None)
            return Descriptor("tcp", _address(row[_REMOTE].decode(errors="replace")))
    return UNKNOWN


def _look_up(table: Path, key: tuple[str, str], column: int, inode: bytes) -> list[bytes] | None:
    """Return the words of a socket's row; None if the table has none. A table is read again if the socket is not in it,
    or was not connected then, and reading it does not take more than a twentieth of the time."""
    known = _tables.get(key)
    row = None if known is None else _row_of(known.text, column, inode)
    begun = time.monotonic()
    connected = row is not None and not row[_REMOTE].endswith(b":0000")
    if known is None or (begun >= known.again_s and not connected):
        if len(_tables) >= _NAMESPACES * len(_INODES):
            _tables.clear()
        text = _text_of(table)
        ended = time.monotonic()
        _tables[key] = _Table(text, ended + _REST * (ended - begun))
        row = _row_of(text, column, inode)
    return row


def _text_of(table: Path) -> bytes:
    try:
        return table.read_bytes()
    except OSError:
        return b""


def _row_of(text: bytes, column: int, inode: bytes) -> list[bytes] | None:
    """Return the words of the row that has an inode in a column. Splitting every row would take twice as long as
    reading them."""
    at = text.find(b" " + inode)
    while at >= 0:
        begin, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        words = text[begin : end if end >= 0 else len(text)].split()
        if len(words) > column and words[column] == inode:
            return words
        at = text.find(b" " + inode, at + 1)
    return None


def _address(field: str) -> str | None:
    """Read an address such as `0100007F:1172` of /proc/net/tcp: 32-bit words in host byte order, the port in hex. None
    for anything else."""
    if _TCP_ADDRESS.fullmatch(field) is None:
        return None
    address, _, port = field.partition(":")
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    ip = ipaddress.ip_address(socket.inet_ntop(family, packed))
    mapped = getattr(ip, "ipv4_mapped", None)
    return f"{mapped or ip}:{int(port, 16)}"
