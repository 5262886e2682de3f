# SPDX-License-Identifier: MIT
"""The functions that take bytes from guests, neighbours, peers and files, each with its rules for any input.

A target's `one` makes one random input and runs it. It raises an error if the code under test raises a wrong error or
returns a wrong result; the input is in the error's notes.
"""

import asyncio
import contextlib
import json
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import h11
from prometheus_client import CollectorRegistry, Gauge

from tests.fuzz import mutator
from tests.fuzz.archive import ArchiveTarget
from tests.fuzz.bytesmith import INTERESTING, ODD_TEXTS, damaged, rearranged
from vftrace import events
from vftrace.analysis.devices.vf_history import MAX_RECENT, MAX_STATES, Mailboxes
from vftrace.collect.batch import Intake
from vftrace.collect.recording import Recording
from vftrace.errors import VftraceError
from vftrace.events import layout, wire
from vftrace.faults import FAULTS
from vftrace.host import descriptors, devices, netlink, processes
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.message import message_of
from vftrace.mailbox.profile import ProfileError, drivers_of
from vftrace.mailbox.words import WORD_PROTOCOL
from vftrace.outputs.exporter.pages import make_app
from vftrace.outputs.exporter.server import Servers, _Connection
from vftrace.outputs.exporter.webconfig import Users, WebConfig, read_web_config
from vftrace.ping import probes as ping_probes
from vftrace.ping.ledger import Ledger
from vftrace.ping.packets import ECHO6_REPLY, ECHO_REPLY, Packets, without_ip_header
from vftrace.ping.sender import RECORD

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

One = Callable[[Random], None]


def with_input(run: Callable[[Any], None], data: object) -> None:
    """Run a function; its error gets a note with the input."""
    try:
        run(data)
    except Exception as error:
        error.add_note(f"input: {data!r}"[:4000])
        raise


# -- records ---------------------------------------------------------------------------------------


@cache
def _records() -> list[bytes]:
    """A few records of each kind, of real recordings."""
    found: dict[int, list[bytes]] = {}
    for path in sorted(GOLDEN.rglob("*.vft.gz")):
        if path.stat().st_size < 60_000:
            for record in Recording(path):
                of_kind = found.setdefault(wire.kind_of(record), [])
                if len(of_kind) < 40:
                    of_kind.append(record)
    return [record for of_kind in found.values() for record in of_kind]


def wire_record(chance: Random) -> None:
    """Any bytes are an event or a ValueError; an event's own record gives the event again."""
    record = chance.choice(_records())
    if chance.random() < 0.5:
        record = mutator.changed(record, chance)
    else:
        record = damaged(record, chance)
        if chance.random() < 0.9 and len(record) >= wire.HEADER.size:
            record = mutator.with_size(record)
    with_input(_decoded, record)


def _decoded(record: bytes) -> None:
    try:
        event = wire.decode(record)
    except ValueError:
        sized = len(record) >= wire.HEADER.size
        assert not sized or int.from_bytes(record[16:20], "little") != len(record)
        return
    (same,) = wire.decode_all([record])
    assert same == event
    if isinstance(event, events.Unknown):
        return
    if isinstance(event, events.Part):
        words = layout.PIECE_WORDS
        if isinstance(event, events.BitmapPart):
            words = layout.BITMAP_WORDS
        assert 0 <= event.bits < 1 << words * 64
        return
    with contextlib.suppress(UnicodeEncodeError):
        if all(_plain(getattr(event, name)) for name in event.__struct_fields__):
            assert wire.decode(wire.encode(event)) == event


def _plain(value: object) -> bool:
    """Whether a value is written as it was read: text that is not ASCII, or a number outside of JSON, is not."""
    return not isinstance(value, str) or value.isascii()


# -- mailboxes -------------------------------------------------------------------------------------


