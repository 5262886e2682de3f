# SPDX-License-Identifier: MIT
"""`vftrace anonymize` over all golden recordings: the report's figures stay, and no name or address survives."""

import gzip
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vftrace import cli, events
from vftrace.analysis.hosts.join import join_hosts
from vftrace.archive.anonymize import FIELDS, Words, anonymize
from vftrace.collect.merge import load
from vftrace.collect.recording import Recording
from vftrace.collect.replay import events_of
from vftrace.errors import UsageError
from vftrace.events import COLLECTOR, wire
from vftrace.outputs.report.json import report_json

GOLDEN = Path(__file__).parent
ALL = sorted(GOLDEN.rglob("*.vft.gz"))
IDS = [str(path.relative_to(GOLDEN)).removesuffix(".vft.gz") for path in ALL]
LARGE = {"experiment/all/a-host", "experiment/all/b-host"}
"""Read once in pairs, below."""

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.IGNORECASE)
PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
PATH = re.compile(r"(?<![\w/])/[\w.-][\w./-]*")
IPV4 = re.compile(r"\d+\.\d+\.\d+\.\d+")


@cache
def report(path: Path) -> dict[str, Any]:
    return report_json(join_hosts(load([path])))


def pairs(before: object, after: object, where: str = "") -> list[tuple[str, str, str]]:
    """Both documents have the same shape and the same figures; the texts of each place, in pairs."""
    if isinstance(before, dict) and isinstance(after, dict):
        if where.endswith((".state_ns", ".settings")):
            assert list(before) == list(after), where
        assert before.keys() == after.keys(), where
        return [p for k in before for p in pairs(before[k], after[k], f"{where}.{k}")]
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        assert len(before) == len(after), where
        return [p for b, a in zip(before, after, strict=True) for p in pairs(b, a, f"{where}[]")]
    if isinstance(before, str) and isinstance(after, str):
        return [(where, before, after)]
    assert before == after, where
    return []


CHANGED = {
    ".hosts[].name": "name",
    ".hosts[].boot_id": "uuid",
    ".hosts[].vfs[].settings.mac": "mac",
    ".hosts[].vfs[].changes[].value": "mac or no",
    ".hosts[].vfs[].messages[].arguments.mac": "mac",
    ".migrations[].vm.uuid": "uuid",
    ".migrations[].vm.name": "name",
    ".migrations[].host": "name",
    ".migrations[].peer_host": "name",
    ".migrations[].save.path": "name",
    ".migrations[].save.program": "name",
    ".migrations[].channel.peer": "address",
    ".migrations[].devices[].id": "name",
    ".migrations[].downtime.devices[].id": "name",
}
"""The only places of a report where a text may differ."""


MEDIATED = {
    ".migrations[].devices[].address",
    ".migrations[].devices[].peer_address",
    ".migrations[].downtime.devices[].address",
    ".migrations[].downtime.slowest_device",
}
"""Where a PCI address stands, which stays, or the UUID or name of a device on another bus."""


def figures_stay(before: dict[str, Any], after: dict[str, Any]) -> None:
    mapped: dict[str, str] = {}
    for where, old, new in pairs(before, after):
        if where == ".migrations[].strategy_evidence[].event":
            # `vf0: RESUMING`, `source closes vf0`: QEMU's id of the device is another
            same = re.escape(new).replace("\\-", "-")
            assert re.fullmatch(re.sub(r"(dev|id)-[0-9a-f]{8}", r"[\\w.-]+", same), old)
            continue
        if where.startswith(".migrations[].advice[]"):
            # `fdatasync(/var/lib/disk.img) took 903 ms of the blackout`: the path is another
            assert PATH.sub("PATH", old) == PATH.sub("PATH", new), where
            continue
        mediated = where in MEDIATED and not PCI.fullmatch(old)
        if mediated or where in CHANGED or where.endswith((".cause_detail", ".target")):
            # what was equal stays equal, and what was not does not become so
            assert mapped.setdefault(f"{where}:{old}", new) == new
        else:
            assert old == new, where
    for where in {key.split(":")[0] for key in mapped}:
        found = [new for key, new in mapped.items() if key.startswith(f"{where}:")]
        assert len(set(found)) == len(found)


