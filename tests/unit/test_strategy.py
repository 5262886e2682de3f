"""The strategies' rules, each with a near-miss that must not match."""

from dataclasses import replace

from vftrace.migration.strategy import UNPLUG_WINDOW_NS, Facts, classify

S = 1_000_000_000
BEGIN, SECOND, HANDOVER, END = 100 * S, 102 * S, 110 * S, 111 * S

PLAIN = Facts(
    started_ns=BEGIN, second_round_ns=SECOND, handover_ns=HANDOVER, ended_ns=END, peer_seen=True
)


def strategy(**facts: object) -> str:
    return classify(replace(PLAIN, **facts))[0]  # type: ignore[arg-type]


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
