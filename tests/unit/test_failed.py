# SPDX-License-Identifier: MIT
"""Failed migrations, cut into two hosts' recordings: outcome and cause are those of the whole."""

import json
from pathlib import Path

import jsonschema
import pytest
from msgspec import structs

from tests.unit.two_hosts import boot_of, golden, host_of, join, only, renamed, shifted, write
from vftrace import events
from vftrace.analysis.hosts.clocks import UNSYNCHRONISED_NS
from vftrace.cli import main
from vftrace.events import wire
from vftrace.model.report import HostReport

SECONDS = 10**9
MS = 10**6
SCHEMA = json.loads((Path(__file__).parents[2] / "vftrace" / "report.schema.json").read_text())

# What the driver of each scenario did (tests/golden/test_golden.py holds the same against QEMU's own words).
WHOLE = {
    "cancel-precopy": ("cancelled", "cancelled"),
    "cancel-pre-switchover": ("failed", "resumed-after-stop"),
    "dest-killed-precopy": ("failed", "destination-ended"),
    "dest-killed-blackout": ("failed", "destination-ended"),
    "source-killed-precopy": ("failed", "source-ended"),
}


def pids(name: str) -> tuple[int, set[int]]:
    """The source's pid and those of everybody else, from the processes that the driver started."""
    path = Path(__file__).parents[1] / "golden" / "recordings" / f"{name}.truth.json"
    processes = json.loads(path.read_text())["processes"]
    (source,) = [p["pid"] for p in processes if p["role"] == "source"]
    return source, {p["pid"] for p in processes} - {source}


def halves(name: str, error_ns: int, shift_ns: int = 1000 * SECONDS) -> list[HostReport]:
    host, records = golden(name)
    source, others = pids(name)
    here = [shifted(r, 0, error_ns) for r in only(records, {source})]
    there = [shifted(r, shift_ns, error_ns) for r in only(records, others)]
    return [
        boot_of(host_of("alpha", "boot-a", host), here),
        boot_of(host_of("beta", "boot-b", host, shift_ns), there),
    ]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("error_ns", [1000, MS, 2 * MS])
def test_as_on_one_host(name: str, error_ns: int) -> None:
    source, others = pids(name)
    (found,) = join(halves(name, error_ns))
    m = found.migration
    assert (m.outcome, m.cause) == WHOLE[name]
    assert (m.role, m.pid) == ("stitched", source)
    assert {m.peer_pid} == others
    assert found.peer is not None
    assert found.peer.name == "beta"
    assert found.warnings == ()


def test_one_host_alone_knows_less() -> None:
    """A killed destination is only a broken channel to its source: the other host makes the difference."""
    (alone,) = join(halves("dest-killed-precopy", 1000)[:1])
    assert (alone.migration.outcome, alone.migration.cause) == ("failed", "channel-error")
    assert (alone.peer, alone.migration.role) == (None, "source")


def test_clocks_that_nobody_sets_may_leave_the_cause_open() -> None:
    (found,) = join(halves("dest-killed-blackout", UNSYNCHRONISED_NS))
    assert (found.migration.outcome, found.migration.cause) == ("failed", "channel-error")
    assert found.migration.role == "stitched"
    assert any("clocks do not show" in warning for warning in found.warnings)


def test_the_users_clock_error_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host, records = golden("dest-killed-blackout")
    source, others = pids("dest-killed-blackout")
    files = [
        write(
            tmp_path / f"{name}.vft",
            host_of(name, name, host, shift),
            [shifted(r, shift, UNSYNCHRONISED_NS) for r in only(records, those)],
        )
        for name, shift, those in (("alpha", 0, {source}), ("beta", 7 * SECONDS, others))
    ]
    causes = []
    for words in ([], ["--clock-error", "1ms"]):
        assert main(["report", "--format", "json", *words, *map(str, files)]) == 0
        (found,) = json.loads(capsys.readouterr().out)["migrations"]
        causes.append((found["cause"], found["peer_host"]))
    assert causes == [("channel-error", "beta"), ("destination-ended", "beta")]


def test_a_destination_that_ended_for_a_channel_the_source_shut_is_a_cancel() -> None:
    """EPIPE, and the destination's end comes after it: who shut the channel down was the source."""
    here, there = halves("dest-killed-precopy", 1000)
    (waiting,) = there.waiting
    assert waiting.ended_at_ns is not None
    late = structs.replace(waiting, ended_at_ns=waiting.ended_at_ns + 200 * MS)
    (found,) = join([here, structs.replace(there, waiting=(late,))])
    assert (found.migration.outcome, found.migration.cause) == ("cancelled", "cancelled")


def test_near_misses_stay_apart() -> None:
    """Another VM; one that was gone before; one that came later; one that lives on the same host."""
    here, there = halves("cancel-precopy", 1000)
    (waiting,) = there.waiting
    assert waiting.ended_at_ns is not None
    hour = 3600 * SECONDS
    others = [
        structs.replace(waiting, uuid="00000000-0000-0000-0000-000000000000"),
        structs.replace(waiting, uuid=None),
        structs.replace(
            waiting,
            ready_at_ns=waiting.ready_at_ns - hour,
            ended_at_ns=waiting.ended_at_ns - hour,
        ),
        structs.replace(waiting, ready_at_ns=waiting.ready_at_ns + hour, ended_at_ns=None),
    ]
    for other in others:
        (found,) = join([here, structs.replace(there, waiting=(other,))])
        assert (found.peer, found.migration.role, found.warnings) == (None, "source", ())
    (found,) = join([structs.replace(here, waiting=(waiting,))])
    assert found.peer is None


def test_two_that_fit_are_not_taken() -> None:
    here, there = halves("cancel-precopy", 1000)
    (waiting,) = there.waiting
    twin = structs.replace(waiting, pid=waiting.pid + 1)
    third = structs.replace(renamed(there, "gamma", "boot-c"), waiting=(twin,))
    (found,) = join([here, there, third])
    assert found.peer is None
    assert any("several waiting VMs on other hosts" in warning for warning in found.warnings)


def test_two_attempts_each_with_its_own_destination(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first destination is killed, the second, which waited all the time, takes over; from two files."""
    host, records = golden("retry")
    source, others = pids("retry")
    shift = -500 * SECONDS
    files = [
        write(
            tmp_path / "a.vft",
            host_of("alpha", "boot-a", host),
            [shifted(r, 0, MS) for r in only(records, {source})],
        ),
        write(
            tmp_path / "b.vft",
            host_of("beta", "boot-b", host, shift),
            [shifted(r, shift, MS) for r in only(records, others)],
        ),
    ]
    assert main(["report", "--format", "json", *map(str, files)]) == 0
    said = json.loads(capsys.readouterr().out)
    jsonschema.validate(said, SCHEMA)
    first, second = said["migrations"]
    assert (first["outcome"], first["cause"]) == ("failed", "destination-ended")
    assert (second["outcome"], second["cause"]) == ("completed", None)
    assert {first["peer_pid"], second["peer_pid"]} == others
    killed = [wire.decode(r) for r in records]
    (gone,) = [e for e in killed if isinstance(e, events.Exit) and e.tgid == first["peer_pid"]]
    assert first["started_at_ns"] < gone.at_ns < first["ended_at_ns"]
    assert {first["peer_host"], second["peer_host"]} == {"beta"}
    assert main(["report", *map(str, files)]) == 0
    assert "the destination's process ended" in capsys.readouterr().out
