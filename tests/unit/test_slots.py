# SPDX-License-Identifier: MIT
"""Slots over the rounds, and the forecast's line, from given figures."""

from collections.abc import Mapping

from msgspec.structs import replace
from rich.console import Console

from tests.unit.golden_text import RECORDINGS
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.model.migration import Forecast, Migration, Role, Round, SlotRound
from vftrace.outputs.text.forecast import NOTHING, forecast_of
from vftrace.outputs.text.glyphs import glyphs
from vftrace.outputs.text.slots import SHOWN, slot_histories, slots_part

SECOND = 1_000_000_000


def recorded() -> Migration:
    snapshot = track(Recording(RECORDINGS / "libvirt.vft.gz")).snapshot()
    return next(m for m in snapshot.migrations if m.role != "destination")


def with_slots(*rounds: Mapping[int, int | None]) -> Migration:
    """A round a second; new pages by slot, of 1000 pages and 10 parts each, all in the first part."""
    made = []
    for second, slots in enumerate(rounds):
        each = tuple(
            SlotRound(slot, new, new, 1000, None if new is None else (new, *[0] * 9))
            for slot, new in slots.items()
        )
        made.append(Round(second * SECOND, 1000, None, None, None, None, each))
    return replace(recorded(), rounds=tuple(made))


def text_of(migration: Migration, width: int = 120) -> str:
    console = Console(width=width, record=True, color_system=None)
    with console.capture() as captured:
        for part in slots_part(migration, width, glyphs(ascii=True)):
            console.print(part)
    return captured.get()


def test_rates_are_of_each_slot_and_round() -> None:
    first, second = slot_histories(with_slots({0: 9, 1: 9}, {0: 100, 1: 0}, {0: 50, 1: 10}))
    assert (first.slot, first.new_pages, second.new_pages) == (0, (100, 50), (0, 10))
    page = recorded().dirty.page_size
    assert first.rates == (100 * page, 50 * page)
    assert second.rates == (0, 10 * page)


def test_what_is_not_counted_is_not_summed() -> None:
    shown = text_of(with_slots({0: 9}, {0: 100}, {0: None}, {0: 7}))
    row = shown.splitlines()[-1].split()
    assert row[0] == "0"
    # new pages and their mean; the last round is known
    assert row[3:5] == ["-", "-"]
    assert "?" in row[-2]


def test_slots_without_new_pages_are_left_out_and_many_are_counted() -> None:
    assert text_of(with_slots({0: 5, 1: 5}, {0: 0, 1: 0})) == ""
    many = dict.fromkeys(range(SHOWN + 2), 5)
    shown = text_of(with_slots(many, {**many, 0: 0}))
    assert "1 smaller" in shown
    assert not any(line.split()[:1] == ["0"] for line in shown.splitlines())


def test_a_table_fits_the_terminal() -> None:
    migration = with_slots({0: 9}, *[{0: 100}] * 80)
    assert max(len(line.rstrip()) for line in text_of(migration, 80).splitlines()) <= 80


def test_the_forecast_is_of_a_guest_that_runs_or_was_made_in_time() -> None:
    done = recorded()
    told = done.forecast
    assert isinstance(told, Forecast)
    said = forecast_of(done)
    assert said is not None
    assert said.startswith(f"after sweep {told.after_sweeps}: ")
    running = replace(done, outcome=None, stopped_at_ns=None)
    assert forecast_of(running) == said.removeprefix(f"after sweep {told.after_sweeps}: ")
    assert forecast_of(replace(running, forecast=None)) == NOTHING
    assert forecast_of(replace(done, forecast=None)) is None
    assert forecast_of(replace(running, role=Role.DESTINATION)) is None
