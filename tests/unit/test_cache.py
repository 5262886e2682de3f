# SPDX-License-Identifier: MIT
"""Compiled programs as data, and which files of them are used."""

import os
import stat
import struct
from pathlib import Path

import pytest
from msgspec.structs import replace

from vftrace.probes.bcc import cache
from vftrace.probes.bpf.image import File, Function, Image, Map
from vftrace.probes.checks import programs

# struct bpf_insn (include/uapi/linux/bpf.h): code, source and target register, offset, immediate.
INSTRUCTION = struct.Struct("<BBhi")
LOAD_64 = 0x18


def instruction(code: int, registers: int = 0, immediate: int = 0) -> bytes:
    return INSTRUCTION.pack(code, registers, 0, immediate)


def program(events: int, vms: int) -> bytes:
    """Two maps are loaded by fd; a 64-bit number that looks like their load is none, nor is its second half."""
    return b"".join(
        (
            instruction(0xB7, 0x00, 7),  # r0 = 7
            instruction(LOAD_64, 0x11, events) + instruction(0),
            instruction(LOAD_64, 0x03, 7) + instruction(LOAD_64, 0x11, 7),
            instruction(LOAD_64, 0x12, vms) + instruction(0),
            instruction(0x95),  # exit
        )
    )


IMAGE = Image(
    "GPL",
    {
        "events": Map(27, 0, 0, 1 << 24, 0, '"int"', '"int"'),
        "vms": Map(1, 4, 8, 4096, 1, '"unsigned int"', '["vm", [["seq", "unsigned long"]]]'),
    },
    {"walk": Function.of(program(7, 12), {7: "events", 12: "vms"}), "tp_exit": Function(b"", ())},
    (File.of(__file__),),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(cache.OFF_VARIABLE, raising=False)
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "programs"))
    return tmp_path / "programs"


def kept(place: Path) -> Path:
    cache.write("key", IMAGE)
    assert cache.read("key") == IMAGE
    assert programs((True, False)).text == f"1 of 2 objects from the cache, {place}"
    return next(place.iterdir())


def test_maps_are_named_and_get_the_fds_of_another_process() -> None:
    function = IMAGE.functions["walk"]
    assert function.maps == ((1, "events"), (5, "vms"))
    assert function.with_maps({"events": 70000, "vms": 3, "lost": 9}) == program(70000, 3)


def test_a_map_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        IMAGE.functions["walk"].with_maps({"events": 3})


def wide(value: int, register: int = 1) -> bytes:
    """A 64-bit number in a register."""
    low, high = value & 0xFFFFFFFF, value >> 32
    return struct.pack("<BBHI", LOAD_64, register, 0, low) + struct.pack("<BBHI", 0, 0, 0, high)


def test_callbacks_stand_behind_their_program() -> None:
    """bpf/common.h has a number for each; the kernel wants the distance (BPF_PSEUDO_FUNC, relative to the next)."""
    copy, group, bulk = 0x7666747263616C00, 0x7666747263616C01, 0x7666747261636501
    end = instruction(0x95)
    texts = {"walk": end + wide(copy, 2) + end, "loop_copy": wide(bulk) + wide(group, 2) + end}
    functions = {name: Function.of(text, {}) for name, text in texts.items()}
    functions["loop_group"] = Function.of(end, {})
    image = Image("GPL", {}, functions)
    assert image.programs == ("walk",)
    assert Image.unpacked(image.packed()) == image
    linked, starts = image.linked("walk")
    assert starts == (0, 4, 9)
    assert linked.maps == ((4, "bulk"),)
    assert linked.with_maps({"bulk": 5}) == b"".join(
        (
            *(end, instruction(LOAD_64, 0x42, 4 - 1 - 1), instruction(0), end),
            *(instruction(LOAD_64, 0x11, 5), instruction(0)),
            *(instruction(LOAD_64, 0x42, 9 - 6 - 1), instruction(0), end),
            end,
        )
    )


def test_only_the_owner_may_read_what_is_kept(place: Path) -> None:
    file = kept(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in place.iterdir()] == [file.name]


def test_no_other_key_is_answered(place: Path) -> None:
    kept(place)
    assert cache.read("kex") is None


