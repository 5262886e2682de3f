# SPDX-License-Identifier: MIT
"""The strategies' rules, each with a near-miss that must not match."""

from msgspec.structs import replace

from vftrace.analysis.devices.strategy import (
    QUIESCED,
    RESUMES_WITHIN_NS,
    UNPLUG_WINDOW_NS,
    Facts,
    MailboxAgreement,
    classify,
)
from vftrace.mailbox.driver import Role

S = 1_000_000_000
BEGIN, SECOND, HANDOVER, END = 100 * S, 102 * S, 110 * S, 111 * S

PLAIN = Facts(
    started_ns=BEGIN, second_round_ns=SECOND, handover_ns=HANDOVER, ended_ns=END, peer_seen=True
)


def strategy(**facts: object) -> str:
    return classify(replace(PLAIN, **facts))[0]


def test_no_device_is_plain() -> None:
    assert classify(PLAIN) == ("plain", ())


def test_a_transferred_state_is_vfio_with_its_requests_as_evidence() -> None:
    asked = ((BEGIN + S, "vf0: PRE_COPY"), (HANDOVER, "vf0: STOP_COPY"))
    found, evidence = classify(replace(PLAIN, transfers=asked))
    assert found == "vfio"
    assert [(e.at_ns, e.event) for e in evidence] == list(asked)


def test_vfio_beside_an_unplugged_device_is_vfio() -> None:
    assert (
        strategy(transfers=((BEGIN + S, "vf0: PRE_COPY"),), closed=((BEGIN - S, "vf1"),)) == "vfio"
    )


def test_closed_before_and_opened_after_is_unplug() -> None:
    found, evidence = classify(
        replace(PLAIN, closed=((BEGIN - S, "vf0"),), opened=((END + S, "vf7"),))
    )
    assert found == "unplug"
    assert [(e.at_ns, e.event) for e in evidence] == [
        (BEGIN - S, "source closes vf0"),
        (BEGIN, "dirty logging on for the largest memslot"),
        (END + S, "destination opens vf7"),
    ]


def test_a_plug_after_a_plain_migration_is_plain() -> None:
    assert strategy(opened=((END + S, "vf7"),)) == "plain"


def test_an_unplug_before_a_plain_migration_is_plain() -> None:
    assert strategy(closed=((BEGIN - S, "vf0"),)) == "plain"


def test_an_unplug_long_before_has_no_part_in_it() -> None:
    early = BEGIN - UNPLUG_WINDOW_NS - 1
    assert strategy(closed=((early, "vf0"),), opened=((END + S, "vf7"),)) == "plain"


def test_a_plug_long_after_has_no_part_in_it() -> None:
    late = HANDOVER + UNPLUG_WINDOW_NS + 1
    assert strategy(closed=((BEGIN - S, "vf0"),), opened=((late, "vf7"),)) == "plain"


def test_what_the_destination_had_before_is_no_successor() -> None:
    assert strategy(closed=((BEGIN - S, "vf0"),), opened=((BEGIN - S, "vf7"),)) == "plain"


def test_where_only_the_source_is_seen_its_half_is_enough() -> None:
    assert strategy(closed=((BEGIN - S, "vf0"),), peer_seen=False) == "unplug"


def test_closed_between_second_round_and_handover_is_late_unplug() -> None:
    found, evidence = classify(
        replace(PLAIN, closed=((SECOND + S, "vf0"),), opened=((END + S, "vf7"),))
    )
    assert found == "late-unplug"
    assert [e.event for e in evidence] == [
        "second round begins",
        "source closes vf0",
        "destination opens vf7",
    ]


def test_closed_in_the_first_round_is_no_late_unplug() -> None:
    assert strategy(closed=((BEGIN + 1, "vf0"),)) == "plain"


def test_closed_after_the_handover_is_no_late_unplug() -> None:
    assert strategy(closed=((HANDOVER + 1, "vf0"),)) == "plain"


def test_without_a_second_round_nothing_is_late() -> None:
    assert strategy(second_round_ns=None, closed=((SECOND + S, "vf0"),)) == "plain"


# -- failover -----------------------------------------------------------------------------------

