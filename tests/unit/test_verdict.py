# SPDX-License-Identifier: MIT
"""The table of outcomes: each row's evidence decides, and the docs show the rows of the code."""

from pathlib import Path

import pytest

from vftrace.analysis.verdict import (
    DESTINATION,
    MAY_RUN_ON_NS,
    MOVE,
    POSTCOPY,
    RULES,
    SAVE,
    Facts,
    decide,
    table_lines,
)

DOCS = Path(__file__).parents[2] / "docs/reference/phases.md"
LATER = 10 + MAY_RUN_ON_NS


def test_the_docs_show_the_table() -> None:
    shown = DOCS.read_text().split("<!-- outcomes -->\n")[1].split("<!-- /outcomes -->")[0]
    assert shown.splitlines() == list(table_lines())


# QEMU's own status of each situation, from real runs (tests/libvirt, tests/golden).
CASES = [
    # a cancel: logging goes off, the guest runs on, no send failed
    (Facts(MOVE, over_ns=9), "cancelled", "cancelled"),
    # the destination was killed under libvirt: the source's next send goes to fd -1
    (Facts(MOVE, error_ns=5, over_ns=9, destination_ended_ns=4), "failed", "destination-ended"),
    (Facts(MOVE, error_ns=5, over_ns=9), "failed", "channel-error"),
    (Facts(MOVE, error_ns=5), None, None),
    # the guest ran on after the stop
    (Facts(MOVE, resumed_ns=8, over_ns=9), "failed", "resumed-after-stop"),
    # killed while it was held after a complete load
    (
        Facts(MOVE, state_read=True, loaded_ns=4, destination_ended_ns=6, resumed_ns=8),
        *("failed", "destination-ended"),
    ),
    # logging switched off after the end, by a measurement or by Cloud Hypervisor
    (Facts(MOVE, state_read=True, sent_ns=6, over_ns=9, now_ns=LATER), "completed", None),
    (Facts(MOVE, state_read=True, sent_ns=6, over_ns=9, now_ns=10), None, None),
    (Facts(MOVE, ran_ns=7, over_ns=9), "completed", None),
    # a dead post-copy destination, seen from the source's host alone
    (Facts(MOVE, state_read=True, broken=True, source_ended_ns=9), "failed", "channel-error"),
    (Facts(MOVE, state_read=True, source_ended_ns=9), "completed", None),
    (Facts(MOVE, source_ended_ns=9), "failed", "source-ended"),
    (
        Facts(MOVE, destination_acted=True, destination_ended_ns=3),
        *("failed", "destination-ended"),
    ),
    # a paused guest is moved when it is loaded; nobody may ever run it
    (Facts(MOVE, was_paused=True, state_read=True, loaded_ns=5), "completed", None),
    # COLO
    (Facts(MOVE, checkpoints_again=True, resumed_ns=4, source_ended_ns=9), "unknown", None),
    (Facts(POSTCOPY, postcopy=True, ran_ns=3, postcopy_done_ns=8), "completed", None),
    (Facts(POSTCOPY, postcopy=True, ran_ns=3), None, None),
    (
        Facts(POSTCOPY, postcopy=True, ran_ns=3, destination_ended_ns=5),
        *("failed", "destination-ended"),
    ),
    # a live dump: the guest runs on, and the file holds all of it
    (Facts(SAVE, state_read=True, sent_ns=6, resumed_ns=8, over_ns=9), "completed", None),
    (Facts(SAVE, state_read=True, sent_ns=6), None, None),
    (Facts(SAVE, over_ns=9), "cancelled", "cancelled"),
    (Facts(SAVE, error_ns=5, state_read=True, over_ns=9), "failed", "channel-error"),
    (Facts(SAVE, source_ended_ns=9), "failed", "source-ended"),
    (Facts(DESTINATION, ran_ns=5), "completed", None),
    (Facts(DESTINATION, postcopy=True, ran_ns=5), None, None),
    (Facts(DESTINATION, postcopy=True, postcopy_done_ns=8), "completed", None),
    (Facts(POSTCOPY, postcopy=True, ran_ns=3, source_ended_ns=5), "failed", "source-ended"),
    (
        Facts(DESTINATION, postcopy=True, ran_ns=3, destination_ended_ns=5),
        *("failed", "destination-ended"),
    ),
    (Facts(DESTINATION, destination_ended_ns=5), "failed", "destination-ended"),
]


@pytest.mark.parametrize(("facts", "outcome", "cause"), CASES)
def test_evidence_decides(facts: Facts, outcome: str | None, cause: str | None) -> None:
    found = decide(facts)
    assert found.outcome == outcome
    if outcome != "unknown":
        assert found.cause == cause


def test_every_row_is_reached() -> None:
    """No row stands behind others that take all of its cases."""
    reached = set()
    for facts, _, _ in CASES:
        for rule in RULES[facts.situation]:
            if rule.at(facts) is not None:
                reached.add(rule.evidence)
                break
    rows = [rule.evidence for rules in RULES.values() for rule in rules]
    assert [row for row in rows if row not in reached] == []
