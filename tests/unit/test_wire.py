# SPDX-License-Identifier: MIT
"""The two halves of the wire format agree, and hostile bytes never raise anything but ValueError."""

import json
import struct
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vftrace import events
from vftrace.events import Event, layout, wire
from vftrace.events.layout import BODIES, Kind

JSON_KINDS = sorted(set(Kind) - set(BODIES))


def test_every_kind_has_its_event() -> None:
    assert set(wire.CLASSES) == set(Kind)
    made = [event for event in vars(events).values() if isinstance(event, type)]
    assert set(made) - set(wire.CLASSES.values()) == {Event, events.Unknown}


@pytest.mark.parametrize("kind", sorted(set(BODIES) - wire.BITMAPS), ids=lambda kind: kind.name)
def test_an_event_has_the_fields_of_its_struct(kind: Kind) -> None:
    names = wire.CLASSES[kind].__struct_fields__
    assert names == (*Event.__struct_fields__, *BODIES[kind][1])


def test_a_record_made_as_the_kernel_makes_it() -> None:
    """By hand, from the header's text: a GET_DIRTY_LOG and its two pieces."""
    head = struct.pack("<QQIHHII", 1000, 7, 32 + 48, 5, 0, 42, 43)
    body = struct.pack("<QQQQIiII", 900, 800, 4104, 4104, 3, -14, 2, 1)
    assert wire.decode(head + body) == events.GetDirtyLog(
        *(1000, 7, 42, 43), 900, 800, 4104, 4104, 3, -14, 2, 1
    )
    head = struct.pack("<QQIHHII", 1000, 8, 32 + 24 + 16, 7, 0, 42, 43)
    body = struct.pack("<QQIHHQQ", 900, 32768, 3, 2, 0, 1 << 63, 1)
    assert wire.decode(head + body) == events.Piece(
        *(1000, 8, 42, 43), 900, 32768, 3, 1 << 63 | 1 << 64
    )
    head = struct.pack("<QQIHHII", 1000, 9, 32 + 24, 7, 0, 42, 43)
    body = struct.pack("<QQIHH", 900, 0, 3, 512, 1)
    piece = wire.decode(head + body)
    assert isinstance(piece, events.Piece)
    assert piece.bits.bit_count() == 32768


def test_an_old_piece_of_ones_has_no_words() -> None:
    """As earlier versions wrote it."""
    head = struct.pack("<QQIHHII", 1000, 9, 32 + 24, 7, 0, 42, 43)
    piece = wire.decode(head + struct.pack("<QQIHH", 900, 32768, 3, 511, 1))
    assert isinstance(piece, events.Piece)
    assert piece.bits == (1 << 511 * 64) - 1


# -- bitmaps -----------------------------------------------------------------------------------


def part(words: int, *entries: int) -> bytes:
    """A record of kind BITMAP by hand."""
    body = struct.pack(f"<QQII{len(entries)}Q", 900, 64, 3, words, *entries)
    return struct.pack("<QQIHHII", 1000, 8, 32 + len(body), 17, 0, 42, 43) + body


def block(number: int, mask: int = 0, ones: int = 0) -> int:
    """A head."""
    return number | mask << 16 | ones << 32


def test_a_bitmap_made_as_the_kernel_makes_it() -> None:
    """By hand, from the header's text: a word, a run of ones, the last word of a block, and one behind that."""
    word = 0x8000000000000001
    record = part(
        4096, block(0, 0b10), word, block(1, ones=3), block(9, 0x8000), 7, block(255, 1), 1
    )
    bits = word << 64 | ((1 << 48 * 64) - 1) << 16 * 64 | 7 << 159 * 64 | 1 << 255 * 16 * 64
    event = wire.decode(record)
    assert isinstance(event, events.BitmapPart)
    assert event == events.BitmapPart(1000, 8, 42, 43, 900, 64, 3, 4096, event.entries)
    assert event.bits == bits


def test_a_whole_bitmap_of_ones_is_one_entry() -> None:
    event = wire.decode(part(4096, block(0, ones=256)))
    assert isinstance(event, events.BitmapPart)
    assert event.bits == (1 << 4096 * 64) - 1


@pytest.mark.parametrize(
    "record",
    [
        part(4097, block(0, 1), 1),
        part(16, block(1, 1), 1),
        part(64, block(2, 1), 1, block(2, 2), 1),
        part(64, block(2, 1), 1, block(1, 1), 1),
        part(64, block(0, ones=5)),
        part(4096, block(0, ones=0xFFFF)),
        part(64, block(0, 0b111), 1, 1),
        part(64)[:-4],
    ],
    ids=["words", "behind the end", "twice", "back", "long run", "longer run", "cut", "short"],
)
def test_a_bitmap_that_makes_no_sense(record: bytes) -> None:
    record = record[:16] + struct.pack("<I", len(record)) + record[20:]
    assert isinstance(wire.decode(record), events.Unknown)


