# SPDX-License-Identifier: MIT
"""Reads the figures back, by name, from each finished output of a recording.

A figure is (subject, name): the subject is a migration's place in the report, a VM's label in the metrics, or
"host". A number that is shown rounded carries the half of its last digit as tolerance; texts and None are exact.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.exporter.metrics import Exporter

Subject = int | str


@dataclass(frozen=True)
class Shown:
    """A figure as one output shows it."""

    value: float | str | None
    tolerance: float = 0.0

    def agrees(self, other: "Shown") -> bool:
        """Whether both may be the same figure."""
        a, b = self.value, other.value
        if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
            return a == b
        # A float that was multiplied and divided on the way is off by a few of its last bits.
        return abs(a - b) <= self.tolerance + other.tolerance + 1e-9 * max(abs(a), abs(b))


Figures = dict[tuple[Subject, str], Shown]

_UNITS = {
    "ns": 1,
    "us": 1e3,
    "ms": 1e6,
    "s": 1e9,
    "%": 0.01,
    **{unit: 1024.0**n for n, unit in enumerate(("B", "KiB", "MiB", "GiB"))},
}


def quantity(text: str) -> Shown:
    """Read `5.75 ms`, `1m05s`, `3.92 MiB/s`, `12`, or `-` and `–` for an unknown figure."""
    text = text.strip()
    if text in ("-", "–", "still"):
        return Shown(None)
    long = re.fullmatch(r"(?:(\d+)h)?(\d+)m(\d+)s", text)
    if long:
        hours, minutes, seconds = (int(n or 0) for n in long.groups())
        return Shown((hours * 3600 + minutes * 60 + seconds) * 1e9, 0.5e9)
    number, _, unit = text.lstrip("+").removesuffix("/s").partition(" ")
    digits = len(number.partition(".")[2])
    scale = _UNITS[unit] if unit else 1
    # Counts are whole; so are ns and bytes, which have no fraction. Rates in B/s do.
    exact = (not digits and unit in ("", "ns")) or (unit == "B" and not text.endswith("/s"))
    return Shown(float(number) * scale, 0.0 if exact else 0.5 * 10**-digits * scale * 1.000001)


def of_json(report: Mapping[str, Any]) -> Figures:
    """Read all figures of `report --format json`, and compute the sums that the metrics count."""
    found: Figures = {}
    for index, m in enumerate(report["migrations"]):
        for name, value in _of_migration(m, report["hosts"]):
            found[index, name] = Shown(value)
    found["host", "lost"] = Shown(sum(host["lost"] for host in report["hosts"]))
    found |= {key: Shown(value) for key, value in _sums(report["migrations"]).items()}
    return found


def _of_migration(
    m: Mapping[str, Any], hosts: list[dict[str, Any]]
) -> Iterator[tuple[str, float | str | None]]:
    down, dirty, channel = m["downtime"], m["dirty"], m["channel"]
    start, end = m["started_at_ns"], m["ended_at_ns"]
    yield "outcome", m["outcome"]
    yield "cause", m["cause"]
    yield "strategy", m["strategy"]
    yield "pid", m["vm"]["pid"]
    yield "uuid", m["vm"]["uuid"]
    yield "total", None if end is None else end - start
    clock = next(host["clock"] for host in hosts if host["name"] == m["host"])
    before = [c for c in clock if c["at_ns"] <= start] or clock[:1]
    if before:
        yield "started", start + before[-1]["realtime_offset_ns"]
    yield "downtime", down["vcpu_ns"]
    yield "set by", down["set_by"]
    yield "service", down["service_ns"]
    yield "uncertainty", down["uncertainty_ns"]
    for c in down["checkpoints"]:
        yield f"checkpoint {c['name']}", c["ns"]
        if c["at_ns"] is not None:
            yield f"checkpoint {c['name']} at", c["at_ns"] - start
    for d in down["devices"]:
        yield f"device {d['address']}", d["ns"]
    for p in m["phases"]:
        name = f"phase {p['role']} {p['name']}"
        yield f"{name} from", p["start_at_ns"] - start
        yield name, None if p["end_at_ns"] is None else p["end_at_ns"] - p["start_at_ns"]
    yield "channel", channel["kind"]
    yield "error", channel["error"]
    yield "sent", channel["bytes"]
    yield "state", channel["state_bytes"]
    pages = dirty["new_pages"]
    yield "new pages", pages
    yield "dirtied", None if pages is None else pages * dirty["page_size"]
    yield "distinct pages", dirty["distinct_pages"]
    yield "dirty rate", dirty["rate_bytes_per_second"]
    yield "mean dirty rate", dirty["mean_rate_bytes_per_second"]
    yield "guest speed", m["brownout"] and m["brownout"]["guest_speed"]
    yield "rounds", len(m["rounds"])
    since = dirty["counted_since_ns"]
    for number, r in enumerate(m["rounds"], start=1):
        yield f"round {number} at", r["at_ns"] - start
        yield f"round {number} sweep", r["duration_ns"]
        for key in ("new_pages", "redirtied_pages", "logged_pages", "sent_bytes"):
            yield f"round {number} {key}", r[key]
        rate = None
        if r["new_pages"] is not None and r["at_ns"] > since:
            rate = r["new_pages"] * dirty["page_size"] * 1e9 / (r["at_ns"] - since)
        yield f"round {number} rate", rate
        since = r["at_ns"]
    for number, speed in enumerate(m["brownout"]["rounds"] if m["brownout"] else (), start=1):
        yield f"round {number} speed", speed


def _sums(migrations: list[dict[str, Any]]) -> Counter[tuple[Subject, str]]:
    """What metrics count: by VM for its source, and for the host."""
    sums: Counter[tuple[Subject, str]] = Counter()
    for m in migrations:
        vm = m["vm"]["uuid"] or f"pid-{m['vm']['pid']}"
        for state, ns in (m["brownout"]["state_ns"] if m["brownout"] else {}).items():
            sums[vm, f"vCPUs {state}"] += ns
        counted = m["kind"] == "move"
        if m["role"] != "destination":
            if m["channel"]["bytes"] is not None:
                sums[vm, "sent in all"] += m["channel"]["bytes"]
            sums[vm, "rounds in all"] += len(m["rounds"])
            sums[vm, "new pages in all"] += m["dirty"]["new_pages"] or 0
        if not counted:
            continue
        sums["host", f"migrations {m['role']} {m['strategy']} {m['outcome']}"] += 1
        sums["host", "incomplete"] += m["incomplete"]
        down = m["downtime"]
        devices = [d["ns"] for d in down["devices"] if d["ns"] is not None]
        for kind, ns in (("vcpu", down["vcpu_ns"]), ("device", max(devices, default=None))):
            if ns is not None:
                sums["host", f"downtimes {kind}"] += 1
                sums["host", f"downtime {kind} in all"] += ns
        for p in m["phases"]:
            if p["end_at_ns"] is not None and p["name"] != "running":
                name = f"{p['role']} {p['name']}"
                sums["host", f"phases {name}"] += 1
                sums["host", f"phase {name} in all"] += p["end_at_ns"] - p["start_at_ns"]
    for m in migrations:
        sums["host", "sweeps"] += len(m["rounds"])
        sums["host", "sweeps' time"] += sum(r["duration_ns"] for r in m["rounds"])
    return sums


# -- text ---------------------------------------------------------------------------------------


def of_text(text: str) -> Figures:
    """The text report of a wide terminal."""
    found: Figures = {}
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("── ")]
    for index, start in enumerate(starts):
        end = starts[index + 1] if index + 1 < len(starts) else len(lines)
        section = lines[start:end]
        outcome = section[0].rstrip("─ ").rpartition(": ")[2]
        found[index, "outcome"] = Shown(outcome)
        for name, shown in (*_text_facts(section), *_text_tables(section)):
            found[index, name] = shown
    head = lines[: starts[0]] if starts else lines
    losses = [re.search(r"(\d+|none) lost$", line) for line in head if line.startswith("host ")]
    lost = [match[1] for match in losses if match]
    found["host", "lost"] = Shown(sum(0 if n == "none" else int(n) for n in lost))
    table = [n for n, line in enumerate(head) if line.startswith("VM  ")]
    if table:
        heads = head[table[0]]
        columns = {name: heads.index(name) for name in ("outcome", "total", "downtime", "set by")}
        for index, line in enumerate(head[table[0] + 1 : table[0] + 1 + len(starts)]):
            cells = re.split(r"\s{2,}", line[columns["outcome"] :].strip())
            # A completed save is `saved`, a completed load `loaded`.
            done = cells[0] in ("saved", "loaded")
            found[index, "outcome (overview)"] = Shown("completed" if done else cells[0])
            for name, cell in zip(("total", "downtime"), cells[1:], strict=False):
                found[index, f"{name} (overview)"] = quantity(cell)
            found[index, "sent (overview)"] = quantity(cells[-1])
    return found


def _text_facts(section: list[str]) -> Iterator[tuple[str, Shown]]:
    facts = {
        line[:10].strip(): line[10:].strip()
        for line in section[1:14]
        if re.match(r"(outcome|seen|uuid|time|downtime|strategy|channel|dirtied|service) ", line)
    }
    if "uuid" in facts:
        yield "uuid", Shown(facts["uuid"])
    for line in section:
        if speed := re.match(r"Brownout: guest speed (\S+ %) of before", line):
            yield "guest speed", quantity(speed[1])
    total, _, started = facts["time"].partition(" in total, started ")
    yield "total", quantity(total)
    if started != "-":
        when = datetime.strptime(started, "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
        # Cut to milliseconds.
        yield "started", Shown(round(when.timestamp() * 1000) * 1e6 + 0.5e6, 0.5e6)
    yield "strategy", Shown(facts["strategy"].partition(":")[0])
    downtime = re.match(r"(\S+ \S+?)(?: to (\S+ \S+?))?(?:, set by (\S+) \(|$)", facts["downtime"])
    if downtime and downtime[2] is None:
        yield "downtime", quantity(downtime[1])
        yield "set by", Shown(downtime[3])
    yield from _channel(facts["channel"])
    if "dirtied" in facts:
        shown = re.match(
            r"(\S+) new pages .*?\((.*?)\), (\S+) distinct, (.*?) on average", facts["dirtied"]
        )
        assert shown is not None, facts["dirtied"]
        names = ("new pages", "dirtied", "distinct pages", "mean dirty rate")
        yield from zip(names, map(quantity, shown.groups()), strict=True)
    if "service" in facts:
        yield "service", quantity(facts["service"].partition(" without")[0])


def _channel(fact: str) -> Iterator[tuple[str, Shown]]:
    """A migration's channel, as text and page have it."""
    kind, _, rest = fact.partition(", sent ")
    yield "channel", Shown(kind)
    rest, _, error = rest.partition(", ERROR ")
    yield "error", Shown(error or None)
    sent, _, state = rest.partition(", ")
    yield "sent", quantity(sent)
    if state:
        yield "state", quantity(state.partition(" of it")[0])


