# SPDX-License-Identifier: MIT
"""Which VM a function's messages belong to (analysis/devices/mailbox_evidence.py, mailbox/profile.py)."""

from pathlib import Path

import pytest

from vftrace import events
from vftrace.analysis.devices.device import PassedDevice
from vftrace.analysis.devices.mailbox_evidence import HostContext, assigned, mailbox_agreements
from vftrace.analysis.devices.strategy import MailboxAgreement
from vftrace.analysis.devices.vf_history import SETTLED_NS, Mailboxes
from vftrace.analysis.process import Process
from vftrace.events import Mailbox, layout
from vftrace.mailbox.profile import ProfileError, parse_profile, with_profiles
from vftrace.model.vf import VfHistory

PF = "0000:01:00.0"
ACK, NACK, CTS = 1 << 31, 1 << 30, 1 << 29
EXAMPLE = Path(__file__).resolve().parents[2] / "docs/profiles/assisted-ixgbe.toml"
DRIVERS = with_profiles([parse_profile(EXAMPLE.read_text())])


class Card:
    """Mailboxes that take messages, at ever later times."""

    def __init__(self) -> None:
        self.boxes = Mailboxes(DRIVERS)
        self.at_ns = 100

    def hear(self, direction: int, *words: int, vf: int = 0) -> None:
        self.at_ns += 10
        event = Mailbox(
            at_ns=self.at_ns,
            seq=0,
            tgid=events.NO_PROCESS,
            tid=0,
            pf=PF,
            driver=layout.IXGBE,
            vf=vf,
            direction=direction,
            words=len(words),
            size=16,
            ret=0,
            word=(*words, *[0] * (16 - len(words))),
        )
        self.boxes.feed(event)

    def agree(self, *words: int, vf: int = 0) -> int:
        """A request that is granted; when."""
        self.hear(Mailbox.FROM_VF, *words, vf=vf)
        self.hear(Mailbox.TO_VF, words[0] | ACK | CTS, *words[1:], vf=vf)
        return self.at_ns

    def refuse(self, *words: int) -> None:
        self.hear(Mailbox.FROM_VF, *words)
        self.hear(Mailbox.TO_VF, words[0] | NACK | CTS, *words[1:])

    def histories(self) -> dict[tuple[str, int], VfHistory]:
        return {(history.pf, history.vf): history for history in self.boxes.vf_histories()}


def vm(pid: int, *vfs: int, opened: int | None = 1, closed: int | None = None) -> Process:
    """A process that holds these functions of the card."""
    process = Process(pid, 0)
    for number in vfs:
        device = PassedDevice(number, opened, pf=PF, vf=number, closed_at_ns=closed)
        process.devices.all.append(device)
    return process


def heard(card: Card, own: list[Process], *others: Process) -> list[MailboxAgreement]:
    return list(mailbox_agreements(HostContext(card.histories(), (*own, *others)), own, None))


def test_what_a_granted_message_of_a_profile_is_for() -> None:
    card = Card()
    at = card.agree(0x41, 1, 0xC001)
    assert heard(card, [vm(1, 0)]) == [
        MailboxAgreement(at, "MIG_STOP", f"VF 0 of {PF}", "stop", True)
    ]


def test_ordinary_messages_and_pings_are_nothing_special() -> None:
    card = Card()
    for words in ((1,), (8, 5), (9,), (0xC, 1), (5, 1518)):
        card.agree(*words)
    card.hear(Mailbox.TO_VF, 0x100)
    card.hear(Mailbox.TO_VF, 0x100 | CTS)
    assert heard(card, [vm(1, 0)]) == []


def test_what_the_cards_driver_refuses_was_not_agreed_on() -> None:
    card = Card()
    card.refuse(0x41, 1)
    card.refuse(0x7F)
    card.hear(Mailbox.FROM_VF, 0x44)
    assert heard(card, [vm(1, 0)]) == []


def test_an_unknown_message_that_is_granted_counts_without_a_role() -> None:
    card = Card()
    at = card.agree(0x7F)
    assert heard(card, [vm(1, 0)]) == [MailboxAgreement(at, "0x007f", f"VF 0 of {PF}", None, True)]


def test_unsolicited_messages_of_the_card_count() -> None:
    card = Card()
    card.hear(Mailbox.TO_VF, 0x41)
    assert [s.role for s in heard(card, [vm(1, 0)])] == ["stop"]


def test_a_function_that_another_vm_holds_shows_nothing() -> None:
    card = Card()
    card.agree(0x41, vf=0)
    card.agree(0x41, vf=1)
    found = heard(card, [vm(1, 0)], vm(2, 1))
    assert [(s.function, s.assigned) for s in found] == [(f"VF 0 of {PF}", True)]


def test_a_function_that_nobody_holds_is_bound_by_the_time_alone() -> None:
    card = Card()
    card.agree(0x41, vf=2)
    assert [s.assigned for s in heard(card, [vm(1, 0)], vm(2, 1))] == [False]


def test_who_held_it_at_the_time_counts() -> None:
    card = Card()
    at = card.agree(0x41)
    assert heard(card, [vm(1)], vm(2, 0, opened=1, closed=at + 1)) == []
    assert [s.assigned for s in heard(card, [vm(1)], vm(2, 0, opened=at + 1))] == [False]


