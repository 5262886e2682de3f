"""A small reader of BTF: offsets of structure members, ids of functions (Documentation/bpf/btf.rst)."""

import functools
import struct
from collections.abc import Iterator
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_STRUCT, _UNION, _FUNC = 4, 5, 12
_WORDS = struct.Struct("<III").unpack_from
# Bytes behind the 12 of struct btf_type, by kind: (fixed, for each of its vlen members).
_EXTRA = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0),
    15: (0, 12), 17: (4, 0), 19: (0, 12),
}  # fmt: skip


def of_module(module: str) -> Path:
    """Where the BTF of a module is, if it is one and has any."""
    return VMLINUX.parent / module


def knows(name: str, module: str) -> bool:
    """Whether the BTF of a module, or of the kernel if that is built in, has this name anywhere."""
    place = of_module(module)
    try:
        return b"\0" + name.encode() + b"\0" in (place if place.exists() else VMLINUX).read_bytes()
    except OSError:
        return False


@functools.cache
def member_offset(structure: str, member: str, btf: Path = VMLINUX) -> int | None:
    """Offset in bytes of a direct member of a structure; None where the BTF does not say."""
    try:
        return _member_offset(btf.read_bytes(), structure.encode(), member.encode())
    except (OSError, struct.error, ValueError):
        return None


def module_member_offset(structure: str, member: str, module: str) -> int | None:
    """As `member_offset`, of a structure of a module; of the kernel's own where the module is built in.

    A module's BTF continues the kernel's: its strings begin where those of the kernel end.
    """
    place = of_module(module)
    if not place.exists():
        return member_offset(structure, member)
    try:
        base = _strings(VMLINUX.read_bytes())
        return _member_offset(place.read_bytes(), structure.encode(), member.encode(), base)
    except (OSError, struct.error, ValueError):
        return None


def function_id(name: str, btf: Path = VMLINUX) -> int | None:
    """The BTF type id of a kernel function; None if it has none."""
    try:
        return _function_id(btf.read_bytes(), name.encode())
    except (OSError, struct.error, ValueError):
        return None


def _member_offset(data: bytes, structure: bytes, member: bytes, base: bytes = b"") -> int | None:
    strings = base + _strings(data)
    wanted, wanted_member = _name_offsets(strings, structure), _name_offsets(strings, member)
    for _, name, info, at in _types(data):
        if name in wanted and info >> 24 & 0x1F in (_STRUCT, _UNION):
            for i in range(info & 0xFFFF):
                member_name, _, offset = _WORDS(data, at + 12 + i * 12)
                if member_name in wanted_member:
                    # with kind_flag set the upper byte is a bitfield's size
                    return int(offset & 0xFFFFFF if info >> 31 else offset) // 8
    return None


def _function_id(data: bytes, function: bytes) -> int | None:
    wanted = _name_offsets(_strings(data), function)
    for number, name, info, _ in _types(data):
        if name in wanted and info >> 24 & 0x1F == _FUNC:
            return number
    return None


def _types(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """All types: id, name offset, info word, position of the type in `data`."""
    magic, _, _, header, type_off, type_len, _, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("not BTF")
    at, end, number = header + type_off, header + type_off + type_len, 0
    while at < end:
        number += 1
        name, info, _ = _WORDS(data, at)
        yield number, name, info, at
        fixed, each = _EXTRA.get(info >> 24 & 0x1F, (0, 0))
        at += 12 + fixed + each * (info & 0xFFFF)


def _strings(data: bytes) -> bytes:
    _, _, _, header, _, _, str_off, str_len = _HEADER.unpack_from(data)
    return data[header + str_off : header + str_off + str_len]


def _name_offsets(strings: bytes, name: bytes) -> set[int]:
    """Every place where exactly this string begins. A name may also be the tail of a longer one."""
    found, at = set(), strings.find(name + b"\0")
    while at >= 0:
        found.add(at)
        at = strings.find(name + b"\0", at + 1)
    return found
