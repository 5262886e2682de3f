# SPDX-License-Identifier: MIT
"""`vftrace mailbox` on recordings, its text against hostile ones, its metrics, and the kernel side's constants."""

import json
import re
import struct
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from vftrace.cli import main
from vftrace.collect.pump import Pump
from vftrace.collect.recording import Recording, RecordingWriter
from vftrace.collect.replay import ReplaySource
from vftrace.events import COLLECTOR, ClockSample, End, Mailbox, VfReset, layout, wire
from vftrace.mailbox.driver import Driver
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.profile import parse_profile, with_profiles
from vftrace.model.host import HostInfo
from vftrace.outputs.exporter.accounts import Reading
from vftrace.outputs.exporter.metrics import Exporter
from vftrace.outputs.text.mailbox_log import Dump
from vftrace.probes import btf
from vftrace.probes.mailbox import require_parameters

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "tests/golden/mailbox/6.12.vft.gz"
IGB, FAKE = "0000:01:00.0", "0000:00:00.0"


def records() -> Counter[tuple[str, int]]:
    """Messages of each VF, counted without our decoding: from the bytes."""
    found: Counter[tuple[str, int]] = Counter()
    for record in Recording(RECORDING):
        if wire.HEADER.unpack_from(record)[3] == 40:
            pf, _, vf = struct.unpack_from("<16sII", record, wire.HEADER.size)
            found[pf.rstrip(b"\0").decode(), vf] += 1
    return found


