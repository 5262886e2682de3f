# SPDX-License-Identifier: MIT
"""Two migrations side by side."""

import json

import pytest
from msgspec.structs import replace

from tests.unit.two_hosts import RECORDINGS, boot_of, golden
from vftrace.cli import main
from vftrace.model.report import MigrationReport, Report
from vftrace.outputs.report.compare import compare, pairs_of, verdict


def migrations(name: str) -> tuple[MigrationReport, ...]:
    return Report.of_hosts([boot_of(*golden(name))]).migrations


def path(name: str) -> str:
    return str(RECORDINGS / f"{name}.vft.gz")


def test_the_differences_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", path("completed-slow"), "--compare", path("libvirt"), "--format", "json"]
    assert main(words) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    a, b = found["a"]["downtime"], found["b"]["downtime"]
    total = next(row for row in found["totals"] if row["name"] == "downtime")
    assert (total["a"], total["b"]) == (a["vcpu_ns"], b["vcpu_ns"])
    assert total["difference"] == b["vcpu_ns"] - a["vcpu_ns"]
    steps = [(row["a"] or 0, row["b"] or 0) for row in found["checkpoints"]]
    assert sum(b - a for a, b in steps) == total["difference"]
    assert [row["name"] for row in found["checkpoints"]] == [c["name"] for c in a["checkpoints"]]


def test_the_first_line_names_what_changed_most(capsys: pytest.CaptureFixture[str]) -> None:
    # One of the two was started with -S and waited 300 ms for `cont` (demo.scenarios, libvirt).
    assert main(["report", path("completed-slow"), "--compare", path("libvirt"), "--ascii"]) == 0
    text = capsys.readouterr().out
    assert "most in held (+301 ms)" in text.splitlines()[0]
    assert text.isascii() or "×" in text


def test_with_itself_there_is_no_difference() -> None:
    (m,) = migrations("libvirt")
    found = compare(m, m)
    assert verdict(found).endswith("no difference")
    rows = (*found.totals, *found.checkpoints, *found.phases)
    assert {row.difference for row in rows if row.a is not None} == {0}


def test_what_one_lacks_is_not_a_difference() -> None:
    (m,) = migrations("libvirt")
    (other,) = migrations("completed-slow")
    held = next(row for row in compare(m, other).checkpoints if row.name == "held")
    assert held.a is not None
    assert held.b is None
    assert held.difference is None
    (cancelled,) = migrations("cancel-precopy")
    assert "not known" in verdict(compare(m, cancelled))


def test_less_than_the_clocks_know_is_no_change() -> None:
    (m,) = migrations("libvirt")
    assert m.migration.downtime.vcpu_ns is not None
    downtime = replace(m.migration.downtime, vcpu_ns=m.migration.downtime.vcpu_ns + 1_000_000)
    other = replace(m, migration=replace(m.migration, downtime=downtime), uncertainty_ns=2_000_000)
    assert "within the clocks' uncertainty" in verdict(compare(m, other))


def test_migrations_of_one_uuid_are_compared_with_each_other() -> None:
    four = migrations("four-at-once")
    backwards = four[::-1]
    pairs = pairs_of(four, backwards)
    assert len(pairs) == len(four)
    assert all(a.migration.uuid == b.migration.uuid for a, b in pairs)
    # Others in order.
    (one,) = migrations("libvirt")
    assert pairs_of([one], four) == [(one, four[0])]


def test_nothing_to_compare_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", path("libvirt"), "--compare", path("boot")]) == 1
    assert "no migration in" in capsys.readouterr().err
    assert main(["report", path("libvirt"), "--compare", path("boot"), "--format", "html"]) == 2
