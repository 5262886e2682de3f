# SPDX-License-Identifier: MIT
"""Compares vftrace's report with the truth, and describes each difference."""

from collections.abc import Mapping, Sequence
from typing import Any

MS = 1_000_000
TOLERANCE_NS = MS
BYTES_PER_MILLE = 1

# Between the vCPUs' stop and QEMU's STOP its devices are stopped, and between RESUME and the vCPUs' entry they are
# started (softmmu/cpus.c, do_vm_stop and vm_prepare_start): these checkpoints name what vftrace's downtime has beyond
# QEMU's.
_BESIDE_QEMU = ("devices-stopped", "clock-read", "clock-set", "vcpus-running")

_LARGEST_STATE = 256 * 1024
"""Bytes; the state of this guest's devices, where vftrace does not tell it from memory."""

_MOST_NAMED_NS = 20 * MS
"""Stopping and starting this guest's few devices takes no longer on a busy machine."""


def of_domains(report: Mapping[str, Any], truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The report's migrations of the operation's domains, in the truth's order."""
    order = [domain["uuid"] for domain in truth["domains"]]
    ours = [m for m in report["migrations"] if m["vm"]["uuid"] in order]
    return sorted(ours, key=lambda m: (order.index(m["vm"]["uuid"]), m["started_at_ns"]))


def problems(report: Mapping[str, Any], truth: Mapping[str, Any]) -> list[str]:
    """What is wrong in the report of the whole recording; nothing if it is right."""
    seen = of_domains(report, truth)
    expected = truth["expect"]
    if not expected:
        # An internal snapshot may be seen as what it is, a save or a load.
        moves = [m for m in seen if m["kind"] == "move"]
        return [f"{len(moves)} migrations seen where there was none"] if moves else []
    if len(seen) != len(expected):
        said = ", ".join(f"{m['role']} {m['outcome']}" for m in seen) or "nothing"
        return [f"{len(seen)} seen, {len(expected)} took place: {said}"]
    sources = iter(truth["qemu"])
    wrong: list[str] = []
    for migration, wanted in zip(seen, expected, strict=True):
        qemu: Mapping[str, Any] = {} if wanted["kind"] == "load" else next(sources, {})
        wrong += _outcome(migration, wanted)
        wrong += _figures(migration, wanted, qemu)
    return wrong


def _outcome(migration: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    said, cause = migration["outcome"], migration["cause"]
    kind = migration["kind"]
    wrong = []
    if kind != wanted["kind"]:
        wrong.append(f"{kind} for {wanted['kind']}")
    if said != wanted["outcome"]:
        because = f" ({cause})" if cause else ""
        wrong.append(f"{said}{because} for {wanted['outcome']}")
    elif wanted["cause"] not in (None, cause):
        wrong.append(f"cause {cause} for {wanted['cause']}")
    return wrong


def _figures(
    migration: Mapping[str, Any],
    wanted: Mapping[str, Any],
    qemu: Mapping[str, Any],
) -> list[str]:
    wrong = []
    rounds, passes = len(migration["rounds"]), qemu.get("passes")
    if "rounds" in wanted["compare"] and passes is not None and rounds != passes:
        wrong.append(f"{rounds} rounds for {passes}")
    if "fewer-rounds" in wanted["compare"] and not 0 < rounds <= (passes or 0):
        wrong.append(f"{rounds} rounds for at most {passes}")
    if "bytes" in wanted["compare"]:
        wrong += _bytes(migration["channel"], qemu.get("transferred"))
    if "downtime" in wanted["compare"]:
        wrong += _downtime(migration, qemu)
    if "total" in wanted["compare"]:
        wrong += _total(migration, qemu)
    return wrong


def _bytes(channel: Mapping[str, Any], transferred: int | None) -> list[str]:
    """QEMU before 8.1 counts memory only; the state comes on top (docs/results/scenarios.md)."""
    if transferred is None:
        return []
    if channel["bytes"] is None:
        return [f"bytes unknown for {transferred}"]
    sent = channel["bytes"] - (channel["state_bytes"] or 0)
    if channel["state_bytes"] is None and transferred <= sent <= transferred + _LARGEST_STATE:
        return []
    if abs(sent - transferred) * 1000 > BYTES_PER_MILLE * transferred:
        return [f"{sent} bytes for {transferred}"]
    return []


def _downtime(migration: Mapping[str, Any], qemu: Mapping[str, Any]) -> list[str]:
    """QEMU's is from STOP to RESUME; vftrace's is longer by what its checkpoints name."""
    truth_ms = qemu.get("stop_to_resume_ms")
    if truth_ms is None:
        return ["QEMU reported no STOP and RESUME"]
    ours = migration["downtime"]["vcpu_ns"]
    if ours is None:
        return [f"downtime unknown for {truth_ms:.1f} ms"]
    longer = ours - truth_ms * MS
    if -TOLERANCE_NS <= longer <= TOLERANCE_NS + named_ns(migration):
        return []
    return [f"downtime {ours / MS:.1f} ms for {truth_ms:.1f} ms"]


def longer_ms(report: Mapping[str, Any], truth: Mapping[str, Any]) -> list[float]:
    """How much longer than QEMU's each compared downtime is, ms; a throttled guest's sleep is another matter."""
    expected = [each for each in truth["expect"] if each["kind"] != "load"]
    seen = [m for m in of_domains(report, truth) if m["kind"] != "load"]
    return [
        migration["downtime"]["vcpu_ns"] / MS - qemu["stop_to_resume_ms"]
        for migration, wanted, qemu in zip(seen, expected, truth["qemu"], strict=False)
        if "downtime" in wanted["compare"]
        and "stop_to_resume_ms" in qemu
        and migration["downtime"]["vcpu_ns"] is not None
        and not migration["downtime"]["throttled"]
    ]


def named_ns(migration: Mapping[str, Any]) -> int:
    """Return vftrace's own figure of the time that QEMU's events leave out, ns."""
    checkpoints = migration["downtime"]["checkpoints"]
    named = sum(c["ns"] or 0 for c in checkpoints if c["name"] in _BESIDE_QEMU)
    # A throttled vCPU sleeps outside the guest, where the stop finds it.
    return named if migration["downtime"]["throttled"] else min(named, _MOST_NAMED_NS)


def _total(migration: Mapping[str, Any], qemu: Mapping[str, Any]) -> list[str]:
    """The total beside QEMU's; vftrace's ends on the destination, a little later."""
    truth_ms = qemu.get("total-time")
    if truth_ms is None or migration["ended_at_ns"] is None:
        return [f"total unknown for {truth_ms} ms"]
    ours_ms = (migration["ended_at_ns"] - migration["started_at_ns"]) / MS
    if abs(ours_ms - truth_ms) > 50 + truth_ms / 10:
        return [f"total {ours_ms:.0f} ms for {truth_ms} ms"]
    return []


def problems_alone(report: Mapping[str, Any], truth: Mapping[str, Any], side: str) -> list[str]:
    """What is wrong in the report of one host's recording: unknown is right, the opposite is not."""
    seen = of_domains(report, truth)
    expected = truth["expect"]
    if not expected:
        return problems(report, truth)
    wrong = []
    if len(seen) > len(expected):
        wrong.append(f"{side}: {len(seen)} seen, {len(expected)} took place")
    arrived = {wanted["outcome"] == "completed" for wanted in expected}
    for migration in seen:
        said = migration["outcome"]
        if said != "unknown" and (said == "completed") not in arrived:
            wrong.append(f"{side}: {said} for {expected[0]['outcome']}")
    return wrong


def problems_together(
    whole: Mapping[str, Any], together: Mapping[str, Any], truth: Mapping[str, Any]
) -> list[str]:
    """What the recordings of two hosts with set clocks say otherwise than one recording of both."""
    return [f"A B: {problem}" for problem in _differences(whole, together, truth, weaker=())]


def problems_apart(
    whole: Mapping[str, Any], together: Mapping[str, Any], truth: Mapping[str, Any]
) -> list[str]:
    """The same for two hosts whose clocks nobody sets.

    Which end came first is then not always known: the source's own word may stand. Whoever relays a pipe may have
    accepted before the destination was there, so that nothing bounds the clocks (docs/explanation/two-hosts.md).
    """
    source = ("channel-error", "resumed-after-stop")
    ours, halves = of_domains(whole, truth), of_domains(together, truth)
    if any(m["channel"]["kind"] == "pipe" for m in ours) and len(halves) == 2 * len(ours):
        said = {m["outcome"] for m in halves}
        expected = {m["outcome"] for m in ours}
        return [] if said == expected else [f"A B, clocks not set: {said} for {expected}"]
    wrong = _differences(whole, together, truth, weaker=source)
    return [f"A B, clocks not set: {problem}" for problem in wrong]


def _differences(
    whole: Mapping[str, Any],
    together: Mapping[str, Any],
    truth: Mapping[str, Any],
    weaker: Sequence[str],
) -> list[str]:
    if not truth["expect"]:
        return problems(together, truth)
    one, two = of_domains(whole, truth), of_domains(together, truth)
    if len(one) != len(two):
        said = ", ".join(f"{m['role']} {m['outcome']}" for m in two) or "nothing"
        return [f"{len(two)} for {len(one)}: {said}"]
    wrong = []
    for here, there in zip(one, two, strict=True):
        wrong += [
            f"{name} {there.get(name)} for {here.get(name)}"
            for name in ("kind", "outcome", "cause")
            if here.get(name) != there.get(name) and there.get(name) not in weaker
        ]
        if len(here["rounds"]) != len(there["rounds"]):
            wrong.append(f"{len(there['rounds'])} rounds for {len(here['rounds'])}")
        if here["channel"]["bytes"] != there["channel"]["bytes"]:
            wrong.append(f"{there['channel']['bytes']} bytes for {here['channel']['bytes']}")
        wrong += _other_downtime(here["downtime"], there["downtime"])
    return wrong


def _other_downtime(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    if one["vcpu_ns"] is None or two["vcpu_ns"] is None:
        if one["vcpu_ns"] == two["vcpu_ns"]:
            return []
        return [f"downtime {_ms(two['vcpu_ns'])} for {_ms(one['vcpu_ns'])}"]
    error = (two["uncertainty_ns"] or 0) + TOLERANCE_NS
    if abs(one["vcpu_ns"] - two["vcpu_ns"]) > error:
        return [f"downtime {_ms(two['vcpu_ns'])} ± {_ms(error)} for {_ms(one['vcpu_ns'])}"]
    return []


def _ms(ns: int | None) -> str:
    return "unknown" if ns is None else f"{ns / MS:.1f} ms"


def said_by_vftrace(report: Mapping[str, Any], truth: Mapping[str, Any]) -> list[str]:
    """One line a migration, for the table."""
    lines = []
    for migration in of_domains(report, truth):
        cause = f" ({migration['cause']})" if migration["cause"] else ""
        lines.append(
            f"{migration['kind']} {migration['outcome']}{cause},"
            f" {_ms(migration['downtime']['vcpu_ns'])}, {len(migration['rounds'])} rounds,"
            f" {migration['channel']['bytes']} B"
        )
    return lines


def said_by_qemu(truth: Mapping[str, Any]) -> list[str]:
    """One line an attempt, for the table."""
    lines = []
    for attempt in truth["qemu"]:
        stood = attempt.get("stop_to_resume_ms")
        lines.append(
            f"{attempt.get('status', '-')}, {'-' if stood is None else f'{stood:.1f} ms'},"
            f" {attempt['passes']} passes, {attempt.get('transferred', '-')} B"
        )
    return lines