def test_every_message_is_an_object_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mailbox", str(RECORDING), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    messages = [line for line in lines if line["event"] == "message"]
    assert Counter((line["pf"], line["vf"]) for line in messages) == records()
    assert {line["pf"] for line in lines if line["event"] == "vf"} == {IGB, FAKE}


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--pf", "01:00.0"], {(IGB, 0)}),
        (["--pf", FAKE, "--vf", "1"], {(FAKE, 1)}),
        (["--vf", "1", "--vf", "3"], {(FAKE, 1), (FAKE, 3)}),
        (["--pf", "0000:05:00.0"], set()),
        (["--pf", "10000:05:00.0"], set()),
    ],
)
def test_limits(
    arguments: list[str], wanted: set[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mailbox", str(RECORDING), "--json", *arguments]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["pf"], line["vf"]) for line in lines if line["event"] == "message"} == wanted


@pytest.mark.parametrize("address", ["foo", "eth0", "01:00", "0000:01:00.9", "0000:01:00.0 ", ""])
@pytest.mark.parametrize("file", [RECORDING, ROOT / "tests/golden/recordings/libvirt.vft.gz"])
def test_a_card_is_a_pci_address(
    address: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the recording has no message."""
    assert main(["mailbox", str(file), "--pf", address]) == 2
    assert f"not a PCI address: {address!r}" in capsys.readouterr().err


def test_text_has_one_line_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mailbox", str(RECORDING)]) == 0
    out = capsys.readouterr().out
    spoken = re.findall(r"^\d\d:\d\d:\d\d\.\d{6}  (\S+) vf(\d+) [<>]  ", out, re.MULTILINE)
    assert Counter((pf, int(vf)) for pf, vf in spoken) == records()
    assert "vf0 >  SET_VLAN add=yes vlan=100\n" in out
    assert re.search(r"vf0 <  SET_VLAN ACK  \d+ us\n", out)


@pytest.mark.parametrize(
    "arguments", [["--vf", "x"], ["--vf", "-1"], ["--duration", "1s"], ["--duration", "never"]]
)
def test_bad_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mailbox", str(RECORDING), *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_recording_without_a_mailbox_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    other = ROOT / "tests/golden/recordings/boot.vft.gz"
    assert main(["mailbox", str(other)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "has no mailbox messages" in said.err


def test_a_hostile_recording_steers_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J\x07\n\r"
    path = tmp_path / "evil.vft"
    writer = RecordingWriter(path, HostInfo("h", "b", "k", "0", 0, ()))
    words = (0xFFFF_FFFF,) * 16
    writer.write(
        [
            wire.encode(ClockSample(1, 0, COLLECTOR, 0, 1 << 62, 0)),
            wire.encode(Mailbox(2, 0, 0, 0, evil, 1, 0xFFFF_FFFF, 7, 999, 16, -5, words)),
            wire.encode(Mailbox(3, 1, 0, 0, evil, 77, 0, 0, 16, 99, 0, words)),
            wire.encode(VfReset(4, 2, 0, 0, evil, 1, 0)),
            wire.encode(End(5, 1, COLLECTOR, 0, {0: 3})),
        ]
    )
    writer.close()
    assert main(["mailbox", str(path)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) >= 3
    assert all(line.isascii() and line.isprintable() for line in out.splitlines())


def test_a_loss_is_reported() -> None:
    from vftrace.events import Lost

    assert "lost records=7" in "".join(Dump().feed(Lost(1, 0, COLLECTOR, 0, 7)))


def test_metrics_count_every_message_once() -> None:
    pump = Pump(ReplaySource(RECORDING, speed=0))
    while not pump.ended:
        pump.step()
    exporter = Exporter(1, print)
    reading = Reading(pump.snapshot(), pump.now_ns(), pump.host, (), pump.event_counts(), True)
    exporter.read = lambda: reading
    families = {family.name: family.samples for family in exporter.collect()}
    counted: Counter[tuple[str, int]] = Counter()
    for sample in families["vftrace_vf_mailbox_messages"]:
        counted[sample.labels["pf"], int(sample.labels["vf"])] += round(sample.value)
    assert counted == records()
    resets = {
        (sample.labels["pf"], sample.labels["vf"]): sample.value
        for sample in families["vftrace_vf_resets"]
    }
    # In the script VF 1 asks for RESET once.
    assert resets[FAKE, "1"] == 1


def exportable(driver: Driver) -> dict[int, int]:
    return driver.protocol.exportable(driver)


def test_the_kernel_side_has_the_same_numbers() -> None:
    header = (ROOT / "bpf/wire.h").read_text()
    drivers = re.search(r"enum vft_driver \{(.*?)\}", header, re.DOTALL)
    assert drivers is not None
    numbers = {name.lower(): int(n) for name, n in re.findall(r"VFT_(\w+) = (\d+)", drivers[1])}
    assert numbers == {driver.name: driver.number for driver in DRIVERS.values()}


def test_every_program_of_a_driver_is_in_the_kernel_side() -> None:
    text = (ROOT / "bpf/mailbox.bpf.c").read_text()
    fields = re.search(r"struct layout \{(.*?)\}", (ROOT / "bpf/mailbox.h").read_text(), re.DOTALL)
    assert fields is not None
    for driver in DRIVERS.values():
        for hook in driver.hooks:
            for program in filter(None, (hook.entry, hook.at_return)):
                common = program.replace(f"_{driver.name}_", "_##name##_")
                assert f"int {program}(" in text or f"int {common}(" in text, program
        assert {*driver.layout} <= {*re.findall(r"u64 (\w+);", fields[1])}
        assert f"({driver.name}, VFT_{driver.name.upper()}" in text


def test_the_kernel_side_has_the_same_flags() -> None:
    rules = (ROOT / "bpf/mailbox.h").read_text()
    flags = {name: int(value, 16) for name, value in re.findall(r"#define (\w+) (0x\w+)", rules)}
    assert exportable(DRIVERS[layout.IXGBE])[0x0100_0003] == 1 | flags["WORDS_BY_COUNT"]
    assert exportable(DRIVERS[layout.IXGBE])[0x0101_000B] == 1 | flags["HOLDS_KEY"]


# -- BTF of a module, which continues that of the kernel ------------------------------------------


def blob(strings: bytes, types: bytes) -> bytes:
    """A BTF section (include/uapi/linux/btf.h)."""
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def test_members_of_a_modules_structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = b"\0back\0hw_addr\0"
    own = b"igb_adapter\0pdev\0"
    at = {
        name: (base + own).index(name.encode() + b"\0") for name in ("back", "igb_adapter", "pdev")
    }
    # struct igb_adapter { back at bit 64; pdev at bit 128 }: one name of the kernel's, one of its own
    structure = struct.pack("<III", at["igb_adapter"], 4 << 24 | 2, 24)
    structure += struct.pack("<III", at["back"], 1, 64) + struct.pack("<III", at["pdev"], 1, 128)
    (tmp_path / "vmlinux").write_bytes(blob(base, b""))
    (tmp_path / "igb").write_bytes(blob(own, structure))
    monkeypatch.setattr(btf, "VMLINUX", tmp_path / "vmlinux")
    assert btf.module_member_offset("igb_adapter", "back", "igb") == 8
    assert btf.module_member_offset("igb_adapter", "pdev", "igb") == 16
    assert btf.module_member_offset("igb_adapter", "hw_addr", "igb") is None
    (tmp_path / "igb").write_bytes(b"\x9f\xeb")
    assert btf.module_member_offset("igb_adapter", "pdev", "igb") is None


def test_a_driver_with_other_parameters_is_not_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, own = b"\0hw\0msg\0size\0", b"igb_read_mbx\0mbx_id\0igb_write_mbx\0length\0"
    at = {
        name: (base + own).index(name.encode() + b"\0")
        for name in ("hw", "msg", "size", "igb_read_mbx", "mbx_id", "igb_write_mbx", "length")
    }

    def prototype(*names: str) -> bytes:
        parameters = b"".join(struct.pack("<II", at[name], 1) for name in names)
        return struct.pack("<III", 0, 13 << 24 | len(names), 1) + parameters

    def function(name: str, prototype: int) -> bytes:
        return struct.pack("<III", at[name], 12 << 24, prototype)

    # The kernel has one type, an int; the module's types are numbered from 2.
    (tmp_path / "vmlinux").write_bytes(blob(base, struct.pack("<IIII", 0, 1 << 24, 4, 32)))
    types = prototype("hw", "msg", "size", "mbx_id") + function("igb_read_mbx", 2)
    types += prototype("hw", "msg", "length") + function("igb_write_mbx", 4)
    (tmp_path / "igb").write_bytes(blob(own, types))
    monkeypatch.setattr(btf, "VMLINUX", tmp_path / "vmlinux")
    btf.forget()
    read, write, reset = DRIVERS[2].hooks
    require_parameters(read, "igb")
    with pytest.raises(LookupError, match="igb_write_mbx has other parameters: hw, msg, length"):
        require_parameters(write, "igb")
    require_parameters(reset, "igb")  # BTF does not have it: nothing is known against it
    btf.forget()


# -- profiles ------------------------------------------------------------------------------------

PROFILE = ROOT / "docs/profiles/assisted-ixgbe.toml"


@pytest.mark.parametrize("command", ["mailbox", "report"])
def test_a_profile_that_is_no_good_is_one_line_and_code_2(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('driver = "ixgbe"\n')
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for path, complaint in (
        (bad, "it names no [[message]]"),
        (binary, "not a text file"),
        (tmp_path / "none.toml", "No such file"),
    ):
        assert main([command, "--profile", str(path), str(RECORDING)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert complaint in line
        assert str(path) in line


def test_the_same_profile_twice_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["--profile", str(PROFILE), "--profile", str(PROFILE)]
    assert main(["mailbox", *twice, str(RECORDING)]) == 2
    assert "another profile names opcode 0x41 of ixgbe too" in capsys.readouterr().err


def test_a_profile_names_messages_and_their_roles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mailbox", "--json", "--profile", str(PROFILE), str(RECORDING)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    roles = [m["role"] for m in said if m["event"] == "message" and m["role"] and m["refused"]]
    # The stock driver refuses what it does not know; the script of mailbox-ixgbe has such a message.
    assert roles == ["save"]


def with_profile(path: Path, *profiles: str) -> Path:
    """The recording as it would be, had it been made with these profiles."""
    recording = Recording(RECORDING)
    writer = RecordingWriter(path, replace(recording.host, profiles=profiles))
    writer.write(list(recording))
    writer.close()
    return path


def test_a_recording_brings_its_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mailbox", "--json", "--profile", str(PROFILE), str(RECORDING)]) == 0
    given = capsys.readouterr().out
    kept = with_profile(tmp_path / "kept.vft", PROFILE.read_text())
    assert main(["mailbox", "--json", str(kept)]) == 0
    assert capsys.readouterr().out == given
    assert '"role"' in given
    assert main(["mailbox", "--json", "--profile", str(PROFILE), str(kept)]) == 0
    assert capsys.readouterr().out == given


def test_a_profile_given_now_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = PROFILE.read_text().replace("MIG_", "OLD_")
    kept = with_profile(tmp_path / "kept.vft", older)
    assert main(["mailbox", str(kept)]) == 0
    assert "OLD_" in capsys.readouterr().out
    assert main(["mailbox", "--profile", str(PROFILE), str(kept)]) == 0
    said = capsys.readouterr().out
    assert "MIG_" in said
    assert "OLD_" not in said


def test_a_recording_with_a_broken_profile_gives_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mailbox", str(with_profile(tmp_path / "broken.vft", "driver = 7"))]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "damaged" in said.err


def test_the_kernel_side_gets_the_words_a_profile_names_and_no_more() -> None:
    tables = with_profiles([parse_profile(PROFILE.read_text())])
    rules, known = exportable(tables[layout.IXGBE]), exportable(DRIVERS[layout.IXGBE])
    assert {key: rule for key, rule in rules.items() if key not in known} == {
        0x0100_0041: 3,
        0x0101_0041: 1,
        0x0100_0042: 1,
        0x0101_0042: 2,
        0x0100_0043: 3,
        0x0101_0043: 1,
        0x0100_0044: 1,
        0x0101_0044: 1,
    }
    assert {key: rules[key] for key in known} == known