ROUND_COLUMNS = {
    "at": "at",
    "sweep": "sweep",
    "new": "new_pages",
    "re-dirtied": "redirtied_pages",
    "logged": "logged_pages",
    "dirtied": "rate",
    "sent": "sent_bytes",
    "speed": "speed",
}
"""What the JSON report calls the columns of a text report's rounds."""


def _text_tables(section: list[str]) -> Iterator[tuple[str, Shown]]:
    heading, role = "", ""
    columns: list[str] = []
    for line in section:
        word = line.split(" ")[0].rstrip(":")
        if line == "What to do about it":
            heading = ""
            continue
        if word in ("Blackout", "Phases", "Rounds", "Devices", "Virtual", "Memory", "Without"):
            heading = word
            if word == "Rounds":
                yield "rounds", Shown(int(line.split()[1]))
            continue
        cells = re.split(r"\s{2,}", line.strip())
        if heading == "Blackout" and len(cells) >= 2 and re.match(r"[a-z-]+$", cells[0]):
            if cells[0] != "checkpoint":
                yield f"checkpoint {cells[0]}", quantity(cells[1])
        elif heading == "Phases" and len(cells) >= 3:
            if cells[0] == "role":
                continue
            if cells[0] in ("source", "destination"):
                role = cells.pop(0)
            yield f"phase {role} {cells[0]} from", quantity(cells[1])
            yield f"phase {role} {cells[0]}", quantity(cells[2])
        elif heading == "Devices" and re.match(r"\S+ +\S+ +\S+ s +(\S+ ms|-)$", line):
            yield f"device {cells[0]}", quantity(cells[-1])
        elif heading == "Rounds" and cells[0] == "round":
            columns = cells
        elif heading == "Rounds" and cells[0].isdigit():
            for title, cell in zip(columns[1:], cells[1:], strict=False):
                if title in ROUND_COLUMNS:
                    yield f"round {cells[0]} {ROUND_COLUMNS[title]}", quantity(cell)


