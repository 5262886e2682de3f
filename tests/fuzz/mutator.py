# SPDX-License-Identifier: MIT
"""Damages a recording's records in ways that its checksums do not show: each result is a whole, well-formed file.

A record's fields are known from its layout, so that a value is put where it means something.
"""

import json
import random
import re
import struct
from zlib import crc32

from vftrace.collect.recording import MAGIC, VERSION, meta_of
from vftrace.events import layout, wire
from vftrace.events.layout import Kind
from vftrace.model.host import HostInfo

NUMBERS = (
    *(0, 1, 2, 63, 64, 4095, 4096, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**53, 10**15, 2**62, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1),
)
JSON_VALUES: tuple[object, ...] = (
    *(None, True, "", "x", "[/x]", "\ud800", "\x1b[2J", "a" * 5000, [], ["-incoming", "defer"], {}),
    *(-1, 0, 1, 2**31, 2**63 - 1, 2**63, 10**30, 0.5, 1e308, -1e308),
)

_HEADER_CODES = re.findall(r"[A-Z]", layout.HEADER[0])


def file_of(host: HostInfo, records: list[bytes]) -> bytes:
    """The recording of these records, with right checksums."""
    meta = json.dumps({"version": VERSION, **meta_of(host)}).encode()
    frames = b"".join(struct.pack("<I", crc32(record)) + record for record in records)
    return MAGIC + struct.pack("<I", len(meta)) + meta + frames


def mutated(records: list[bytes], chance: random.Random) -> list[bytes]:
    """The records with one to a dozen things wrong."""
    found = list(records)
    if chance.random() < 0.3:
        found = _part(found, chance)
    for _ in range(chance.choice((1, 1, 2, 3, 5, 12))):
        if not found:
            break
        at = chance.randrange(len(found))
        match chance.randrange(10):
            case 0:
                del found[at : at + chance.choice((1, 1, 2, 10, len(found)))]
            case 1:
                found[at:at] = [found[at]] * chance.choice((1, 2, 300))
            case 2:
                other = chance.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            case 3:
                found = _of_one_kind(found, wire.kind_of(found[at]), chance)
            case 4:
                found[at] = with_size(found[at][: chance.randint(wire.HEADER.size, len(found[at]))])
            case _:
                found[at] = changed(found[at], chance)
    return found


def _part(records: list[bytes], chance: random.Random) -> list[bytes]:
    first, last = sorted(chance.choices(range(len(records) + 1), k=2))
    return records[first:last]


def _of_one_kind(records: list[bytes], kind: int, chance: random.Random) -> list[bytes]:
    """The same field of every record of a kind gets one value, or the records are dropped."""
    if chance.random() < 0.5:
        return [record for record in records if wire.kind_of(record) != kind]
    seed = chance.random()
    return [
        changed(record, random.Random(seed)) if wire.kind_of(record) == kind else record
        for record in records
    ]


def with_size(record: bytes) -> bytes:
    """Return the record with the right length in its header."""
    return record[:16] + struct.pack("<I", len(record)) + record[20:]


def changed(record: bytes, chance: random.Random) -> bytes:
    """One field gets another value; rarely a header's, or all that follows the header is noise."""
    kind = wire.kind_of(record)
    body = layout.BODIES.get(kind)  # type: ignore[call-overload]
    draw = chance.random()
    if draw < 0.15:
        return _header_changed(record, chance)
    if draw < 0.2:
        noise = chance.randbytes(len(record) - wire.HEADER.size)
        return record[: wire.HEADER.size] + noise
    if body is None:
        return _json_changed(record, chance)
    return _field_changed(record, body[0], chance)


def _header_changed(record: bytes, chance: random.Random) -> bytes:
    at_ns, seq, size, kind, reserved, tgid, tid = wire.HEADER.unpack_from(record)
    match chance.randrange(5):
        case 0:
            at_ns = _number(at_ns, 8, chance)
        case 1:
            seq = _number(seq, 8, chance)
        case 2:
            kind = chance.choice((*Kind, 0, 77, 65535))
        case 3:
            tgid = _number(tgid, 4, chance)
        case _:
            tid = _number(tid, 4, chance)
    return (
        wire.HEADER.pack(at_ns, seq, size, kind, reserved, tgid, tid) + record[wire.HEADER.size :]
    )


def _number(before: int, width: int, chance: random.Random) -> int:
    near = before + chance.choice((-1, 1, -(10**9), 10**9, 4096))
    value: int = chance.choice((near, chance.choice(NUMBERS), chance.getrandbits(64)))
    return value % (1 << 8 * width)


def _field_changed(record: bytes, codes: str, chance: random.Random) -> bytes:
    places: list[tuple[int, int]] = []
    at = wire.HEADER.size
    for code in re.findall(r"\d*[a-zA-Z]", codes):
        width = struct.calcsize("<" + code)
        if not code.endswith("x"):
            places.append((at, width))
        at += width
    places = [(at, width) for at, width in places if at + width <= len(record)]
    if not places:
        return _header_changed(record, chance)
    at, width = chance.choice(places)
    if width in (4, 8):
        before = int.from_bytes(record[at : at + width], "little")
        value = _number(before, width, chance).to_bytes(width, "little")
    elif width in (1, 2):
        value = chance.randbytes(width)
    else:
        value = chance.choice((b"\xff" * width, bytes(width), chance.randbytes(width)))
    return record[:at] + value + record[at + width :]


def _json_changed(record: bytes, chance: random.Random) -> bytes:
    try:
        fields = json.loads(record[wire.HEADER.size :])
    except ValueError:
        return _header_changed(record, chance)
    if not isinstance(fields, dict) or not fields:
        return _header_changed(record, chance)
    name = chance.choice(sorted(fields))
    draw = chance.randrange(8)
    if draw == 0:
        del fields[name]
    elif draw == 1:
        fields[name] = [fields[name]] * chance.choice((1, 2, 1000))
    elif draw < 5 and isinstance(fields[name], int) and not isinstance(fields[name], bool):
        fields[name] = chance.choice((*NUMBERS, -1, -(2**63), 10**30, -(10**18)))
    elif draw < 6 and isinstance(fields[name], list) and fields[name]:
        at = chance.randrange(len(fields[name]))
        fields[name] = [*fields[name][:at], chance.choice(JSON_VALUES), *fields[name][at + 1 :]]
    else:
        fields[name] = chance.choice(JSON_VALUES)
    return with_size(record[: wire.HEADER.size] + json.dumps(fields).encode())
