# SPDX-License-Identifier: MIT
"""Keys: how bytes become keys, and how keys change the view."""

import os
import pty
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.screens import at, keys
from vftrace.outputs.top.keys import KeyReader, parse
from vftrace.outputs.top.state import ACTION_OF, BINDINGS, ViewState, press


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B", ["Up", "Down"]),
        (b"\x1bOA", ["Up"]),
        (b"\x1b[5~\x1b[6~", ["PageUp", "PageDown"]),
        (b"\x1b[H\x1b[F\x1b[1~\x1b[4~", ["Home", "End", "Home", "End"]),
        (b"\r\n \x7f", ["Enter", "Enter", "Space", "Backspace"]),
        ("é".encode(), ["é"]),
        (b"\x1b[1;5Cq", ["q"]),
        (b"\x1b[200~q", ["q"]),
        (b"\x1bq", ["Esc", "q"]),
        (b"\x1b\x1b[A", ["Esc", "Up"]),
        (b"\x00\x01", []),
    ],
)
def test_bytes_are_keys(data: bytes, expected: list[str]) -> None:
    assert parse(data) == (expected, b"")


@given(st.binary(max_size=40))
def test_any_bytes_are_taken(data: bytes) -> None:
    found, rest = parse(data)
    assert data.endswith(rest)
    assert all(found)


@given(st.lists(st.sampled_from([b"\x1b[A", b"\x1b[5~", b"q", "é".encode(), b"\r"])), st.data())
def test_where_a_read_ends_does_not_matter(pieces: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pieces)
    cut = data.draw(st.integers(0, len(whole)))
    first, rest = parse(whole[:cut])
    second, end = parse(rest + whole[cut:])
    assert (first + second, end) == parse(whole)


def test_the_reader_reads_without_waiting_and_restores_the_terminal() -> None:
    main, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        with KeyReader(terminal) as reader:
            assert reader.read() == []
            os.write(main, b"\x1b[Aq")
            assert reader.read() == ["Up", "q"]
            os.write(main, b"\x1b")
            assert reader.read() == ["Esc"]
            assert termios.tcgetattr(terminal) != before
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(main)
        os.close(terminal)


def test_no_key_means_two_things() -> None:
    bound = [key for binding in BINDINGS for key in binding.keys]
    assert len(bound) == len(set(bound)) == len(ACTION_OF)


def test_enter_opens_and_escape_closes() -> None:
    moment = at("libvirt", 2.5)
    opened = keys(moment, "Enter")
    assert opened.screen == "timeline"
    assert opened.opened is not None
    assert press(opened, "Esc", moment.snapshot) == ViewState()


def test_enter_on_a_vm_opens_its_migration() -> None:
    moment = at("libvirt", 2.5)
    source = next(vm for vm in moment.snapshot.vms if vm.running)
    state = keys(moment, "End")
    assert state.selected == ("vm", source.pid, 0)
    migration = moment.snapshot.migrations[0]
    opened = press(state, "Enter", moment.snapshot)
    assert opened.opened == ("migration", migration.pid, migration.started_at_ns)


def test_the_cursor_keeps_to_its_row_when_others_come() -> None:
    early, late = at("four-at-once", 1.2), at("four-at-once", 60.0)
    state = keys(early, "Down")
    assert state.selected in [
        ("migration", m.pid, m.started_at_ns) for m in late.snapshot.migrations
    ]
    assert press(state, "Up", late.snapshot).selected != state.selected


def test_a_filter_is_typed_kept_and_dropped() -> None:
    moment = at("four-at-once", 2.0)
    typing = keys(moment, "/", *"once-2q")
    assert typing.typing
    assert not typing.quit
    kept = press(press(typing, "Backspace", moment.snapshot), "Enter", moment.snapshot)
    assert (kept.filter, kept.typing) == ("once-2", False)
    assert press(kept, "Esc", moment.snapshot).filter == ""


def test_sorting_by_downtime_puts_the_longest_first() -> None:
    moment = at("four-at-once", 60.0)
    state = keys(moment, "o", "o", "o")
    assert state.sort == "downtime"
    longest = max(moment.snapshot.migrations, key=lambda m: m.downtime.vcpu_ns or 0)
    opened = press(state, "Enter", moment.snapshot)
    assert opened.opened == ("migration", longest.pid, longest.started_at_ns)


@given(st.lists(st.sampled_from([*ACTION_OF, "x", "é", "Backspace", "F1"]), max_size=30))
def test_any_keys_lead_somewhere(pressed: list[str]) -> None:
    moment = MOMENT
    state = keys(moment, *pressed)
    assert state.scroll >= 0
    assert (state.screen == "timeline") == (state.opened is not None)


MOMENT = at("four-at-once", 2.0)