@given(st.integers(0, 5000), st.lists(st.integers(0, (1 << 64) - 1), max_size=40))
def test_a_bitmap_is_never_larger_than_the_kernels(words: int, entries: list[int]) -> None:
    event = wire.decode(part(words, *entries))
    if isinstance(event, events.BitmapPart):
        assert event.bits.bit_length() <= -(-words // 16) * 16 * 64 <= 4096 * 64


# -- round trips -------------------------------------------------------------------------------

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
S32 = st.integers(-(1 << 31), (1 << 31) - 1)
S64 = st.integers(-(1 << 63), (1 << 63) - 1)
HEAD = st.tuples(U64, U64, U32, U32)
TEXT = st.text(max_size=40)


def _own(head: tuple[int, int, int, int]) -> st.SearchStrategy[events.Event]:
    return st.one_of(
        st.just(events.Tick(*head)),
        st.builds(lambda a, b: events.ClockSample(*head, a, b), S64, st.integers(0, 1 << 62)),
        st.builds(lambda n: events.Lost(*head, n), U64),
        st.builds(lambda n: events.Gone(*head, n), U32),
        st.builds(lambda n, count: events.Uncounted(*head, n, count), U32, U64),
        st.builds(lambda *rest: events.VmLost(*head, *rest), U32, U64, U64, U64),
        st.builds(lambda table, count: events.TableFull(*head, table, count), TEXT, U64),
        st.builds(lambda uid, count: events.Untraced(*head, uid, count), U32, U64),
        st.builds(lambda *rest: events.MissedRuns(*head, *rest), TEXT, TEXT, U64, U64, U64),
        st.builds(
            lambda *rest: events.Process(*head, *rest),
            *(U32, U64, st.none() | TEXT, st.none() | TEXT, TEXT),
            *(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
        ),
        st.builds(
            lambda *rest: events.FileDescriptor(*head, *rest), U32, S32, TEXT, st.none() | TEXT
        ),
        st.builds(lambda s: events.End(*head, s), st.dictionaries(U32, U64, max_size=5)),
    )


@settings(max_examples=40, deadline=None)
@given(HEAD.flatmap(_own))
def test_what_the_collector_writes_is_read_back(event: events.Event) -> None:
    assert wire.decode(wire.encode(event)) == event


# -- hostile bytes -----------------------------------------------------------------------------


def _decodes_or_refuses(record: bytes) -> None:
    try:
        event = wire.decode(record)
    except ValueError:
        return
    assert isinstance(event, events.Event)


@given(st.binary(max_size=200))
def test_any_bytes(record: bytes) -> None:
    _decodes_or_refuses(record)


ALL_KINDS = [*Kind, 0, 999]


@given(HEAD, st.sampled_from(ALL_KINDS) | U16, st.binary(max_size=200))
def test_any_body_under_a_right_header(
    head: tuple[int, int, int, int], kind: int, body: bytes
) -> None:
    """With the right size nothing is refused: what does not fit is Unknown."""
    at_ns, seq, tgid, tid = head
    packed = wire.HEADER.pack(at_ns, seq, wire.HEADER.size + len(body), kind, 0, tgid, tid)
    event = wire.decode(packed + body)
    assert (event.at_ns, event.seq, event.tgid, event.tid) == head
    if isinstance(event, events.Unknown):
        assert event.kind == kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def _fields(kind: Kind) -> st.SearchStrategy[tuple[Kind, Any]]:
    """A body with all the names that this kind has, and anything in them."""
    names = wire.CLASSES[kind].__struct_fields__[len(Event.__struct_fields__) :]
    return st.fixed_dictionaries(dict.fromkeys(names, JSON)).map(lambda made: (kind, made))


def _decode_json(kind: int, text: str) -> events.Event:
    body = text.encode()
    head = wire.HEADER.pack(0, 0, wire.HEADER.size + len(body), kind, 0, 0, 0)
    return wire.decode(head + body)


@settings(deadline=None)
@given(st.sampled_from(JSON_KINDS).flatmap(_fields))
def test_json_of_the_wrong_type(made: tuple[Kind, Any]) -> None:
    """Every field of an event has the type of its class, whatever the JSON was."""
    kind, fields = made
    event = _decode_json(kind, json.dumps(fields))
    if isinstance(event, events.End):
        assert all(isinstance(n, int) for pair in event.streams.items() for n in pair)
    elif not isinstance(event, events.Unknown):
        hints = get_type_hints(type(event))
        for name in event.__struct_fields__:
            assert isinstance(getattr(event, name), hints[name])


@given(st.sampled_from(JSON_KINDS), JSON)
def test_json_of_the_wrong_shape(kind: Kind, value: object) -> None:
    event = _decode_json(kind, json.dumps(value))
    assert isinstance(event, events.Unknown | wire.CLASSES[kind])


def test_json_without_a_bottom() -> None:
    assert _decode_json(110, "[" * 100_000) == events.Unknown(0, 0, 0, 0, 110)


@settings(max_examples=40, deadline=None)
@given(HEAD.flatmap(_own), st.data())
def test_a_truncated_record_is_refused(event: events.Event, data: st.DataObject) -> None:
    record = wire.encode(event)
    cut = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(ValueError, match="record of"):
        wire.decode(record[:cut])


@settings(max_examples=40, deadline=None)
@given(HEAD.flatmap(_own), U32)
def test_a_wrong_size_is_refused(event: events.Event, size: int) -> None:
    record = wire.encode(event)
    wrong = record[:16] + struct.pack("<I", size) + record[20:]
    if size == len(record):
        assert wire.decode(wrong) == event
    else:
        with pytest.raises(ValueError, match="claims to have"):
            wire.decode(wrong)


@given(st.sampled_from([0, 1, 2, 65535]), st.integers(0, 65535), st.integers(0, 4200))
def test_a_piece_is_never_larger_than_the_kernels(fill: int, words: int, length: int) -> None:
    """24 bytes must not become a bitmap of 65535 words."""
    body = struct.pack("<QQIHH", 1, 0, 0, words, fill) + bytes(length)
    head = wire.HEADER.pack(0, 0, wire.HEADER.size + len(body), Kind.PIECE, 0, 0, 0)
    event = wire.decode(head + body)
    assert isinstance(event, events.Piece | events.Unknown)
    if isinstance(event, events.Piece):
        assert event.bits.bit_length() <= layout.PIECE_WORDS * 64
