"""What an fd of a process is: a TCP connection and its peer, a unix socket, a pipe, a file."""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Descriptor:
    """`kind` is tcp, unix, pipe, file or unknown; `peer` is the remote `address:port` of a TCP socket."""

    kind: str
    peer: str | None


UNKNOWN = Descriptor("unknown", None)


def describe(pid: int, fd: int) -> Descriptor:
    """Look at /proc/PID/fd/FD; `UNKNOWN` if the process or the fd has gone."""
    process = PROC / str(pid)
    try:
        target = str((process / "fd" / str(fd)).readlink())
    except OSError:
        return UNKNOWN
    if target.startswith("socket:["):
        return _socket(process, target[8:-1])
    if target.startswith("pipe:["):
        return Descriptor("pipe", None)
    if target.startswith("/"):
        return Descriptor("file", None)
    return UNKNOWN


def _socket(process: Path, inode: str) -> Descriptor:
    for table in ("tcp", "tcp6"):
        for fields in _rows(process / "net" / table):
            if len(fields) > 9 and fields[9] == inode:
                return Descriptor("tcp", _address(fields[2]))
    for fields in _rows(process / "net" / "unix"):
        if len(fields) > 6 and fields[6] == inode:
            return Descriptor("unix", None)
    return UNKNOWN


def _rows(table: Path) -> list[list[str]]:
    try:
        return [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []


def _address(field: str) -> str:
    """`0100007F:1172` of /proc/net/tcp: 32-bit words in host byte order, the port in hex."""
    address, _, port = field.partition(":")
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    ip = ipaddress.ip_address(socket.inet_ntop(family, packed))
    mapped = getattr(ip, "ipv4_mapped", None)
    return f"{mapped or ip}:{int(port, 16)}"
