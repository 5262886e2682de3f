# SPDX-License-Identifier: MIT
"""Writes a recording without identifying texts: names, UUIDs, MAC and IP addresses, paths, programs.

Each text is replaced by a word of the same form that is derived from it and a key. So equal texts stay equal, within
one recording, or with one key across several. Everything else is unchanged: times, sizes, PCI addresses, kernel
release, results. So the report's figures do not change. docs/reference/recordings.md lists what a recording reveals.
"""

import gzip
import hashlib
import hmac
import ipaddress
import re
import secrets
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import structs
from msgspec.structs import replace

from vftrace import events
from vftrace.analysis.kinds import TUNNELS
from vftrace.collect.batch import Batch
from vftrace.collect.recording import STANDARD, Recording, create, frames_of, head_of
from vftrace.errors import UsageError, VftraceError
from vftrace.events import Event, wire
from vftrace.mailbox.driver import Drivers
from vftrace.mailbox.profile import drivers_of
from vftrace.model.host import HostInfo

_PCI = re.compile(r"[0-9a-fA-F]{4,}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_NO_MAC = frozenset({bytes(6), b"\xff" * 6})
"""The addresses that stay: all zeroes, and broadcast."""

_VMMS = re.compile(
    r"unknown|qemu-system-\w+|qemu-kvm|kvm|cloud-hypervisor|firecracker|crosvm|tinyvmm"
)
_NUMBERS = re.compile(r"[0-9: ]*")
_THREADS = re.compile(
    r"CPU \d+/\w+|(mig/|multifd|vcpu|IO |vhost-|qemu-system|iou-).*|live_migration|worker|call_rcu|vnc_worker"
)
_PLAIN_PATHS = re.compile(r"/dev/(kvm|null|zero|urandom|net/tun|vhost-\w+|vfio/[\w/-]+|iommu)")
_PROGRAMS = frozenset(
    {"bash", "cat", "dd", "gzip", "lz4", "nc", "sh", "socat", "ssh", "xz", "zstd"}
)
_KNOWN_FILES = frozenset({"socket", "pipe", "file", "unknown"})

Replace = Callable[["Words", str], str]


class Words:
    """Replaces texts by words. `key` decides which words; without a key they differ each time."""

    def __init__(self, key: str | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key.encode()
        self.macs: dict[bytes, bytes] = {}
        """The replacement of each MAC address, by its bytes."""

    def _digest(self, kind: str, text: str) -> bytes:
        said = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, said, hashlib.sha256).digest()

    def word(self, kind: str, text: str) -> str:
        """Return a word such as `vm-3f2a91c4`, whose digits are derived from the text; an empty text stays empty."""
        return f"{kind}-{self._digest(kind, text).hex()[:8]}" if text else text

    def uuid(self, text: str) -> str:
        """Replace a UUID by another one; any other text becomes a word."""
        if _UUID.fullmatch(text) is None:
            return self.word("id", text)
        return str(uuid.UUID(bytes=self._digest("uuid", text.lower())[:16], version=4))

    def path(self, text: str) -> str:
        """Replace a path by `/path-3f2a91c4`; device nodes and texts that are not paths stay, such as
        `anon_inode:[eventfd]`."""
        if _PLAIN_PATHS.fullmatch(text) or text in _KNOWN_FILES or text.startswith("anon_inode:"):
            return text
        return self.word("/path" if text.startswith("/") else "name", text)

    def target(self, text: str) -> str:
        """Replace the target of an fd: a path, or a word of vftrace, which stays."""
        return self.path(text) if "/" in text else text

    def host(self, text: str) -> str:
        """Replace an IP address by another one, and a name by a word; loopback stays."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return self.word("host", text)
        if address.is_loopback or address.is_unspecified:
            return str(address)
        digest = self._digest("ip", str(address))
        if isinstance(address, ipaddress.IPv4Address):
            return str(ipaddress.IPv4Address(b"\x0a" + digest[:3]))
        return str(ipaddress.IPv6Address(b"\xfd" + digest[:15]))

    def peer(self, text: str) -> str:
        """Replace the address in `10.1.2.3:49152` or `[fd00::1]:49152`; the port stays."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isdigit():
            return self.host(text)
        bracketed = host.startswith("[")
        changed = self.host(host.strip("[]"))
        return f"[{changed}]:{port}" if bracketed else f"{changed}:{port}"

    def mac(self, text: str) -> str:
        """Replace a MAC address by a locally administered one, a group's by a group's; any other text becomes a
        word."""
        if _MAC.fullmatch(text) is None:
            return self.word("mac", text)
        return ":".join(
            f"{byte:02x}" for byte in self.mac_bytes(bytes.fromhex(text.replace(":", "")))
        )

    def mac_bytes(self, address: bytes) -> bytes:
        """Replace a MAC address of six bytes."""
        if address in _NO_MAC:
            return address
        if address not in self.macs:
            digest = self._digest("mac", address.hex())
            self.macs[address] = bytes((0x02 | address[0] & 1,)) + digest[:5]
        return self.macs[address]

    def device(self, text: str) -> str:
        """Replace a mediated device's UUID; PCI addresses stay."""
        return text if not text or _PCI.fullmatch(text) else self.uuid(text)

    def interface(self, text: str) -> str:
        """Replace an interface's name by `if-3f2a91c4`, which has a valid length."""
        return text if text == "lo" else self.word("if", text)

    def vmm(self, text: str) -> str:
        """Replace a program's name unless it is a common one."""
        return text if _VMMS.fullmatch(text) else self.word("vmm", text)

    def program(self, text: str) -> str:
        """Replace the program at the other end of a pipe unless it is a common one."""
        return text if text in TUNNELS or text in _PROGRAMS else self.word("program", text)

    def thread(self, text: str) -> str:
        """Replace a thread's name unless it is one of QEMU's."""
        return text if _THREADS.fullmatch(text) else self.word("thread", text)


def _word(kind: str) -> Replace:
    return lambda words, text: words.word(kind, text)


def _same(_words: Words, text: str) -> str:
    return text


def _counts(_words: Words, text: str) -> str:
    """Keep numbers; replace anything else that a file may have in their place."""
    return text if _NUMBERS.fullmatch(text) else ""


FIELDS: Mapping[type[Event], Mapping[str, Replace]] = {
    events.Process: {
        "uuid": Words.uuid,
        "name": _word("vm"),
        "vmm": Words.vmm,
        "load_channel": _same,
        "load_path": Words.path,
        "load_program": Words.program,
        "namespace": _word("namespace"),
        "vmi": _word("vmi"),
        "pod_uid": Words.uuid,
        "vmid": _word("vmid"),
    },
    events.FileDescriptor: {
        "kind": _same,
        "peer": Words.peer,
        "path": Words.path,
        "program": Words.program,
    },
    events.Device: {
        "address": Words.device,
        "id": _word("dev"),
        "driver": _same,
        "pf": Words.device,
    },
    events.VfAddress: {"pf": Words.device, "address": Words.device},
    events.VfReset: {"pf": Words.device},
    events.MailboxFlood: {"pf": Words.device},
    events.Mailbox: {"pf": Words.device},
    events.Virtchnl: {"pf": Words.device},
    events.VfioOpen: {"name": Words.device},
    events.VfioReset: {"name": Words.device},
    events.NetLink: {"interface": Words.interface, "mac": Words.mac, "master": Words.interface},
    events.NetAddress: {"mac": Words.mac, "port": Words.interface, "bridge": Words.interface},
    events.PingSettings: {
        "target": Words.host,
        "address": Words.host,
        "protocol": _same,
        "policy": _same,
    },
    events.PingGap: {"kind": _same},
    events.PingRoundTrips: {"trips": _counts},
    events.TableFull: {"table": _same},
    events.MissedRuns: {"probe": _same, "reason": _same},
    events.CallsTraced: {"machine": _same},
    events.CallThread: {"name": Words.thread},
    events.CallFd: {"target": Words.target},
}
"""The replacement of each text of each event; a test checks that no text is forgotten."""


def anonymize(
    path: Path, output: Path, key: str | None = None, *, force: bool = False
) -> str | None:
    """Write a recording again with other names; returns why the recording is incomplete, if it is.

    The recording is read twice, because a MAC address of one record may occur in the bytes of an earlier one. An
    output that ends with `.gz` is compressed. Raises VftraceError if the recording cannot be read or the output cannot
    be written.
    """
    if path == STANDARD or not path.is_file():
        if not path.exists() and path != STANDARD:
            raise VftraceError(f"cannot read {path}: No such file or directory")
        raise UsageError(f"{path} must be read twice: name a file")
    if output.exists() and output.samefile(path):
        raise UsageError(f"{output} is the recording itself: name another file")
    words = Words(key)
    recording = Recording(path)
    drivers = drivers_of(recording.host.profiles)
    for records in recording.batches():
        for event in Batch.of(records).events:
            changed(event, words, drivers)
    recording = Recording(path)
    try:
        with create(output, force=force, mode=0o600) as file:
            # The head of the gzip stream has no name and no time.
            packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if output.suffix == ".gz" else file
            packed.write(head_of(host_of(recording.host, words)))
            for records in recording.batches():
                packed.write(frames_of(changed_records(records, words, drivers)))
            if packed is not file:
                packed.close()
    except OSError as error:
        raise VftraceError(f"cannot write {output}: {error.strerror}") from error
    return recording.not_whole


def host_of(host: HostInfo, words: Words) -> HostInfo:
    """Return the host with another name. Its profiles stay, because its messages cannot be decoded without them."""
    return replace(host, name=words.word("host", host.name), boot_id=words.uuid(host.boot_id))


def changed_records(records: Iterable[bytes], words: Words, drivers: Drivers) -> list[bytes]:
    """Return the records with other names; their lengths may differ."""
    kept = list(records)
    batch = Batch.of(kept)
    return [
        _encoded(record, event, changed(event, words, drivers))
        for record, event in zip(kept, batch.events, strict=True)
    ]


def _encoded(record: bytes, before: Event, after: Event) -> bytes:
    if isinstance(before, events.Unknown):
        return _headless(record)
    return record if after is before else wire.encode(after)


def _headless(record: bytes) -> bytes:
    """Return a record that this version cannot read without its body, which may hold any text."""
    size = wire.HEADER.size
    return record[:16] + struct.pack("<I", size) + record[20:size]


def changed(event: Event, words: Words, drivers: Drivers) -> Event:
    """Return the event with other names; the same object if it has no names."""
    fields: dict[str, Any] = {}
    for name, instead in FIELDS.get(type(event), {}).items():
        before: str | None = getattr(event, name)
        after = None if before is None else instead(words, before)
        if after != before:
            fields[name] = after
    if isinstance(event, (events.Mailbox, events.Virtchnl)):
        word = _message(event, words, drivers)
        if word != event.word:
            fields["word"] = word
    return structs.replace(event, **fields) if fields else event


_MANY_ZEROES = 4
_IPSEC_ADD = 0x0D
_IPSEC_ADDRESS = slice(12, 28)
"""struct sa_mbx_msg (ixgbe_ipsec.h): the address follows spi and three small fields."""


def _message(
    event: events.Mailbox | events.Virtchnl, words: Words, drivers: Drivers
) -> tuple[int, ...]:
    """Return the words of a message with other MAC addresses, and without IPsec's peer."""
    raw = b"".join(word.to_bytes(4, "little") for word in event.word)
    driver = drivers.get(event.driver)
    if driver is not None:
        try:
            arguments = driver.protocol.decode(event, driver).arguments
        except (AssertionError, IndexError):  # the record does not have the driver's layout
            arguments = {}
        said = arguments.get("mac")
        if isinstance(said, str) and _MAC.fullmatch(said):
            address = bytes.fromhex(said.replace(":", ""))
            raw = raw.replace(address, words.mac_bytes(address))
    for address, instead in words.macs.items():
        # An address of almost only zeroes would be found in unrelated bytes.
        if address.count(0) < _MANY_ZEROES:
            raw = raw.replace(address, instead)
    if isinstance(event, events.Mailbox) and event.word[0] & 0xFFFF == _IPSEC_ADD:
        raw = raw[: _IPSEC_ADDRESS.start] + bytes(16) + raw[_IPSEC_ADDRESS.stop :]
    return struct.unpack(f"<{len(event.word)}I", raw)
