"""What cards and virtual functions agreed on around a migration, and which VM held each function then."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vftrace.analysis.devices.device import PassedDevice
from vftrace.analysis.devices.strategy import RESTS, Said
from vftrace.analysis.devices.vf_phases import Lives
from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.model.vf import VfHistory


@dataclass(frozen=True)
class Around:
    """What surrounds a migration: all functions' lives and all processes at `now_ns`."""

    lives: Lives
    processes: Sequence[Process] = ()
    now_ns: int = 0

    def alone(self, outgoing: OutgoingMigration | None, incoming: IncomingMigration | None) -> bool:
        """Whether no other migration went on at the same time as one of this source and destination."""
        own = [part for part in (outgoing, incoming) if part is not None]
        mine = [self._span(part) for part in own]
        others = [
            self._span(part)
            for process in self.processes
            for part in (*process.outgoing, process.incoming)
            if part is not None and not any(part is each for each in own)
            if not isinstance(part, OutgoingMigration) or part.is_migration
        ]
        return not any(a[0] <= b[1] and b[0] <= a[1] for a in mine for b in others)

    def _span(self, part: OutgoingMigration | IncomingMigration) -> tuple[int, int]:
        """From when to when one side went on."""
        if isinstance(part, OutgoingMigration):
            ended = part.logging_off_at_ns or part.process_ended_at_ns
            return part.started_at_ns, ended or self.now_ns
        return part.first_act_ns, part.running_at_ns or part.ended_at_ns or self.now_ns


def said(around: Around, own: Sequence[Process], stopped_ns: int | None) -> tuple[Said, ...]:
    """What was agreed on by functions that no other VM than `own` (source, destination) held at the time.

    What has no role counts only of functions that were there when the guest stopped: one that is plugged later
    starts like any other.
    """
    lives = around.lives
    held = [] if stopped_ns is None else [d for p in own for d in kept(p, stopped_ns)]
    there = {(d.pf, d.vf) for d in held if (d.opened_at_ns or 0) <= (stopped_ns or 0)}
    found = [
        Said(agreed.at_ns, agreed.title, _function(life), agreed.role, holder)
        for key, life in lives.items()
        for agreed in life.agreements
        if agreed.role is not None or stopped_ns is None or key in there
        for holder in _holder(around, own, life, agreed.at_ns)
    ]
    if stopped_ns is not None:
        for key in sorted({(d.pf or "", d.vf or 0) for d in held} & lives.keys()):
            life = lives[key]
            found += _rests(life, stopped_ns)
            rises = _rises(life, stopped_ns) if key in there else ()
            # The next VM's driver may bring the same function up.
            found += [s for s in rises if any(_held(p, life, s.at_ns) for p in own)]
    return tuple(sorted(found, key=lambda s: s.at_ns))


def kept(process: Process, stopped_ns: int) -> list[PassedDevice]:
    """The virtual functions a process held when the guest stopped, or took over later."""
    return [
        device
        for device in process.devices.all
        if device.pf is not None
        and device.vf is not None
        and (device.closed_at_ns is None or device.closed_at_ns > stopped_ns)
    ]


def function_of(said: Said, lives: Lives) -> VfHistory | None:
    """The life of whoever said it."""
    return next((life for life in lives.values() if _function(life) == said.function), None)


def _function(life: VfHistory) -> str:
    return f"VF {life.vf} of {life.pf}"


def _holder(around: Around, own: Sequence[Process], life: VfHistory, at_ns: int) -> Iterator[bool]:
    """True: one of `own` held the function then. False: nobody did. Nothing: another VM."""
    holders = [process for process in around.processes if _held(process, life, at_ns)]
    if any(process in own for process in holders):
        yield True
    elif not holders:
        yield False


def _held(process: Process, life: VfHistory, at_ns: int) -> bool:
    if process.ended_at_ns is not None and at_ns >= process.ended_at_ns:
        return False
    return any(
        (device.pf, device.vf) == (life.pf, life.vf)
        and (device.opened_at_ns or 0) <= at_ns
        and (device.closed_at_ns is None or at_ns < device.closed_at_ns)
        for device in process.devices.all
    )


def _rests(life: VfHistory, stopped_ns: int) -> Iterable[Said]:
    """A driver that puts its function to rest before the guest stops, as the patches of 2015 did with the
    messages there are."""
    up = [s for s in life.states if s.name == "up" and s.start_at_ns <= stopped_ns]
    ended = up[-1].end_at_ns if up else None
    if ended is not None and ended <= stopped_ns:
        yield Said(ended, RESTS, _function(life), None, True)


def _rises(life: VfHistory, stopped_ns: int) -> Iterable[Said]:
    """A driver that brings its function up after the guest was stopped."""
    for span in life.states:
        if span.name == "up" and span.start_at_ns > stopped_ns:
            yield Said(span.start_at_ns, "driver has it up again", _function(life), None, True)