class MailboxTarget:
    """Words and bytes that guests choose, through decoding and through what a VF's history keeps."""

    def __init__(self) -> None:
        profile = (ROOT / "docs" / "profiles" / "assisted-ixgbe.toml").read_text()
        self._drivers = drivers_of([profile])
        self._boxes = Mailboxes(self._drivers)
        self._seq = self._at = 0
        self._opcodes = {
            number: [*driver.opcodes, 0, 99, 0xFFFF] for number, driver in self._drivers.items()
        }
        self._words = {number: self._width(number) for number in DRIVERS}

    @staticmethod
    def _width(driver: int) -> int:
        words = DRIVERS[driver].protocol is WORD_PROTOCOL
        return layout.MAILBOX_WORDS if words else layout.VIRTCHNL_WORDS

    def one(self, chance: Random) -> None:
        self._seq += 1
        self._at += chance.choice((0, 1000, 10**6, 10**9))
        if self._seq % 50_000 == 0:
            self._boxes = Mailboxes(self._drivers)
        with_input(self._take, self._event(chance))

    def _event(self, chance: Random) -> events.Event:
        number = chance.choice((*DRIVERS, 77))
        head = (self._at, self._seq, 0, 0, chance.choice(("0000:01:00.0", "x\x1b[2J")))
        vf = chance.choice((0, 1, 63, 65535))
        direction = chance.choice((0, 1, 1, 77))
        opcode = chance.choice(self._opcodes.get(number, (1,)))
        draw = chance.random()
        if draw < 0.05:
            return events.VfReset(*head, number, vf)
        if draw < 0.1:
            counts = (chance.choice((0, 1, 2**32, -(2**63))) for _ in range(3))
            return events.MailboxFlood(*head, number, vf, *counts)
        many = self._words.get(number, layout.MAILBOX_WORDS)
        word = [chance.choice((0, 1, 0xFFFF_FFFF, chance.getrandbits(32))) for _ in range(many)]
        if many == layout.VIRTCHNL_WORDS and draw < 0.9:
            status = chance.choice((0, 0, -5, 2**31 - 1, -(2**31)))
            size, given = chance.choice((0, 4, 36, 4096, 65535)), chance.choice((0, 4, 36, 65535))
            ret = chance.choice((0, 0, -22))
            return events.Virtchnl(
                *head, number, vf, direction, opcode, status, size, given, ret, tuple(word)
            )
        flags = chance.choice((0, 0x8000_0000, 0x4000_0000, 0x2000_0000, 0xE000_0000))
        word[0] = opcode | flags | chance.choice((0, 0xFF0000, chance.getrandbits(24) & 0xFF0000))
        count = chance.choice((0, 1, 3, 16, 255))
        ret = chance.choice((0, 0, -100))
        return events.Mailbox(
            *head, number, vf, direction, 16, count, ret, tuple(word[: layout.MAILBOX_WORDS])
        )

    def _take(self, event: events.Event) -> None:
        if isinstance(event, (events.Mailbox, events.Virtchnl)):
            message = message_of(event, self._drivers)
            assert message.title
            json.dumps(message.arguments, allow_nan=False)
            assert all(str(value).isprintable() for value in message.arguments.values())
        self._boxes.feed(event)
        if self._seq % 500 == 0:
            for history in self._boxes.vf_histories():
                assert len(history.recent) <= MAX_RECENT
                assert len(history.states) <= MAX_STATES
                assert history.unanswered >= 0
                assert history.refused >= 0


# -- files of an operator --------------------------------------------------------------------------


def profile(chance: Random) -> None:
    """Any text is a profile, or is refused with one line."""
    text = _PROFILE
    if chance.random() < 0.5:
        lines = rearranged(text.splitlines(), _PROFILE_WORDS, chance)
        text = "\n".join(lines)
    else:
        text = damaged(text.encode(), chance, _PROFILE_BYTES).decode(errors="replace")
    with_input(_read_profile, text)


