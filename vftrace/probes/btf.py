"""A small reader of BTF: byte offsets of structure members (Documentation/bpf/btf.rst)."""

import struct
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_STRUCT, _UNION = 4, 5
# Bytes behind the 12 of struct btf_type, by kind: (fixed, for each of its vlen members).
_EXTRA = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0),
    15: (0, 12), 17: (4, 0), 19: (0, 12),
}  # fmt: skip


def member_offset(structure: str, member: str, btf: Path = VMLINUX) -> int | None:
    """Offset in bytes of a direct member of a structure; None where the BTF does not say."""
    try:
        data = btf.read_bytes()
        return _find(data, structure.encode(), member.encode())
    except (OSError, struct.error, IndexError):
        return None


def _find(data: bytes, structure: bytes, member: bytes) -> int | None:
    magic, _, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    strings = data[header + str_off : header + str_off + str_len]
    at, end = header + type_off, header + type_off + type_len
    unpack = struct.Struct("<III").unpack_from
    while at < end:
        name, info, _ = unpack(data, at)
        kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
        fixed, each = _EXTRA.get(kind, (0, 0))
        if kind in (_STRUCT, _UNION) and _string(strings, name) == structure:
            for i in range(vlen):
                member_name, _, offset = unpack(data, at + 12 + i * 12)
                if _string(strings, member_name) == member:
                    # with kind_flag set the upper byte is a bitfield's size
                    return (offset & 0xFFFFFF if info >> 31 else offset) // 8
        at += 12 + fixed + each * vlen
    return None


def _string(strings: bytes, offset: int) -> bytes:
    return strings[offset : strings.index(b"\0", offset)]