# -- HTML ---------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Texts with the path of elements that they are in."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.path: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.sections: list[tuple[int, int]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self.sections.append((len(self.texts), len(self.rows)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "meta":
            self.path.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.path.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.path[-1], data.strip()))
        if "td" in self.path or "th" in self.path:
            self.rows[-1][-1] += data


def of_html(text: str) -> Figures:
    """The page's cards and tables."""
    page = _Page(text)
    found: Figures = {}
    marks = [*page.sections, (len(page.texts), len(page.rows))]
    for index, (first, last) in enumerate(pairwise(marks)):
        texts, rows = page.texts[first[0] : last[0]], page.rows[first[1] : last[1]]
        heading = next(n for n, (tag, _) in enumerate(texts) if tag == "h2")
        found[index, "outcome"] = Shown(texts[heading + 1][1])
        cards = {
            label: value
            for (tag, value), (after, label) in pairwise(texts)
            if (tag, after) == ("b", "span")
        }
        for name, value in cards.items():
            if name == "set by":
                found[index, name] = Shown(None if value == "–" else value)
            elif " to " not in value:
                key = "service" if name == "service downtime" else name
                found[index, key] = quantity(value)
        facts = {
            label: value
            for (tag, label), (after, value) in pairwise(texts)
            if (tag, after) == ("dt", "dd")
        }
        found[index, "strategy"] = Shown(facts["strategy"].partition(":")[0])
        found |= {(index, name): shown for name, shown in _channel(facts["channel"])}
        cause = facts.get("cause")
        found[index, "cause"] = Shown(cause.partition(":")[0] if cause else None)
        columns: list[str] = []
        for row in rows:
            if row[0] == "round":
                columns = row
            elif len(row) > 4 and row[0].isdigit():
                for title, cell in zip(columns, row, strict=True):
                    if title in ROUND_COLUMNS:
                        found[index, f"round {row[0]} {ROUND_COLUMNS[title]}"] = quantity(cell)
            elif len(row) == 4 and row[0] != "checkpoint":
                found[index, f"checkpoint {row[0]}"] = quantity(row[1])
    return found


