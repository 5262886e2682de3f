# SPDX-License-Identifier: MIT
"""Dirty accounting against a model of KVM's log, kept page by page."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vftrace.analysis import dirty
from vftrace.analysis.dirty import PIECE_PAGES, Bitmap, SlotLog
from vftrace.events import Piece

PAGES = 200
PAGE = st.integers(0, PAGES - 1)
SOME = st.sets(PAGE, max_size=40)


def _bitmap(pages: set[int]) -> Bitmap:
    bits = sum(1 << page for page in pages)
    return dirty.bitmap_of([Piece(0, 0, 0, 0, 0, 0, 0, bits)])


def _pages(bitmap: Bitmap) -> set[int]:
    return {
        number * PIECE_PAGES + i
        for number, bits in bitmap.items()
        for i, digit in enumerate(reversed(f"{bits:b}"))
        if digit == "1"
    }


FAR = st.sets(st.integers(0, 3 * PIECE_PAGES), max_size=20)


@given(FAR, FAR)
def test_bitmaps_are_sets(one: set[int], other: set[int]) -> None:
    a, b = _bitmap(one), _bitmap(other)
    assert _pages(a) == one
    assert dirty.count(a) == len(one)
    assert _pages(dirty.union(a, b)) == one | other
    assert _pages(dirty.minus(a, b)) == one - other
    assert _pages(dirty.common(a, b)) == one & other
    assert 0 not in {
        bits for made in (dirty.minus(a, b), dirty.common(a, b)) for bits in made.values()
    }


@given(FAR, st.integers(0, 3 * PIECE_PAGES))
def test_a_bitmap_can_be_moved(pages: set[int], by: int) -> None:
    assert _pages(dirty.shifted(_bitmap(pages), by)) == {page + by for page in pages}


@given(FAR, st.integers(0, 3 * PIECE_PAGES), st.integers(0, 3 * PIECE_PAGES))
def test_a_range_can_be_cut_out(pages: set[int], first: int, size: int) -> None:
    left = {page for page in pages if not first <= page < first + size}
    assert _pages(dirty.outside(_bitmap(pages), first, size)) == left


@given(st.integers(0, 5 * PIECE_PAGES), FAR)
def test_a_piece_may_begin_anywhere(first: int, pages: set[int]) -> None:
    bits = sum(1 << page for page in pages)
    assert _pages(dirty.bitmap_of([Piece(0, 0, 0, 0, 0, first, 0, bits)])) == {
        first + page for page in pages
    }


def test_pieces_of_one_bitmap_add_up() -> None:
    pieces = [Piece(0, 0, 0, 0, 0, first, 0, 0b11) for first in (0, 1, PIECE_PAGES - 1)]
    assert _pages(dirty.bitmap_of(pieces)) == {0, 1, 2, PIECE_PAGES - 1, PIECE_PAGES}


@dataclass
class Kvm:
    """virt/kvm/kvm_main.c under manual protect: GET reports and keeps, CLEAR removes. A page becomes dirty
    in the log only if it is not: that is what the guest's first write to a protected page does."""

    logged: set[int] = field(default_factory=set)
    fresh: set[int] = field(default_factory=set)

    def write(self, pages: set[int]) -> None:
        self.fresh |= pages - self.logged
        self.logged |= pages

    def get(self) -> tuple[set[int], set[int]]:
        """(what GET_DIRTY_LOG returns, what became dirty since the last one)"""
        fresh, self.fresh = self.fresh, set()
        return set(self.logged), fresh

    def clear(self, pages: set[int]) -> None:
        self.logged -= pages


# write, or clear more than is dirty (as QEMU's CLEAR does), or sweep
STEPS = st.lists(st.tuples(st.sampled_from(["write", "clear", "get"]), SOME), max_size=40)


@settings(max_examples=200)
@given(STEPS)
def test_new_pages_under_manual_protect(steps: list[tuple[str, set[int]]]) -> None:
    """Writes, clears and sweeps in any order: new is what turned from clean to dirty in the log."""
    kvm = Kvm()
    log = SlotLog(pages=PAGES, manual=True, initially_set=False)
    for what, pages in steps:
        if what == "write":
            kvm.write(pages)
        elif what == "clear":
            # QEMU's CLEAR may take a page that no GET has shown: it is sent, but nobody has counted it.
            kvm.fresh -= pages & kvm.fresh
            kvm.clear(pages)
            log.cleared(_bitmap(pages))
        else:
            got, fresh = kvm.get()
            log.got(_bitmap(got))
            taken, _ = log.take()
            assert taken is not None
            assert _pages(taken) == fresh


@given(st.lists(SOME, max_size=10))
def test_new_pages_without_manual_protect(rounds: list[set[int]]) -> None:
    """GET clears what it returns: all of it is new."""
    log = SlotLog(pages=PAGES, manual=False, initially_set=False)
    for pages in rounds:
        log.got(_bitmap(pages))
        taken, initial = log.take()
        assert taken is not None
        assert (_pages(taken), initial) == (pages, False)


def test_the_first_sweep_under_initially_set_is_known_as_such() -> None:
    log = SlotLog(pages=PAGES, manual=True, initially_set=True)
    log.got(_bitmap(set(range(PAGES))))
    assert log.take()[1]
    log.got(_bitmap(set(range(PAGES))))
    taken, initial = log.take()
    assert (taken, initial) == ({}, False)


def test_two_readers_of_one_log_do_not_count_twice() -> None:
    """A display reads the log between two sweeps: what it saw first is new in the next sweep, once."""
    log = SlotLog(pages=PAGES, manual=True, initially_set=False)
    log.got(_bitmap({1}))
    log.got(_bitmap({1, 2}))
    taken, _ = log.take()
    assert taken is not None
    assert _pages(taken) == {1, 2}
    log.got(_bitmap({1, 2}))
    assert log.take()[0] == {}


def test_after_a_missing_part_two_sweeps_are_unknown_under_manual_protect() -> None:
    """GET 2 could not be read, and GET 3 repeats page 2: GET 3 does not show that the page is new."""
    log = SlotLog(pages=PAGES, manual=True, initially_set=False)
    log.got(_bitmap({1}))
    assert log.take()[0] == _bitmap({1})
    log.damaged()
    assert log.take()[0] is None
    log.got(_bitmap({1, 2, 3}))
    assert log.take()[0] is None
    log.got(_bitmap({1, 2, 3, 4}))
    assert log.take()[0] == _bitmap({4})


def test_after_a_missing_part_one_sweep_is_unknown_where_get_clears() -> None:
    log = SlotLog(pages=PAGES, manual=False, initially_set=False)
    log.damaged()
    assert log.take()[0] is None
    log.got(_bitmap({3}))
    assert log.take()[0] == _bitmap({3})