def test_a_damaged_file_is_not_used_and_replaced(place: Path) -> None:
    file = kept(place)
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damaged in (b"", b"\n", whole[:-1], whole[1:], flipped, whole + b" ", os.urandom(4096)):
        file.write_bytes(damaged)
        assert cache.read("key") is None
    cache.write("key", IMAGE)
    assert cache.read("key") == IMAGE


def test_a_sound_file_of_another_kind_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(place)
    for other in (b"[]", b"{}", b'{"license":"GPL","maps":{"vms":{}},"functions":{}}', b"\xff"):
        monkeypatch.setattr(Image, "packed", lambda _, other=other: other)
        cache.write("key", IMAGE)
        assert cache.read("key") is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_not_used(place: Path, mode: int) -> None:
    kept(place).chmod(mode)
    assert cache.read("key") is None


def test_a_directory_that_others_may_write_is_not_used(place: Path) -> None:
    file = kept(place)
    place.chmod(0o770)
    assert cache.read("key") is None
    assert cache.refuses() == "of another user, or others may write there"
    file.unlink()
    cache.write("key", IMAGE)
    assert list(place.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("which", ["file", "directory"])
def test_what_belongs_to_another_is_not_used(place: Path, which: str) -> None:
    file = kept(place)
    os.chown(file if which == "file" else place, 65534, 65534)
    assert cache.read("key") is None


def test_links_and_pipes_are_not_followed(place: Path, tmp_path: Path) -> None:
    file = kept(place)
    elsewhere = file.rename(tmp_path / "elsewhere")
    file.symlink_to(elsewhere)
    assert cache.read("key") is None
    file.unlink()
    os.mkfifo(file, 0o600)
    assert cache.read("key") is None
    file.unlink()
    elsewhere.rename(file)
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    assert cache.read("key") is None


def test_where_nothing_can_be_kept_nothing_is(place: Path) -> None:
    place.write_text("no directory")
    cache.write("key", IMAGE)
    assert cache.read("key") is None
    assert place.read_text() == "no directory"
    assert programs((False,)).text == (
        f"0 of 1 objects from the cache; none is kept in {place}: File exists"
    )


def test_the_last_used_stay(place: Path) -> None:
    for number in range(cache.KEPT):
        cache.write(f"{number:04}", IMAGE)
        os.utime(place / f"{number:04}.bpf", (number, number))
    assert cache.read("0000") == IMAGE
    cache.write("new", IMAGE)
    names = {path.stem for path in place.iterdir()}
    assert names == {f"{number:04}" for number in range(cache.KEPT) if number != 1} | {"new"}


def test_without_a_cache_nothing_is_read_or_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(place)
    monkeypatch.setenv(cache.OFF_VARIABLE, "1")
    assert cache.directory() is None
    assert cache.read("key") is None
    cache.write("other", IMAGE)
    assert len(list(place.iterdir())) == 1
    assert cache.refuses() == "VFTRACE_NO_CACHE is set"


def test_only_root_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.OFF_VARIABLE, raising=False)
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cache.directory() is None
    assert programs((False,)).text == "0 of 1 objects from the cache; none is kept: not root"


def test_what_another_compiler_made_is_not_used(place: Path, tmp_path: Path) -> None:
    library = tmp_path / "libbcc.so.0"
    library.write_bytes(b"1")
    image = replace(IMAGE, compiler=(File.of(library),))
    cache.write("key", image)
    assert cache.read("key") == image
    library.write_bytes(b"12")
    assert cache.read("key") is None
    library.unlink()
    assert cache.read("key") is None


def test_a_key_is_of_text_flags_and_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bcc = tmp_path / "bcc"
    bcc.mkdir()
    (bcc / "libbcc.py").write_text("1")
    key = cache.key("text", ["-DA"], bcc)
    assert cache.key("text", ["-DA"], bcc) == key
    flags: tuple[list[str], ...] = ([], ["-D", "A"])
    others = {cache.key("texT", ["-DA"], bcc), *(cache.key("text", f, bcc) for f in flags)}
    (bcc / "libbcc.py").write_text("12")
    others.add(cache.key("text", ["-DA"], bcc))
    (bcc / "libbcc.py").write_text("1")
    monkeypatch.setenv("ARCH", "arm64")
    others.add(cache.key("text", ["-DA"], bcc))
    assert len(others | {key}) == 6
