# SPDX-License-Identifier: MIT
"""A tracer that starts during post-copy sees its end."""

from pathlib import Path

from msgspec.structs import replace

from vftrace import events
from vftrace.analysis.tracker import Tracker
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of, track
from vftrace.model import figures
from vftrace.model.migration import Phase

RECORDING = Path(__file__).parents[1] / "golden" / "recordings" / "postcopy.vft.gz"


def test_a_postcopy_that_was_met_halfway_ends() -> None:
    (whole,) = track(Recording(RECORDING)).snapshot().migrations
    (postcopy, _) = [p for p in whole.phases if p.name == Phase.POSTCOPY]
    assert postcopy.end_at_ns is not None
    started = (postcopy.start_at_ns + postcopy.end_at_ns) // 2
    tracker = Tracker()
    lasting = set()
    for event in events_of(Recording(RECORDING)):
        if isinstance(event, events.Process):
            tracker.feed(replace(event, at_ns=started, late=True, running=True))
        # The VM lives on.
        elif event.at_ns > started and not isinstance(event, events.Exit | events.End):
            tracker.feed(event)
            for migration in tracker.snapshot().migrations:
                phase = figures.current_phase(migration)
                assert phase is not None
                lasting.add(phase.name)
    assert lasting == {Phase.POSTCOPY, Phase.RUNNING}
    (found,) = tracker.snapshot().migrations
    assert found.outcome == "completed"
    assert [(p.name, p.end_at_ns) for p in found.phases] == [
        (Phase.POSTCOPY, postcopy.end_at_ns),
        (Phase.RUNNING, None),
    ]
