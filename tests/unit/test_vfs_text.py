# SPDX-License-Identifier: MIT
"""Virtual functions in the live view and in the report: state, trouble in words, the last messages."""

import io
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console

from vftrace import events
from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.events import Mailbox, Tick, layout
from vftrace.model.host import HostInfo
from vftrace.model.migration import Snapshot
from vftrace.model.report import live_report
from vftrace.model.vf import VfHistory
from vftrace.outputs.report.json import state_json
from vftrace.outputs.report.text import render_report
from vftrace.outputs.text.glyphs import glyphs
from vftrace.outputs.text.vfs import state_of, vf_warnings
from vftrace.outputs.top.lines import changes
from vftrace.outputs.top.state import ViewState, press
from vftrace.outputs.top.view import Frame

RECORDING = Path(__file__).resolve().parents[1] / "golden/mailbox/6.12.vft.gz"
PF = "0000:01:00.0"
HOST = HostInfo("here", "boot", "6.12", "0", 0, ())
S, MS = 10**9, 10**6
ACK, NACK, CTS = 1 << 31, 1 << 30, 1 << 29
G = glyphs(ascii=True)


def said(at_ns: int, direction: int, *words: int) -> Mailbox:
    return Mailbox(
        at_ns=at_ns,
        seq=0,
        tgid=events.NO_PROCESS,
        tid=0,
        pf=PF,
        driver=layout.IXGBE,
        vf=3,
        direction=direction,
        words=len(words),
        size=16,
        ret=0,
        word=(*words, *[0] * (16 - len(words))),
    )


def tick(at_ns: int) -> Tick:
    return Tick(at_ns, 0, events.COLLECTOR, 0)


def life_of(*heard: events.Event) -> VfHistory:
    boxes = Mailboxes()
    for event in heard:
        boxes.feed(event)
    (life,) = boxes.vf_histories()
    return life


def ask(at_ns: int, first: int) -> tuple[Mailbox, Mailbox]:
    return said(at_ns, Mailbox.FROM_VF, first), said(at_ns + MS, Mailbox.TO_VF, first | ACK)


def snapshot_of(*lives: VfHistory, at_ns: int = 100 * S) -> Snapshot:
    return replace(Tracker().snapshot(), at_ns=at_ns, vfs=lives)


def text_of(what: object, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width, height=30, highlight=False).print(what)
    return out.getvalue()


def test_a_function_that_keeps_resetting_is_reported_in_words() -> None:
    events_ = [event for n in range(20) for event in ask(S + n * S, 1)]
    life = life_of(*events_, tick(22 * S))
    assert state_of(life) == "resetting"
    assert list(vf_warnings(life)) == [
        "KEEPS RESETTING: down 5 times, or reset 20 times, within 1m00s"
    ]
    assert state_of(life_of(*events_[:38], tick(22 * S))) != "resetting"


def test_a_card_that_does_not_answer_is_reported_in_words() -> None:
    silent = life_of(*ask(S, 1), said(2 * S, Mailbox.FROM_VF, 9), tick(4 * S))
    assert state_of(silent) == "no answer"
    assert list(vf_warnings(silent)) == [
        "THE CARD'S DRIVER DID NOT ANSWER within a second: once, and waits now"
    ]
    # Asked again and answered: it was silent, and is not any more.
    again = life_of(
        *ask(S, 1), said(2 * S, Mailbox.FROM_VF, 9), tick(4 * S), *ask(5 * S, 9), tick(5 * S)
    )
    assert state_of(again) == again.state
    assert list(vf_warnings(again)) == ["THE CARD'S DRIVER DID NOT ANSWER within a second: once"]


def test_an_answer_within_a_second_is_no_trouble() -> None:
    life = life_of(said(S, Mailbox.FROM_VF, 1), tick(S + 900 * MS), said(S + 950 * MS, 1, 1 | ACK))
    assert list(vf_warnings(life)) == []


