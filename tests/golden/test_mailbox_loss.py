# SPDX-License-Identifier: MIT
"""A migration whose mailbox records are lost is incomplete, because no other record shows the strategy `mailbox`."""

from pathlib import Path

import pytest

from vftrace.analysis.devices.vf_history import Mailboxes
from vftrace.collect.recording import Recording
from vftrace.collect.replay import track
from vftrace.events import NO_PROCESS, wire
from vftrace.mailbox.profile import drivers_of
from vftrace.model.migration import Migration, Strategy

GOLDEN = Path(__file__).parent


def migrations(records: list[bytes], profiles: tuple[str, ...]) -> tuple[Migration, ...]:
    return track(records, Mailboxes(drivers_of(profiles))).snapshot().migrations


@pytest.mark.parametrize("name", ["6.12-functions-again", "6.1-held", "6.12-held", "7.x-held"])
def test_without_its_mailbox_records_it_is_incomplete(name: str) -> None:
    (path,) = GOLDEN.rglob(f"{name}.vft.gz")
    recording = Recording(path)
    records = list(recording)
    whole = migrations(records, recording.host.profiles)
    helped = [(m.pid, m.started_at_ns) for m in whole if m.strategy == Strategy.MAILBOX]
    assert helped
    assert not any(m.incomplete for m in whole if m.strategy == Strategy.MAILBOX)
    left = [record for record in records if wire.HEADER.unpack_from(record)[5] != NO_PROCESS]
    found = {(m.pid, m.started_at_ns): m for m in migrations(left, recording.host.profiles)}
    assert [found[key].incomplete for key in helped] == [True] * len(helped)