_PROFILE = (ROOT / "docs" / "profiles" / "assisted-ixgbe.toml").read_text()
_PROFILE_WORDS = (*_PROFILE.split(), *ODD_TEXTS, "[[message]]", "opcode = 0x41")
_PROFILE_BYTES = (
    *INTERESTING,
    b"=",
    b"[[message]]\n",
    b'"',
    b"0x1",
    b"-1",
    b"key = 'both'\n",
    b"[]",
)


def _read_profile(text: str) -> None:
    try:
        drivers = drivers_of([], [text])
    except ProfileError:
        return
    for number, driver in DRIVERS.items():
        for code, opcode in driver.opcodes.items():
            assert drivers[number].opcodes[code] is opcode
    for driver in drivers.values():
        driver.protocol.exportable(driver)
    assert tomllib.loads(text)


class WebConfigTarget:
    """Any text is a web configuration whose headers can be sent, or is refused with one line."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vftrace-fuzz-")
        self._path = Path(self._directory.name) / "web.yml"
        text = (ROOT / "packaging" / "web.yml").read_text()
        hashed = "$2b$04$" + "a" * 53
        self._texts = (
            text,
            f"basic_auth_users:\n  prometheus: {hashed}\n",
            "http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: DENY\n",
            "tls_server_config:\n  cert_file: a\n  key_file: b\n  client_allowed_sans: [x]\n",
        )
        self._words = (
            *(line for text in self._texts for line in text.splitlines()),
            *ODD_TEXTS,
            *(
                "&a [*a]",
                "*a",
                "!!python/object:os.system x",
                "? x",
                "<<: *a",
                "- x",
                "~",
                "2026-01-01",
            ),
            "    X-XSS-Protection: →",
        )

    def one(self, chance: Random) -> None:
        text = chance.choice(self._texts)
        if chance.random() < 0.6:
            text = "\n".join(rearranged(text.splitlines(), self._words, chance))
            data = text.encode(errors="replace")
        else:
            data = damaged(text.encode(), chance)
        with_input(self._read, data)

    def _read(self, data: bytes) -> None:
        self._path.write_bytes(data)
        try:
            # A user's hash is checked against a dummy of the same cost, which is slow on purpose.
            with mock.patch("vftrace.outputs.exporter.webconfig._nobody", return_value=b""):
                config = read_web_config(self._path)
        except VftraceError:
            return
        for name, value in config.headers:
            h11.Response(status_code=200, headers=[(name.encode(), value.encode("latin-1"))])


# -- texts of other processes ---------------------------------------------------------------------

_QEMU = (
    *("/usr/bin/qemu-system-x86_64", "-name", "guest=web,debug-threads=on", "-S", "-uuid"),
    *(
        "3c0f8a7e-5d0b-4a3e-9f51-0a4b7c1d2e3f",
        "-smbios",
        "type=1,uuid=3c0f8a7e-5d0b-4a3e-9f51-0a4b7c1d2e3f",
    ),
    *("-incoming", "defer", "-device", "vfio-pci,host=0000:01:10.0,id=vf0", "-loadvm", "a"),
    *("-device", '{"driver":"vfio-pci","host":"01:10.1","id":"vf1"}', "-incoming", "tcp:0:4444"),
    *(
        "-incoming",
        '{"channel-type":"main","addr":{"transport":"file","filename":"/x","offset":0}}',
    ),
    *("-incoming", "exec:cat /x", "-incoming", "fd:7", "-device", "vfio-pci,sysfsdev=/sys/x/y"),
)


def command_line(chance: Random) -> None:
    """Any arguments are an identity whose words can be printed and recorded."""
    argv = rearranged(_QEMU, (*_QEMU, *ODD_TEXTS), chance)
    data = b"\0".join(word.encode(errors="replace") for word in argv)
    if chance.random() < 0.3:
        data = damaged(data, chance)
    with_input(_identified, data)


def _identified(data: bytes) -> None:
    with mock.patch.object(Path, "read_bytes", return_value=data):
        argv = processes.command_line(1)
    identity = processes.identity_of(argv)
    for word in (identity.name, identity.vmm, identity.uuid):
        assert word is None or word.isprintable()
    with (
        mock.patch.object(descriptors, "describe", return_value=descriptors.UNKNOWN),
        mock.patch.object(descriptors, "_inherited", return_value=None),
    ):
        load = descriptors.load_of(1, argv)
    named = devices.named_devices(argv)
    for device in named:
        devices.full_address(device.address)
    intake = Intake()
    intake.write(
        events.Process,
        pid=1,
        start_time=1,
        uuid=identity.uuid,
        name=identity.name,
        vmm=identity.vmm,
        incoming=identity.incoming,
        started_paused=identity.started_paused,
        late=False,
        running=False,
        load_channel=load.channel if load else None,
        load_path=load.path if load else None,
        load_program=load.program if load else None,
    )
    (record,) = intake.drain().records
    assert len(record) <= wire.MAX_RECORD, len(record)
    assert not isinstance(wire.decode(record), events.Unknown)


_PROC = {
    "stat": b"4711 (qemu) S" + b" 1" * 49 + b"\n",
    "syscall": b"16 0xb 0xae80 0x0 0x0 0x0 0x0 0x7ffd 0x7f01\n",
    "comm": b"CPU 0/KVM\n",
    "fdinfo": b"pos:\t0\nflags:\t02000002\nmnt_id:\t15\nvfio-device-syspath: /sys/x/0000:01:10.0\n",
    "tcp": b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    b"   0: 0100007F:1172 0100007F:8A3C 01 00000000:00000000 00:00000000 00000000     0        0 4711 1\n",
    "unix": b"Num       RefCount Protocol Flags    Type St Inode Path\n"
    b"0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/x\n",
}


def proc_file(chance: Random) -> None:
    """Files in /proc of a process that ends, or that another kernel writes otherwise."""
    name = chance.choice(tuple(_PROC))
    data = damaged(_PROC[name], chance, (*INTERESTING, b" ", b")", b"\n", b":", b"0x"))
    with_input(_read_proc, (name, data))


def _read_proc(given: tuple[str, bytes]) -> None:
    name, data = given
    text = data.decode(errors="replace")
    with (
        mock.patch.object(Path, "read_text", return_value=text),
        mock.patch.object(Path, "read_bytes", return_value=data),
        mock.patch.object(Path, "iterdir", lambda self: iter([self / "7"])),
    ):
        if name == "stat":
            processes.start_time(1)
        elif name in ("syscall", "comm"):
            list(processes.threads_in_kvm_run(1))
        elif name == "fdinfo":
            descriptors._flags(Path("/proc/1"), 7)
            devices._syspath(1, 7)
        else:
            descriptors._tables.clear()
            for inode in {word for word in text.split() if word.isdecimal()}:
                peer = descriptors._socket(Path("/proc/1"), inode).peer
                assert peer is None or peer.rpartition(":")[2].isdigit()


@cache
def _netlink_seeds() -> tuple[bytes, ...]:
    link = netlink._IFINFOMSG.pack(0, 1, 7, 0x1 | 0x10000, 0)
    link += netlink._ATTRIBUTE.pack(9, netlink._IFLA_IFNAME) + b"tap0\0\0\0\0"
    link += netlink._ATTRIBUTE.pack(10, netlink._IFLA_ADDRESS) + b"\x52\x54\0\x12\x34\x56\0\0"
    link += netlink._ATTRIBUTE.pack(8, netlink._IFLA_MASTER) + (3).to_bytes(4, "little")
    near = netlink._NDMSG.pack(7, 7, 2, 0, 0)
    near += netlink._ATTRIBUTE.pack(10, netlink._NDA_LLADDR) + b"\x52\x54\0\x12\x34\x56\0\0"
    near += netlink._ATTRIBUTE.pack(8, netlink._NDA_MASTER) + (3).to_bytes(4, "little")
    found = []
    for kind, body in ((16, link), (17, link), (28, near), (29, near)):
        found.append(netlink._NLMSGHDR.pack(16 + len(body), kind, 0, 0, 0) + body)
    return (*found, b"".join(found))


def netlink_message(chance: Random) -> None:
    """Any datagram is some notifications, whose interfaces have names."""
    with_input(_notified, damaged(chance.choice(_netlink_seeds()), chance))


def _notified(data: bytes) -> None:
    found = list(netlink.parse(data))
    assert len(found) <= len(data) // 16
    for each in found:
        if isinstance(each, netlink.LinkState):
            assert netlink.name_of(each.master)
        else:
            assert len(each.mac) == 17
            assert netlink.name_of(each.port)
            assert netlink.name_of(each.bridge)


# -- the network -----------------------------------------------------------------------------------

_REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;version=0.0.4\r\n\r\n",
    b"GET /metrics?name[]=vftrace_vm_info HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\nHEAD /-/ready HTTP/1.0\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cHJvbWV0aGV1czpjaGFuZ2UgbWU=\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: application/openmetrics-text\r\n\r\n",
)
_HTTP_WORDS = (
    *INTERESTING,
    *(b"\r\n", b" ", b":", b"GET ", b"HEAD ", b"/", b"%00", b"%ff%fe", b"?", b"name[]=", b"&"),
    *(b"Content-Length: 99999999999999999999\r\n", b"Content-Length: -1\r\n", b"HTTP/1.0"),
    *(b"Transfer-Encoding: chunked\r\n", b"FFFFFFFFFFFFFFFFF\r\n", b"Connection: close\r\n"),
    *(b"Authorization: Basic ////\r\n", b"Authorization: Basic \xff\r\n", b"X: " + b"a" * 9000),
    *(
        b"Accept: " + b",".join([b"a/b;q=0." + b"9" * 400] * 3) + b"\r\n",
        b"Accept-Encoding: \xe9\r\n",
    ),
)


class _Writer:
    """What a client reads."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None:
        pass