def secrets(path: Path) -> tuple[set[str], set[bytes]]:
    """Find identifying texts of a recording without the program's tables: in its first line and in every text."""
    recording = Recording(path)
    texts = {recording.host.name, recording.host.boot_id}
    macs: set[bytes] = set()
    for event in events_of(recording):
        for name in event.__struct_fields__:
            value = getattr(event, name)
            if isinstance(value, str):
                texts |= {*UUID.findall(value), *MAC.findall(value), *IPV4.findall(value)}
                if name in ("path", "load_path", "id", "interface", "port", "bridge", "master"):
                    texts.add(value)
                if name == "name" and isinstance(event, events.Process):
                    texts.add(value)
        # virtio's and QEMU's own prefix, and the lab's: as bytes in a message they are these
        if isinstance(event, (events.Mailbox, events.Virtchnl)):
            raw = b"".join(word.to_bytes(4, "little") for word in event.word)
            macs |= {raw[m.start() : m.start() + 6] for m in re.finditer(rb"RT\0", raw)}
    texts -= {"", "lo", "127.0.0.1", "0.0.0.0"}
    texts = {t for t in texts if not t.startswith("/dev/") and not PCI.fullmatch(t)}
    return {t for t in texts if len(t) > 3}, macs | {
        bytes.fromhex(t.replace(":", "")) for t in texts if MAC.fullmatch(t)
    }


def nothing_survives(path: Path, made: Path) -> None:
    texts, macs = secrets(path)
    data = gzip.decompress(made.read_bytes())
    # a text of digits alone, such as an interface's number, cannot be searched in binary data
    survived = {t for t in texts if t.encode() in data or t.upper().encode() in data}
    assert survived == set()
    assert {mac for mac in macs if mac.count(0) < 4 and mac in data} == set()