def test_what_is_refused_is_counted_in_words() -> None:
    life = life_of(*ask(S, 1), said(2 * S, Mailbox.FROM_VF, 2), said(2 * S + MS, 1, 2 | NACK | CTS))
    assert list(vf_warnings(life)) == ["1 request refused by the card's driver"]


def test_the_list_shows_each_function_and_enter_its_messages() -> None:
    life = life_of(*ask(S, 1), *ask(S + 10 * MS, 9), tick(3 * S))
    snapshot = snapshot_of(life)
    state = ViewState()
    page = text_of(Frame(HOST, snapshot, snapshot.at_ns, state, ascii=True))
    assert "Virtual functions: 1" in page
    (line,) = [line for line in page.splitlines() if f"{PF} VF 3" in line]
    assert "reset" in line
    assert "< GET_QUEUES ACK tx=0 rx=0" in line
    state = press(state, "Enter", snapshot)
    assert (state.screen, state.opened) == ("vf", ("vf", PF, 3))
    page = text_of(Frame(HOST, snapshot, snapshot.at_ns, state, ascii=True))
    for words in ("> RESET", "< RESET ACK", "> GET_QUEUES", "negotiating 9.00 ms"):
        assert words in page
    assert press(state, "Esc", snapshot).screen == "list"


def test_a_function_that_is_gone_leaves_an_open_page() -> None:
    life = life_of(*ask(S, 1))
    state = press(ViewState(), "Enter", snapshot_of(life))
    page = text_of(Frame(HOST, snapshot_of(), S, state, ascii=True))
    assert "no longer known" in page


def test_the_filter_finds_functions_by_card_address_and_number() -> None:
    life = replace(life_of(*ask(S, 1)), address="0000:01:10.6")
    for text, there in (("01:00.0", True), ("10.6", True), ("VF 3", True), ("02:00", False)):
        frame = Frame(HOST, snapshot_of(life), S, ViewState(filter=text), ascii=True)
        assert (f"{PF} VF 3" in text_of(frame)) is there


def test_lines_tell_states_with_what_was_before() -> None:
    early = snapshot_of(life_of(*ask(S, 1)))
    late = snapshot_of(life_of(*ask(S, 1), *ask(S + 10 * MS, 9)))
    first = [line.split(" ", 1)[1] for line in changes(None, early, G)]
    assert first == [
        f"{PF} VF 3: reset",
        f"{PF} VF 3: negotiating (was reset for 1.00 ms)",
    ]
    more = [line.split(" ", 1)[1] for line in changes(early, late, G)]
    assert more == [f"{PF} VF 3: configuring (was negotiating for 9.00 ms)"]


def test_lines_tell_trouble_once() -> None:
    before = snapshot_of(life_of(*ask(S, 1)))
    after = snapshot_of(life_of(*ask(S, 1), said(2 * S, Mailbox.FROM_VF, 9), tick(4 * S)))
    assert any("DID NOT ANSWER" in line for line in changes(before, after, G))
    assert not any("DID NOT ANSWER" in line for line in changes(after, after, G))


def test_a_card_with_a_hostile_name_steers_no_terminal() -> None:
    life = replace(life_of(*ask(S, 1)), pf="\x1b[2J", address="\x1b]0;x\x07")
    snapshot = snapshot_of(life)
    for what in (
        Frame(HOST, snapshot, S, ViewState(), ascii=True),
        render_report(live_report(HOST, snapshot), ascii=True),
    ):
        assert "\x1b" not in text_of(what)


def test_the_report_of_a_recording_has_every_function_with_its_messages() -> None:
    recording = Recording(RECORDING)
    snapshot = track(recording).snapshot()
    text = text_of(render_report(live_report(recording.host, snapshot), ascii=True))
    assert f"Virtual functions, by their mailboxes: {len(snapshot.vfs)}" in text
    for life in snapshot.vfs:
        assert f"{life.pf} VF {life.vf}" in text
    document = state_json(recording.host, snapshot)
    assert [(vf["pf"], vf["vf"], vf["state"]) for vf in document["vfs"]] == [
        (life.pf, life.vf, life.state) for life in snapshot.vfs
    ]