class HttpTarget:
    """Any bytes on a connection are answered with HTTP, never with 500, or the connection is closed."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        Gauge("vftrace_vm_info", "x", registry=registry).set(1)
        self._plain = WebConfig()
        self._guarded = WebConfig(users=Users({}))
        self._guarded.users._hashes = {"prometheus": b"x"}
        self._app = make_app(registry, "/metrics", lambda: True)
        self._servers = Servers([], self._app, lambda: self._plain)
        self._right = mock.patch("bcrypt.checkpw", return_value=False)
        self._unhurried = mock.patch("vftrace.outputs.exporter.passwords.PAUSE", 0)

    def one(self, chance: Random) -> None:
        data = chance.choice(_REQUESTS)
        if chance.random() < 0.3:
            data += chance.choice(_REQUESTS)
        data = damaged(data, chance, _HTTP_WORDS)
        config = self._guarded if chance.random() < 0.1 else self._plain
        with_input(lambda given: self._spoken(given, config), data)

    def _spoken(self, data: bytes, config: WebConfig) -> None:
        writer = _Writer()
        before = sum(FAULTS.counts.values())

        async def speak() -> None:
            reader = asyncio.StreamReader()
            reader.feed_data(data)
            reader.feed_eof()
            task = asyncio.current_task()
            assert task is not None
            connection = _Connection("127.0.0.1", task)
            with contextlib.suppress(OSError, TimeoutError, h11.ProtocolError):
                await self._servers._speak(connection, reader, writer, config)  # type: ignore[arg-type]

        with self._right, self._unhurried:
            self._servers._loop.run_until_complete(speak())
        assert writer.data == b"" or writer.data.startswith(b"HTTP/1.1 "), writer.data[:80]
        assert b"HTTP/1.1 500" not in writer.data, writer.data[:200]
        assert sum(FAULTS.counts.values()) == before
        if config is self._guarded:
            assert b"vftrace_vm_info" not in writer.data


class PingTarget:
    """Packets that a peer forges: each is a reply to a probe that was sent, or none."""

    def __init__(self) -> None:
        self._packets = Packets(b"cookie!!")
        self._ledger = Ledger(10**6, 10**9)
        self._slot = 0
        body = self._packets.payload(0)
        self._seeds = (
            body,
            bytes([ECHO_REPLY, 0, 0, 0, 0, 0, 0, 0]) + body,
            bytes([ECHO6_REPLY, 0, 0, 0, 0, 0, 0, 0]) + body,
            bytes([0x45, *[0] * 19, ECHO_REPLY, *[0] * 7]) + body,
            bytes([0x4F, *[0] * 59, ECHO_REPLY, *[0] * 7]) + body,
        )

    def one(self, chance: Random) -> None:
        packet = chance.choice(self._seeds)
        if chance.random() < 0.5:
            slot = chance.choice(
                (self._slot, max(0, self._slot - 1), 2**63, 2**64 - 1, self._slot + 10**9)
            )
            packet = packet[:-8] + slot.to_bytes(8, "big")
        else:
            packet = damaged(packet, chance)
        if self._slot > 100_000:
            self._ledger, self._slot = Ledger(10**6, 10**9), 0
        self._ledger.sent(self._slot, 0, self._slot * 10**6, self._slot * 10**6)
        self._slot += 1
        with_input(self._received, packet)
        for gap in self._ledger.advance(self._slot * 10**6):
            assert gap.ns >= 0
        assert 0 <= self._ledger.received <= self._ledger.sent_count <= self._slot
        assert self._ledger.waiting >= 0

    def _received(self, packet: bytes) -> None:
        for slot in (
            self._packets.slot_of(packet),
            self._packets.slot_of_echo(packet, 6),
            self._packets.slot_of_echo(without_ip_header(packet), 4),
        ):
            if slot is not None:
                # In the form in which the sending process passes it to the main process.
                RECORD.pack(0, 0, slot, 0, 0)
                self._ledger.replied(slot, self._slot * 10**6)
        stamp = [(1, ping_probes._SO_TIMESTAMPNS, packet[:16])]
        assert ping_probes._stamp(stamp, 0, 10**18) >= 0


# -- recordings as files ---------------------------------------------------------------------------


class FileTarget:
    """Any bytes in a file are a recording up to some place, or are refused with one line."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vftrace-fuzz-")
        self._path = Path(self._directory.name) / "x.vft"
        names = ("cancel-precopy", "boot", "no-uuid")
        packed = [GOLDEN / "recordings" / f"{name}.vft.gz" for name in names]
        self._seeds: list[bytes] = [path.read_bytes() for path in packed]
        for path in packed:
            recording = Recording(path)
            records = list(recording)[:60]
            self._seeds.append(mutator.file_of(recording.host, records))

    def one(self, chance: Random) -> None:
        with_input(self._read, damaged(chance.choice(self._seeds), chance))

    def _read(self, data: bytes) -> None:
        self._path.write_bytes(data)
        try:
            recording = Recording(self._path)
            for batch in recording.batches():
                for record in batch:
                    wire.decode(record)
        except VftraceError:
            return


@dataclass(frozen=True)
class Target:
    """A target by name: what makes `one`, and how many of it are run before the clock is looked at."""

    make: Callable[[], One]
    batch: int = 200


TARGETS: dict[str, Target] = {
    "wire": Target(lambda: wire_record),
    "file": Target(lambda: FileTarget().one, 20),
    "archive": Target(lambda: ArchiveTarget().one, 10),
    "mailbox": Target(lambda: MailboxTarget().one),
    "profile": Target(lambda: profile, 50),
    "web-config": Target(lambda: WebConfigTarget().one, 20),
    "command-line": Target(lambda: command_line, 50),
    "proc": Target(lambda: proc_file),
    "netlink": Target(lambda: netlink_message),
    "http": Target(lambda: HttpTarget().one, 50),
    "ping": Target(lambda: PingTarget().one),
}
"""Beside `recordings`, which are whole recordings through every output (campaign.py)."""
