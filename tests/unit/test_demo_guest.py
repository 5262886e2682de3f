# SPDX-License-Identifier: MIT
"""The guests' images: what is asked for is what the ROM holds, and what is predicted follows from
it.
"""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from vftrace.demo import guest
from vftrace.demo.guest import DirtySet, GuestError, Step

FIRST = 0x1000


def test_the_rom_fits_qemu_and_starts_at_the_reset_vector() -> None:
    rom = guest.dirtying_rom(guest.fixed(FIRST, 16, 1000))
    assert len(rom) % 65536 == 0
    # At reset the CPU fetches from 16 bytes below the end: a far jump (0xea) to the ROM's alias at
    # f000:0.
    assert rom[-16:-11] == b"\xea" + struct.pack("<HH", 0, 0xF000)


@pytest.mark.parametrize(
    "dirty",
    [
        guest.fixed(FIRST, 3072, 1000),
        guest.growing(FIRST, 100, 50, 1000, 2000),
        guest.sliding(FIRST, 256, 64, 4096, 5000, ticks_per_second=100),
        guest.bursts(FIRST, 512, 3, 0.5, 10000),
    ],
)
def test_parameters_are_encoded(dirty: DirtySet) -> None:
    assert guest.read_rom(guest.dirtying_rom(dirty)) == dirty


def test_the_schedule_lies_in_the_rom_as_addresses_counts_and_pauses() -> None:
    rom = guest.dirtying_rom(guest.bursts(FIRST, 7, 1, 0.25, 1000, ticks_per_second=100))
    assert struct.pack("<III", FIRST * 4096, 7, 25) in rom


def test_other_images_are_refused() -> None:
    with pytest.raises(GuestError, match="not a firmware image"):
        guest.read_rom(guest.exits_rom())
    with pytest.raises(GuestError, match="not a firmware image"):
        guest.read_rom(b"")


def test_patterns_are_what_their_names_say() -> None:
    assert guest.growing(FIRST, 10, 5, 22, 1000).steps == (
        Step(FIRST, 22),  # the first pass fills all of it
        Step(FIRST, 10),
        Step(FIRST, 15),
        Step(FIRST, 20),
        Step(FIRST, 22),
    )
    assert guest.growing(FIRST, 10, 5, 22, 1000).loop_from == 4
    assert guest.sliding(FIRST, 10, 4, 20, 1000).steps == (
        Step(FIRST, 20),
        Step(FIRST, 10),
        Step(FIRST + 4, 10),
        Step(FIRST + 8, 10),
    )
    assert guest.bursts(FIRST, 10, 2, 0.1, 1000).steps == (Step(FIRST, 10), Step(FIRST, 10, 20))


def test_written_pages_of_a_fixed_set() -> None:
    dirty = guest.fixed(FIRST, 100, 1000)
    assert guest.written_pages(dirty, 0, 100) == dirty.pages
    assert guest.written_pages(dirty, 95, 10) == {
        *range(FIRST + 95, FIRST + 100),
        *range(FIRST, FIRST + 5),
    }
    assert guest.written_pages(dirty, 250, 0) == set()


def test_the_tick_counter_counts_budgets() -> None:
    dirty = guest.fixed(FIRST, 100, 1000)  # 5 pages at each of 200 ticks a second
    assert [dirty.writes_after(ticks) for ticks in (0, 1, 2, 10)] == [0, 100, 105, 145]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guest.fixed(0xFF, 16, 1000), "not usable RAM"),
        (lambda: guest.fixed(FIRST, 0, 1000), "at least one page"),
        (lambda: guest.fixed(0xBFFFF, 2, 1000), "not usable RAM"),
        (lambda: guest.fixed(FIRST, 16, 1001), "not a multiple"),
        (lambda: guest.fixed(FIRST, 16, 0), "not a multiple"),
        (lambda: guest.fixed(FIRST, 16, 100, ticks_per_second=10), "19 to 10000 ticks"),
        (lambda: guest.growing(FIRST, 16, 0, 32, 1000), "step of at least 1"),
        (lambda: guest.growing(FIRST, 16, 1, 8, 1000), "step of at least 1"),
        (lambda: guest.sliding(FIRST, 16, 1, 8, 1000), "step of at least 1"),
        (lambda: guest.bursts(FIRST, 16, 0, 1, 1000), "at least one pass"),
        (lambda: guest.sliding(FIRST, 1, 1, 9000, 1000), "room for"),
        (lambda: guest.exits_rom(0x10000), "no such I/O port"),
        (lambda: guest.dirtying_rom(replace(guest.fixed(FIRST, 1, 1000), steps=())), "empty"),
    ],
)
def test_what_cannot_be_built_is_refused_with_one_line(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(GuestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_boot_sector_is_one() -> None:
    sector = guest.boot_sector()
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"
    assert bytes.fromhex("b8 13 00 cd 10") in sector  # mov ax,0x13; int 0x10


def test_the_exits_rom_reads_the_port_for_ever() -> None:
    code = guest.exits_rom(0x1234)[:8]
    assert code[1:4] == b"\xba\x34\x12"  # mov dx,0x1234
    assert code[4:7] == b"\xec\xeb\xfd"  # in al,dx; jmp back to it


def _model(dirty: DirtySet) -> Iterator[int]:
    """What the firmware does, instruction by instruction in spirit: the independent side of
    written_pages.
    """
    at = 0
    while True:
        step = dirty.steps[at]
        for offset in range(step.pages):
            yield step.first_page + offset
        at = at + 1 if at + 1 < len(dirty.steps) else dirty.loop_from


@given(
    window=st.integers(1, 40),
    slide=st.integers(1, 50),
    more=st.integers(0, 60),
    start=st.integers(0, 500),
    count=st.integers(0, 300),
)
def test_written_pages_follow_the_schedule(
    window: int, slide: int, more: int, start: int, count: int
) -> None:
    dirty = guest.sliding(FIRST, window, slide, window + more, 1000)
    model = _model(dirty)
    for _ in range(start):
        next(model)
    assert guest.written_pages(dirty, start, count) == {next(model) for _ in range(count)}
