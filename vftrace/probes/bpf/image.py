# SPDX-License-Identifier: MIT
"""A compiled program text as data: its maps, and its functions' instructions with maps by name."""

from pathlib import Path
from typing import Self

import msgspec

_INSTRUCTION = 8
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW
_MAP_SOURCES = (1, 2)  # BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE
_CALLBACK_SOURCE = 4  # BPF_PSEUDO_FUNC
_STANDS_FOR = {0x7666747261636500: "events", 0x7666747261636501: "bulk"}
"""Constants of bpf/common.h that stand for a map if BCC cannot name it."""
_CALLBACKS = {
    0x7666747263616C00: "loop_copy",
    0x7666747263616C01: "loop_group",
    0x7666747263616C02: "loop_channel",
    0x7666747263616C03: "loop_chunk",
    0x7666747263616C04: "loop_free",
}
"""Constants of bpf/common.h that stand for a callback of bpf_loop()."""
CALLBACK_PREFIX = "loop_"


class Map(msgspec.Struct, frozen=True):
    """The attributes with which bpf(2) makes a map, and BCC's descriptions of its keys and values (JSON)."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key: str
    value: str


class Function(msgspec.Struct, frozen=True):
    """Instructions with zero for every map's fd. `maps`: the map at each such instruction; `callbacks`: the callback at
    each instruction that refers to one."""

    code: bytes
    maps: tuple[tuple[int, str], ...]
    callbacks: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, code: bytes, names: dict[int, str]) -> Self:
        """Make a function of instructions that hold fds of maps; `names` has each map's name by its fd."""
        zeroed = bytearray(code)
        maps = []
        callbacks = []
        at = 0
        while at < len(code):
            wide = code[at] == _LOAD_64
            if wide and code[at + 1] >> 4 in _MAP_SOURCES:
                fd = int.from_bytes(code[at + 4 : at + 8], "little")
                maps.append((at // _INSTRUCTION, names[fd]))
                zeroed[at + 4 : at + 8] = bytes(4)
            elif wide:
                value = int.from_bytes(code[at + 4 : at + 8] + code[at + 12 : at + 16], "little")
                if value in _STANDS_FOR:
                    maps.append((at // _INSTRUCTION, _STANDS_FOR[value]))
                    zeroed[at + 1] |= _MAP_SOURCES[0] << 4
                    zeroed[at + 4 : at + 8] = zeroed[at + 12 : at + 16] = bytes(4)
                elif value in _CALLBACKS:
                    callbacks.append((at // _INSTRUCTION, _CALLBACKS[value]))
            at += 2 * _INSTRUCTION if wide else _INSTRUCTION
        return cls(bytes(zeroed), tuple(maps), tuple(callbacks))

    def with_maps(self, fds: dict[str, int]) -> bytes:
        """Return the instructions with these fds. Raises KeyError if one is missing."""
        code = bytearray(self.code)
        for index, name in self.maps:
            at = index * _INSTRUCTION + 4
            code[at : at + 4] = fds[name].to_bytes(4, "little")
        return bytes(code)


class File(msgspec.Struct, frozen=True):
    """The state of a file when a program was compiled."""

    path: str
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path | str) -> Self:
        """Return the present state of a file. Raises OSError."""
        found = Path(path).stat()
        return cls(str(path), found.st_size, found.st_mtime_ns)

    def unchanged(self) -> bool:
        """Whether the file has not changed."""
        try:
            return self.of(self.path) == self
        except OSError:
            return False


class Image(msgspec.Struct, frozen=True):
    """One whole compiled program text. `compiler`: the libraries that compiled it."""

    license: str
    maps: dict[str, Map]
    functions: dict[str, Function]
    compiler: tuple[File, ...] = ()

    @property
    def programs(self) -> tuple[str, ...]:
        """The functions that are programs, not callbacks of programs."""
        return tuple(name for name in self.functions if not name.startswith(CALLBACK_PREFIX))

    def linked(self, name: str) -> tuple[Function, tuple[int, ...]]:
        """Return a program followed by its callbacks, and the first instruction of each of these functions.

        Raises KeyError if the function does not exist.
        """
        order = [name]
        for each in order:
            order += sorted({c for _, c in self.functions[each].callbacks} - set(order))
        starts, length = {}, 0
        for each in order:
            starts[each] = length
            length += len(self.functions[each].code) // _INSTRUCTION
        code = bytearray(b"".join(self.functions[each].code for each in order))
        maps = []
        for each in order:
            function, start = self.functions[each], starts[each]
            maps += [(start + at, of) for at, of in function.maps]
            for at, called in function.callbacks:
                place = (start + at) * _INSTRUCTION
                distance = starts[called] - (start + at) - 1
                code[place + 1] |= _CALLBACK_SOURCE << 4
                code[place + 4 : place + 8] = distance.to_bytes(4, "little", signed=True)
                code[place + 12 : place + 16] = bytes(4)
        return Function(bytes(code), tuple(maps)), tuple(starts.values())

    def packed(self) -> bytes:
        """Return the image as JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Read an image that `packed` wrote. Raises ValueError for anything else."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error