# -- Perfetto -----------------------------------------------------------------------------------


def of_perfetto(content: bytes) -> Figures:
    """Tracks of migrations: slices and counters."""
    pb: Any = import_module("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    trace = pb.Trace.FromString(content)
    tracks: dict[int, tuple[int, str]] = {}
    found: Figures = {}
    parents: list[int] = []
    open_at: dict[int, tuple[str, int]] = {}
    slices: dict[int, list[tuple[str, int, int]]] = {}
    values: dict[int, list[tuple[int, float]]] = {}
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            if not track.parent_uuid and track.name.startswith("migration "):
                parents.append(track.uuid)
                outcome = track.name.rpartition(", ")[2]
                found[len(parents) - 1, "outcome"] = Shown(outcome)
            elif track.parent_uuid in parents:
                tracks[track.uuid] = parents.index(track.parent_uuid), track.name
        event = packet.track_event
        if event.track_uuid not in tracks:
            continue
        if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
            open_at[event.track_uuid] = event.name, packet.timestamp
        elif event.type == pb.TrackEvent.TYPE_SLICE_END:
            name, begin = open_at.pop(event.track_uuid)
            slices.setdefault(event.track_uuid, []).append((name, begin, packet.timestamp))
        elif event.type == pb.TrackEvent.TYPE_COUNTER:
            point = packet.timestamp, event.double_counter_value
            values.setdefault(event.track_uuid, []).append(point)
    for uuid, (index, title) in tracks.items():
        for name, begin, end in slices.get(uuid, ()):
            if title == "blackout":
                found[index, f"checkpoint {name}"] = Shown(end - begin)
            elif title.endswith(" phases") and name != "running":
                found[index, f"phase {title.split()[0]} {name}"] = Shown(end - begin)
            elif title == "rounds":
                found[index, f"{name} sweep"] = Shown(end - begin)
        if title == "rounds":
            found[index, "rounds"] = Shown(len(slices[uuid]))
        if title == "blackout" and slices[uuid][-1][0] == "vcpus-running":
            found[index, "downtime"] = Shown(sum(end - begin for _, begin, end in slices[uuid]))
        if title == "sent":
            found[index, "sent"] = Shown(values[uuid][-1][1])
        if title == "dirty rate":
            # Each holds from the time since when its pages were dirtied; the last point ends the line.
            found[index, "dirty rates"] = Shown(
                json.dumps([round(value, 3) for _, value in values[uuid][:-1]])
            )
    return found


def rates_of(figures: Figures) -> Figures:
    """The rates of the rounds that are known in one figure, as Perfetto's counter has them."""
    found: Figures = {}
    for index, name in figures:
        if name == "rounds" and isinstance(index, int):
            rounds = range(1, int(figures[index, name].value or 0) + 1)
            rates = [figures[index, f"round {n} rate"].value for n in rounds]
            known = [round(float(rate), 3) for rate in rates if rate is not None]
            if known:
                found[index, "dirty rates"] = Shown(json.dumps(known))
    return found


# -- OTLP ---------------------------------------------------------------------------------------


def of_spans(spans: Iterable[Span]) -> Figures:
    """The spans of traces, in the order of their roots."""
    found: Figures = {}
    every = list(spans)
    roots = [span for span in every if not span.parent_span_id]
    for index, root in enumerate(roots):
        about = _attributes(root)
        names = {
            "outcome": "outcome",
            "cause": "cause",
            "strategy": "strategy",
            "vm.pid": "pid",
            "vm.uuid": "uuid",
            "sent_bytes": "sent",
            "dirty.new_pages": "new pages",
            "dirty.mean_rate_bytes_per_second": "mean dirty rate",
            "downtime.vcpu_ns": "downtime",
            "downtime.uncertainty_ns": "uncertainty",
            "downtime.service_ns": "service",
            "downtime.set_by": "set by",
            "brownout.guest_speed": "guest speed",
        }
        for key, name in names.items():
            found[index, name] = Shown(about.get(f"vftrace.{key}"))
        for event in root.events:
            about = {pair.key: pair.value.int_value for pair in event.attributes}
            found[index, f"checkpoint {event.name}"] = Shown(about.get("vftrace.checkpoint.ns"))
        rounds = 0
        for span in every:
            if span.trace_id != root.trace_id:
                continue
            about = _attributes(span)
            if span.name.startswith("round "):
                rounds += 1
                for key in ("new_pages", "redirtied_pages", "logged_pages", "sent_bytes"):
                    known = about.get(f"vftrace.round.{key}")
                    found[index, f"{span.name} {key}"] = Shown(known)
                lasted = span.end_time_unix_nano - span.start_time_unix_nano
                found[index, f"{span.name} sweep"] = Shown(lasted)
            elif "vftrace.phase" in about and "vftrace.unfinished" not in about:
                lasted = span.end_time_unix_nano - span.start_time_unix_nano
                found[index, f"phase {span.name}"] = Shown(lasted)
        found[index, "rounds"] = Shown(rounds)
    return found


def _attributes(span: Span) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in span.attributes
    }