@pytest.mark.parametrize(
    "path",
    [p for p, i in zip(ALL, IDS, strict=True) if i not in LARGE],
    ids=[i for i in IDS if i not in LARGE],
)
def test_figures_stay_and_names_do_not(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "a.vft.gz"
    assert anonymize(path, made) == why_not_whole(path)
    assert made.stat().st_mode & 0o777 == 0o600
    figures_stay(report(path), report(made))
    nothing_survives(path, made)


def why_not_whole(path: Path) -> str | None:
    recording = Recording(path)
    for _ in recording.batches():
        pass
    return recording.not_whole


def test_there_was_something_to_hide() -> None:
    """The search above finds what is known to be in some recordings."""
    texts, macs = set(), set()
    for name in (
        "mailbox/6.12",
        "mailbox/6.12-virtchnl",
        "recordings/file",
        "experiment/all/a-host",
    ):
        found = secrets(GOLDEN / f"{name}.vft.gz")
        texts |= found[0]
        macs |= found[1]
    assert any(UUID.fullmatch(t) for t in texts)
    assert any(MAC.fullmatch(t) for t in texts)
    assert any(IPV4.fullmatch(t) and t.startswith("10.8.") for t in texts)
    assert any(t.startswith("demo-") for t in texts)
    assert macs


def test_one_key_joins_two_hosts(tmp_path: Path) -> None:
    """Of both hosts of the experiment, each anonymized alone: the report is that of the originals."""
    both = [GOLDEN / "experiment" / "all" / f"{host}-host.vft.gz" for host in ("a", "b")]
    made = [tmp_path / f"{path.name}" for path in both]
    for path, output in zip(both, made, strict=True):
        assert cli.main(["anonymize", str(path), "-o", str(output), "--key", "k"]) == 0
    before, after = (report_json(join_hosts(load(paths))) for paths in (both, made))
    assert {m["role"] for m in before["migrations"]} == {"stitched"}
    figures_stay(before, after)
    for path, output in zip(both, made, strict=True):
        nothing_survives(path, output)


def test_without_a_key_every_run_has_other_names(tmp_path: Path) -> None:
    path = GOLDEN / "recordings" / "completed-fast.vft.gz"
    names = set()
    for number in range(3):
        made = tmp_path / f"{number}.vft"
        anonymize(path, made)
        names.add(report(made)["migrations"][0]["vm"]["name"])
    assert len(names) == 3


def test_every_text_of_every_event_has_been_thought_of() -> None:
    """A new field with text is either replaced or listed as not identifying."""
    for event in wire.CLASSES.values():
        hints = event.__annotations__
        texts = {
            name for name, kind in hints.items() if "str" in str(kind) and "Class" not in str(kind)
        }
        assert texts == set(FIELDS.get(event, {})), event.__name__


def test_what_this_version_cannot_read_loses_its_body(tmp_path: Path) -> None:
    """It may hold anything; that it was there is still counted."""
    from vftrace.collect.recording import RecordingWriter

    secret = b"the name of a VM in a record of the next version"
    size = wire.HEADER.size + len(secret)
    unknown = wire.HEADER.pack(5, 0, size, 9999, 0, COLLECTOR, 1) + secret
    end = wire.encode(events.End(6, 1, COLLECTOR, 1, {}))
    writer = RecordingWriter(tmp_path / "in.vft", Recording(ALL[0]).host)
    writer.write([unknown, end])
    writer.close()
    assert anonymize(tmp_path / "in.vft", tmp_path / "out.vft") is None
    assert secret not in (tmp_path / "out.vft").read_bytes()
    first, _ = events_of(Recording(tmp_path / "out.vft"))
    assert isinstance(first, events.Unknown)
    assert (first.kind, first.seq) == (9999, 0)


def test_an_ipsec_peer_in_a_message_is_blanked(tmp_path: Path) -> None:
    peer = 0x0A08_0002
    message = events.Mailbox(
        5, 0, 0, 0, "0000:01:00.0", 1, 0, 0, 16, 7, 0, (0x0D, 1, 2, peer, 0, 0, 0, *[0] * 9)
    )
    from vftrace.archive.anonymize import changed
    from vftrace.mailbox.drivers import DRIVERS

    after = changed(message, Words(), DRIVERS)
    assert isinstance(after, events.Mailbox)
    assert after.word[:3] == message.word[:3]
    assert not any(after.word[3:])


def test_the_recording_is_never_its_own_output(tmp_path: Path) -> None:
    path = tmp_path / "r.vft.gz"
    path.write_bytes(ALL[0].read_bytes())
    with pytest.raises(UsageError, match="is the recording itself"):
        anonymize(path, path, force=True)
    assert path.read_bytes() == ALL[0].read_bytes()
    other = tmp_path / "kept.vft"
    other.write_text("kept")
    assert cli.main(["anonymize", str(path), "-o", str(other)]) == 2
    assert other.read_text() == "kept"


def test_damage_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gzip.decompress((GOLDEN / "recordings" / "completed-fast.vft.gz").read_bytes())
    (tmp_path / "cut.vft").write_bytes(whole[: len(whole) // 2])
    assert cli.main(["anonymize", str(tmp_path / "cut.vft"), "-o", str(tmp_path / "o.vft")]) == 0
    assert "not closed" in capsys.readouterr().err
    figures_stay(report(tmp_path / "cut.vft"), report(tmp_path / "o.vft"))


def test_addresses_keep_their_form() -> None:
    words = Words("k")
    assert words.peer("127.0.0.1:49152") == "127.0.0.1:49152"
    assert re.fullmatch(r"10\.\d+\.\d+\.\d+:49152", words.peer("192.0.2.7:49152"))
    assert re.fullmatch(r"\[fd[0-9a-f:]+\]:4444", words.peer("[2001:db8::1]:4444"))
    assert words.peer("192.0.2.7:1").split(":")[0] == words.peer("192.0.2.7:2").split(":")[0]
    assert words.host("guest.example.org").startswith("host-")
    assert words.mac("00:00:00:00:00:00") == "00:00:00:00:00:00"
    assert MAC.fullmatch(words.mac("52:54:00:12:34:56"))
    assert words.mac("52:54:00:12:34:AB") == words.mac("52:54:00:12:34:ab")
    assert words.mac("01:00:5e:00:00:01").startswith("03:")
    assert words.device("0000:01:10.0") == "0000:01:10.0"
    assert UUID.fullmatch(words.device("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"))
    assert len(words.interface("vnet3")) <= 15
    assert words.path("/dev/vfio/12") == "/dev/vfio/12"
    assert words.path("/dev/mapper/acme").startswith("/path-")
    assert words.vmm("qemu-system-x86_64") == "qemu-system-x86_64"
    assert words.thread("CPU 0/KVM") == "CPU 0/KVM"
    assert words.thread("qemu:web-1").startswith("thread-")
