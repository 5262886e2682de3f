# SPDX-License-Identifier: MIT
"""A hole in a stream of numbers is found whatever order they come in."""

from hypothesis import given
from hypothesis import strategies as st

from vftrace.analysis.sequence import SequenceTracker

COUNT = st.integers(1, 200)


@given(COUNT.flatmap(lambda n: st.permutations(range(n))))
def test_all_in_any_order_leaves_no_hole(numbers: list[int]) -> None:
    stream = SequenceTracker()
    assert all(stream.accept(n) for n in numbers)
    assert not stream.holes


@given(st.data(), COUNT)
def test_any_one_missing_is_a_hole(data: st.DataObject, count: int) -> None:
    missing = data.draw(st.integers(0, count - 1))
    numbers = data.draw(st.permutations([n for n in range(count) if n != missing]))
    stream = SequenceTracker()
    assert all(stream.accept(n) for n in numbers)
    stream.ends_at(count)
    assert stream.holes


@given(st.lists(st.integers(0, 30), max_size=100))
def test_each_number_is_accepted_once(numbers: list[int]) -> None:
    stream = SequenceTracker()
    seen: set[int] = set()
    for number in numbers:
        assert stream.accept(number) == (number not in seen)
        seen.add(number)
    assert stream.holes == (seen != set(range(len(seen))))


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=30))
def test_any_numbers_at_all(numbers: list[int]) -> None:
    """No number makes it remember more than it may, or forget that something is missing."""
    stream = SequenceTracker()
    for number in numbers:
        stream.accept(number)
    assert len(stream._missing) <= 4096 * len(numbers)
    if set(numbers) != set(range(len(set(numbers)))):
        assert stream.holes


def test_a_long_way_round_is_not_remembered_number_by_number() -> None:
    stream = SequenceTracker()
    stream.accept(1 << 63)
    assert stream.holes
    assert not stream._missing


def test_a_late_record_fills_its_hole() -> None:
    stream = SequenceTracker()
    assert stream.accept(1)
    assert stream.holes
    assert stream.accept(0)
    assert not stream.holes


def test_a_stream_may_begin_later() -> None:
    stream = SequenceTracker(first=10)
    assert not stream.accept(9)
    assert stream.accept(10)
    assert not stream.holes


def test_the_end_shows_what_is_missing_at_the_end() -> None:
    stream = SequenceTracker()
    stream.accept(0)
    stream.ends_at(1)
    assert not stream.holes
    stream.ends_at(2)
    assert stream.holes