RAN = HANDOVER + S // 2
PRIMARY = {"closed": ((BEGIN + 1, "vf0"),), "closed_before_memory": ((BEGIN + 1, "vf0"),)}


def test_closed_before_memory_is_sent_and_opened_before_it_runs_is_failover() -> None:
    opened = ((HANDOVER + S // 4, "vf7"),)
    found, evidence = classify(replace(PLAIN, **PRIMARY, opened=opened, running_ns=RAN))
    assert found == "failover"
    assert [(e.at_ns, e.event) for e in evidence] == [
        (BEGIN, "dirty logging on for the largest memslot"),
        (BEGIN + 1, "source closes vf0 before it sends memory"),
        (HANDOVER + S // 4, "destination opens vf7"),
    ]


def test_where_only_the_source_is_seen_its_half_of_a_failover_is_enough() -> None:
    assert strategy(**PRIMARY, peer_seen=False, running_ns=None) == "failover"


def test_a_failover_that_continues_is_one_already() -> None:
    going_on = {"second_round_ns": None, "handover_ns": None, "ended_ns": None}
    assert strategy(**PRIMARY, **going_on) == "failover"


def test_closed_while_memory_is_sent_is_no_failover() -> None:
    opened = ((HANDOVER + S // 4, "vf7"),)
    assert strategy(closed=((BEGIN + 1, "vf0"),), opened=opened, running_ns=RAN) == "plain"


def test_plugged_only_when_the_guest_runs_is_no_failover() -> None:
    assert strategy(**PRIMARY, opened=((RAN + S, "vf7"),), running_ns=RAN) == "plain"


def test_a_primary_that_never_came_back_is_no_failover_that_was_seen() -> None:
    assert strategy(**PRIMARY, running_ns=RAN) == "plain"


def test_closed_before_logging_is_an_unplug_though_nothing_was_sent() -> None:
    before = {"closed": ((BEGIN - 1, "vf0"),), "closed_before_memory": ((BEGIN - 1, "vf0"),)}
    assert strategy(**before, opened=((END + S, "vf7"),), running_ns=RAN) == "unplug"


# -- mailbox ------------------------------------------------------------------------------------

STOPPED = 108 * S
VF = "VF 0 of 0000:01:00.0"


def agreement(
    at_ns: int, what: str, role: Role | None, *, assigned: bool = True
) -> MailboxAgreement:
    return MailboxAgreement(at_ns, what, VF, role, assigned)


def assisted(*, assigned: bool) -> tuple[MailboxAgreement, ...]:
    return (
        agreement(STOPPED - S, "MIG_STOP", "stop", assigned=assigned),
        agreement(STOPPED + S, "MIG_SAVE", "save", assigned=assigned),
        agreement(RAN - 1, "MIG_RESTORE", "restore", assigned=assigned),
        agreement(RAN + 1, "MIG_RESUME", "resume", assigned=assigned),
    )


CONTEXT = {"stopped_ns": STOPPED, "running_ns": RAN, "has_vfs": True}
UNHELD = {"stopped_ns": STOPPED, "running_ns": RAN, "has_vfs": False}


def test_stop_save_restore_resume_is_mailbox_with_each_as_evidence() -> None:
    found, evidence = classify(replace(PLAIN, **CONTEXT, agreements=assisted(assigned=True)))
    assert found == "mailbox"
    assert [(e.at_ns, e.event) for e in evidence] == [
        (STOPPED - S, f"MIG_STOP: {VF}, held by this VM"),
        (STOPPED + S, f"MIG_SAVE: {VF}, held by this VM"),
        (RAN - 1, f"MIG_RESTORE: {VF}, held by this VM"),
        (RAN + 1, f"MIG_RESUME: {VF}, held by this VM"),
    ]


def test_what_only_the_time_binds_is_reported() -> None:
    found, evidence = classify(replace(PLAIN, **UNHELD, agreements=assisted(assigned=False)))
    assert found == "mailbox"
    assert {e.event.split(", ")[1] for e in evidence} == {"bound to this VM by the time alone"}


def test_the_time_alone_binds_nothing_while_another_migration_continues() -> None:
    assert strategy(**UNHELD, agreements=assisted(assigned=False), only_migration=False) == "plain"
    assert (
        strategy(**CONTEXT, agreements=assisted(assigned=True), only_migration=False) == "mailbox"
    )


def test_messages_of_another_function_than_the_vms_show_nothing() -> None:
    assert strategy(**CONTEXT, agreements=assisted(assigned=False)) == "plain"


def test_unknown_messages_around_the_blackout_of_a_held_function_are_mailbox() -> None:
    talk = (
        agreement(STOPPED - S, "0x0041", None),
        agreement(RAN + S, "0x0044", None),
    )
    assert strategy(**CONTEXT, agreements=talk) == "mailbox"
    unheld = tuple(replace(s, assigned=False) for s in talk)
    assert strategy(**UNHELD, agreements=unheld) == "plain"


def test_half_of_what_no_profile_names_is_not_enough() -> None:
    """A driver that puts its function to rest while memory is sent, and nothing more was seen."""
    rest = (agreement(STOPPED - S, QUIESCED, None),)
    context = {**CONTEXT, "sent_memory_ns": SECOND}
    assert strategy(**context, agreements=rest, peer_seen=False) == "plain"
    assert strategy(**{**context, "running_ns": None}, agreements=rest) == "plain"
    up = (agreement(RAN + 1, "driver has it up again", None),)
    half = {**context, "stopped_ns": None, "source_seen": False}
    assert strategy(**half, agreements=up) == "plain"
    assert strategy(**context, agreements=rest + up) == "mailbox"


def test_a_half_is_not_enough_where_both_sides_are_seen() -> None:
    before, after = assisted(assigned=True)[:2], assisted(assigned=True)[2:]
    assert strategy(**CONTEXT, agreements=before) == "plain"
    assert strategy(**CONTEXT, agreements=after) == "plain"
    assert strategy(**CONTEXT, agreements=before, peer_seen=False) == "mailbox"


def test_a_destination_alone_shows_the_other_half() -> None:
    half = {
        **CONTEXT,
        "stopped_ns": None,
        "source_seen": False,
        "agreements": assisted(assigned=True)[2:],
    }
    assert strategy(**half) == "mailbox"


def test_stopped_and_resumed_while_the_guest_runs_is_ordinary() -> None:
    # A driver that had to stop for another reason, and continued long before the blackout.
    talk = (
        agreement(BEGIN + S, "MIG_STOP", "stop"),
        agreement(BEGIN + 2 * S, "MIG_RESUME", "resume"),
    )
    assert strategy(**CONTEXT, agreements=talk) == "plain"


def test_stopped_before_the_migration_began_is_another_matter() -> None:
    talk = (
        agreement(BEGIN - 1, "MIG_STOP", "stop"),
        agreement(RAN + 1, "MIG_RESUME", "resume"),
    )
    assert strategy(**CONTEXT, agreements=talk) == "plain"


def test_resumed_long_after_is_another_matter() -> None:
    late = RAN + RESUMES_WITHIN_NS + 1
    talk = (
        agreement(STOPPED - S, "MIG_STOP", "stop"),
        agreement(late, "MIG_RESUME", "resume"),
    )
    assert strategy(**CONTEXT, agreements=talk) == "plain"


def test_a_guest_that_was_never_stopped_was_not_helped() -> None:
    assert (
        strategy(**{**CONTEXT, "stopped_ns": None}, agreements=assisted(assigned=True)) == "plain"
    )


def test_a_transferred_state_is_vfio_whatever_the_mailbox_shows() -> None:
    asked = ((BEGIN + S, "vf0: PRE_COPY"),)
    assert strategy(**CONTEXT, agreements=assisted(assigned=True), transfers=asked) == "vfio"


def test_an_unplug_is_one_whatever_the_mailbox_shows() -> None:
    gone = {"closed": ((BEGIN - S, "vf0"),), "opened": ((END + S, "vf7"),)}
    assert strategy(**CONTEXT, **gone, agreements=assisted(assigned=True)) == "unplug"
    assert (
        strategy(**CONTEXT, closed=((BEGIN - S, "vf0"),), agreements=assisted(assigned=True))
        == "plain"
    )