# -- metrics ------------------------------------------------------------------------------------


def scraped(reading: Reading) -> str:
    """What a scrape gets."""
    warned: list[str] = []
    exporter = Exporter(keep_ns=10**18, warn=warned.append)
    exporter.read = lambda: reading
    registry = CollectorRegistry()
    registry.register(exporter)
    text = generate_latest(registry).decode()
    assert not [line for line in warned if "error in vftrace" in line]
    return text


def of_metrics(exposition: str) -> Figures:
    """What Prometheus reads, after the last migration has ended."""
    found: Figures = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            name = sample.name.removeprefix("vftrace_")
            labels, value = sample.labels, sample.value
            vm = labels.get("vm", "")
            match name:
                case "events_lost_total":
                    found["host", "lost"] = Shown(value)
                case "migrations_total":
                    what = f"{labels['role']} {labels['strategy']} {labels['outcome']}"
                    found["host", f"migrations {what}"] = Shown(value)
                case "migrations_incomplete_total":
                    found["host", "incomplete"] = Shown(value)
                case "migration_sent_bytes_total":
                    found[vm, "sent in all"] = Shown(value)
                case "dirty_rounds_total":
                    found[vm, "rounds in all"] = Shown(value)
                case "dirty_pages_total" if labels["source"] == "kvm":
                    found[vm, "new pages in all"] = Shown(value)
                case "migration_guest_speed_ratio":
                    found[vm, "guest speed now"] = Shown(value)
                case "vm_vcpu_seconds_total":
                    found[vm, f"vCPUs {labels['state']}"] = Shown(value * 1e9, 1)
                case "migration_downtime_seconds_count":
                    found["host", f"downtimes {labels['kind']}"] = Shown(value)
                case "migration_downtime_seconds_sum":
                    key = f"downtime {labels['kind']} in all"
                    found["host", key] = Shown(value * 1e9, 1)
                case "migration_phase_seconds_count":
                    key = f"phases {labels['role']} {labels['phase']}"
                    found["host", key] = Shown(value)
                case "migration_phase_seconds_sum":
                    key = f"phase {labels['role']} {labels['phase']} in all"
                    found["host", key] = Shown(value * 1e9, 1)
                case "dirty_sync_seconds_count":
                    found["host", "sweeps"] = Shown(value)
                case "dirty_sync_seconds_sum":
                    found["host", "sweeps' time"] = Shown(value * 1e9, 1)
    return found