def test_the_functions_that_a_vm_keeps_through_the_blackout() -> None:
    assert len(assigned(vm(1, 0, 1), 50)) == 2
    assert assigned(vm(1, 0, closed=40), 50) == []
    process = Process(1, 0)
    process.devices.all.append(PassedDevice(7, 1, address="a mediated device"))
    assert assigned(process, 50) == []


def talked(card: Card, own: list[Process], stopped_ns: int) -> list[tuple[str, str | None]]:
    return [
        (s.what, s.role)
        for s in mailbox_agreements(HostContext(card.histories(), own), own, stopped_ns)
    ]


def up(card: Card) -> None:
    """The messages of ixgbevf when it is brought up, then half a second without messages."""
    for words in ((1,), (8, 5), (9,), (0xC, 1)):
        card.agree(*words)
    card.at_ns += SETTLED_NS
    card.boxes.feed(events.Tick(card.at_ns, 0, events.COLLECTOR, 0))


def test_a_function_put_to_rest_before_and_brought_up_after_the_stop() -> None:
    card = Card()
    up(card)
    card.agree(1)
    stopped = card.at_ns + 1
    up(card)
    assert talked(card, [vm(1, 0)], stopped) == [
        ("driver puts it to rest", None),
        ("driver has it up again", None),
    ]
    # Another VM's function, or nobody's: its driver's own affair.
    assert talked(card, [vm(1)], stopped) == []


def test_a_function_that_is_plugged_later_starts_like_any_other() -> None:
    card = Card()
    stopped = card.at_ns
    up(card)
    card.agree(0x7F)
    later = vm(1, 0, opened=stopped + 1)
    assert talked(card, [later], stopped) == []
    assert talked(card, [vm(1, 0)], stopped) != []


def test_down_and_up_again_before_the_stop_is_the_drivers_own_affair() -> None:
    card = Card()
    up(card)
    card.agree(1)
    up(card)
    assert talked(card, [vm(1, 0)], card.at_ns + 1) == []


# -- what a profile may say ----------------------------------------------------------------------


def profile(message: str = "", head: str = 'driver = "ixgbe"') -> str:
    return f'{head}\n[[message]]\nopcode = 0x41\nname = "MIG_STOP"\n{message}\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("driver = ", "not TOML"),
        ('driver = "ixgbe"', "it names no [[message]]"),
        (profile(head='driver = "e1000"'), "driver is not one of ixgbe, igb"),
        (profile(head=""), "driver is not one of ixgbe, igb"),
        (profile(head='driver = "igb"\nmessages = 3'), "unknown key 'messages'"),
        (profile('roll = "stop"'), "message 1: unknown key 'roll'"),
        (profile('role = "halt"'), "message 1: role is not one of stop, save, restore, resume"),
        (profile('stage = "late"'), "message 1: stage is not one of reset, negotiate"),
        (profile('key = "yes"'), "message 1: key is not one of request, reply, both"),
        (profile('request = "queues"'), "message 1: request is not a list"),
        (profile('request = ["Queues"]'), "message 1: request: 'Queues' names no word"),
        (profile('request = ["a", "a"]'), "message 1: request: two words are called a"),
        (profile(f"request = {['w'] * 16}"), "message 1: request is not a list of at most 15"),
        (profile().replace("0x41", "0"), "message 1: opcode is not a number from 0x1 to 0xffff"),
        (profile().replace("0x41", "true"), "message 1: opcode is not a number"),
        (profile().replace("0x41", "0x10000"), "message 1: opcode is not a number"),
        (profile().replace("MIG_STOP", "mig stop"), "message 1: name is not a word of A to Z"),
        (profile().replace("MIG_STOP", "RESET"), "two messages are called RESET"),
        # More words of a known message might be a key.
        (profile().replace("0x41", "0xb"), "message 1: ixgbe has an opcode 0xb already"),
        (
            profile('[[message]]\nopcode = 0x41\nname = "B"'),
            "message 2: opcode 0x41 is named twice",
        ),
        ('driver = "igb"\nmessage = 3', "it names no [[message]]"),
        ('driver = "igb"\nmessage = [3]', "message is not a table"),
    ],
)
def test_a_bad_profile_gives_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ProfileError) as raised:
        parse_profile(text)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_profiles_may_not_name_one_opcode() -> None:
    first, other = parse_profile(profile()), parse_profile(profile(head='driver = "igb"'))
    assert with_profiles([first, other]).keys() == DRIVERS.keys()
    with pytest.raises(ValueError, match="another profile names opcode 0x41 of ixgbe"):
        with_profiles([first, first])


def test_words_are_read_and_shown_as_in_the_profile() -> None:
    opcode = parse_profile(profile('request = ["reason", "cookie:x"]\nreply = ["left"]')).opcodes[
        0x41
    ]
    assert opcode.request((0x41, 3, 0xC001, 9)) == {"reason": 3, "cookie": "0xc001"}
    assert opcode.reply((0x41, 7)) == {"left": 7}
    assert (opcode.request_size, opcode.reply_size) == (3, 2)


def test_what_no_profile_names_stays_in_the_kernel() -> None:
    opcode = parse_profile(profile('key = "request"')).opcodes[0x41]
    assert (opcode.request_size, opcode.reply_size, opcode.request_key) == (1, 1, True)
