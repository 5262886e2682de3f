"""A migration as lanes of intervals and as counters: what the drawn and the exported timelines share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """An interval; times in ns on the clock of the report."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Lane:
    """Intervals of one kind in order: `source`, `destination`, `vcpus`, `blackout`, `gap`, `rounds`, `device`, `vf`"""

    kind: str
    title: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Counter:
    """Values by time. `unit` is `bytes` for totals so far, or `bytes/s` for rates that hold until the next."""

    title: str
    unit: str
    values: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """One migration; `start_ns` to `end_ns` covers all lanes and counters."""

    title: str
    start_ns: int
    end_ns: int
    lanes: tuple[Lane, ...]
    counters: tuple[Counter, ...]


def title_of(migration: Json) -> str:
    """`NAME (first digits of the UUID)`, what there is of them, else the pid. Always printable."""
    vm = migration["vm"]
    uuid = vm["uuid"][:8] if vm["uuid"] else None
    name = "".join(c if c.isprintable() else "?" for c in vm["name"] or "")
    if name:
        return f"{name} ({uuid})" if uuid else name
    return uuid or f"pid {vm['pid']}"


def timeline_of(migration: Json) -> Timeline:
    """The timeline of a migration in the report's form (report.schema.json).

    The destination's `running` and what has no end are drawn to the end of everything else.
    """
    m = migration
    start, end = m["started_at_ns"], _end(m)
    lanes = [
        Lane("vcpus", "vCPUs", tuple(_vcpus(m, start, end))),
        *(
            Lane(role, f"{role} phases", tuple(_phases(m, role, end)))
            for role in ("source", "destination")
        ),
        Lane("blackout", "blackout", tuple(_blackout(m))),
        Lane("gap", "no answers", tuple(_gap(m))),
        Lane("rounds", "rounds", tuple(_rounds(m))),
        *(Lane("device", _device(d), tuple(_states(d, start, end))) for d in m["devices"]),
        *(Lane("vf", _vf_title(v), tuple(_vf(v, end))) for v in m["vfs"]),
    ]
    drawn = tuple(lane for lane in lanes if lane.slices)
    starts = [start, *(s.start_ns for lane in drawn for s in lane.slices)]
    return Timeline(title_of(m), min(starts), end, drawn, tuple(_counters(m, end)))


def _end(m: Json) -> int:
    ends = [m["started_at_ns"], m["ended_at_ns"]]
    ends += [p["end_at_ns"] for p in m["phases"] if p["name"] != "running"]
    ends += [p["start_at_ns"] for p in m["phases"]]
    ends += [c["at_ns"] for c in m["downtime"]["checkpoints"]]
    ends += [r["at_ns"] + r["duration_ns"] for r in m["rounds"]]
    ends += [s["at_ns"] for d in m["devices"] for s in d["states"]]
    ends += [at for v in m["vfs"] for p in v["phases"] for at in (p["start_at_ns"], p["end_at_ns"])]
    ends += [span["end_at_ns"] for span in _gap_spans(m)]
    known: list[int] = [end for end in ends if end is not None]
    return max(known)


def _vcpus(m: Json, start: int, end: int) -> Iterator[Slice]:
    at = {c["name"]: c["at_ns"] for c in m["downtime"]["checkpoints"]}
    stopped, running = at.get("vcpus-stopped"), at.get("vcpus-running")
    if m["role"] == "destination":
        # What ran before is on the other host.
        if running is not None:
            yield Slice("running", running, end)
        return
    if m["was_paused"]:
        yield Slice("stopped", start, end)
        return
    yield Slice("running", start, end if stopped is None else stopped)
    if stopped is not None:
        yield Slice("stopped", stopped, end if running is None else running)
    if running is not None:
        yield Slice("running", running, end)


def _phases(m: Json, role: str, end: int) -> Iterator[Slice]:
    for phase in m["phases"]:
        if phase["role"] == role:
            until = end if phase["end_at_ns"] is None else min(end, phase["end_at_ns"])
            yield Slice(phase["name"], phase["start_at_ns"], max(phase["start_at_ns"], until))


def _blackout(m: Json) -> Iterator[Slice]:
    for checkpoint in m["downtime"]["checkpoints"]:
        at, ns = checkpoint["at_ns"], checkpoint["ns"]
        if at is not None and ns:
            yield Slice(checkpoint["name"], at - ns, at)


def _gap_spans(m: Json) -> Sequence[Json]:
    """Only a report of several recordings has a ping's gap."""
    gap = m["downtime"].get("gap")
    return gap["spans"] if gap is not None else ()


def _gap(m: Json) -> Iterator[Slice]:
    for span in _gap_spans(m):
        yield Slice(span["name"], span["start_at_ns"], span["end_at_ns"])


def _rounds(m: Json) -> Iterator[Slice]:
    for number, sweep in enumerate(m["rounds"], start=1):
        yield Slice(f"round {number}", sweep["at_ns"], sweep["at_ns"] + sweep["duration_ns"])


def _device(device: Json) -> str:
    """QEMU's id, which is short and the same on both sides, else the address."""
    name, role = device.get("id") or device["address"], device.get("role")
    return f"{name} ({role})" if role else str(name)


def _states(device: Json, begin: int, end: int) -> Iterator[Slice]:
    """From the migration's begin on: the state it was in before may be days old."""
    states = device["states"]
    ends = [s["at_ns"] for s in states[1:]] + [end]
    for state, until in zip(states, ends, strict=True):
        if until >= begin:
            start = max(begin, state["at_ns"])
            yield Slice(state["state"], start, max(start, until))


def _vf_title(vf: Json) -> str:
    """With its side: both hosts' cards may have one address."""
    role = f" ({vf['role']})" if vf.get("role") else ""
    return f"VF {vf['vf']} of {vf['pf']}{role}"


def _vf(vf: Json, end: int) -> Iterator[Slice]:
    for phase in vf["phases"]:
        until = end if phase["end_at_ns"] is None else phase["end_at_ns"]
        yield Slice(phase["name"], phase["start_at_ns"], max(phase["start_at_ns"], until))


def _counters(m: Json, end: int) -> Iterator[Counter]:
    rounds, page_size = m["rounds"], m["dirty"]["page_size"]
    rates: list[tuple[int, float]] = []
    for before, after in pairwise(rounds):
        passed = after["at_ns"] - before["at_ns"]
        if after["new_pages"] is not None and passed > 0:
            # A round finds what was dirtied since the one before: the value holds from there.
            rates.append((before["at_ns"], after["new_pages"] * page_size * 1e9 / passed))
    if rates:
        yield Counter("dirty rate", "bytes/s", (*rates, (rounds[-1]["at_ns"], 0.0)))
    sent, total = [], 0.0
    for sweep in rounds:
        sent.append((sweep["at_ns"], total))
        total += sweep["sent_bytes"] or 0
    if sent:
        yield Counter(
            "sent", "bytes", (*sent, (_all_sent(m, end), float(m["channel"]["bytes"] or total)))
        )


def _all_sent(m: Json, end: int) -> int:
    """When the last byte had been sent, at the latest."""
    ended = m["ended_at_ns"]
    return end if ended is None else min(end, max(ended, m["rounds"][-1]["at_ns"]))
