# SPDX-License-Identifier: MIT
"""Makes BTF for programs with callbacks: the kernel accepts such a program only with a description of its functions."""

import struct
from collections.abc import Sequence

_MAGIC, _VERSION = 0xEB9F, 1
_INT, _FUNC, _FUNC_PROTO = 1, 12, 13
_SIGNED_32 = 1 << 24 | 32
_PROTOTYPE = 2
"""The number of the type `int f(void)`; the functions follow it."""


def described(starts: Sequence[int]) -> tuple[bytes, bytes]:
    """Return BTF with a function for each of a program's functions, and struct bpf_func_info for each: its first
    instruction and its type. (Documentation/bpf/btf.rst)
    """
    names = ["int", *(f"f{number}" for number in range(len(starts)))]
    strings, offsets = b"\0", []
    for name in names:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    types = struct.pack("<IIII", offsets[0], _INT << 24, 4, _SIGNED_32)
    types += struct.pack("<III", 0, _FUNC_PROTO << 24, 1)
    for offset in offsets[1:]:
        types += struct.pack("<III", offset, _FUNC << 24, _PROTOTYPE)
    header = struct.pack(
        "<HBBIIIII", _MAGIC, _VERSION, 0, 24, 0, len(types), len(types), len(strings)
    )
    infos = b"".join(
        struct.pack("<II", start, _PROTOTYPE + 1 + number) for number, start in enumerate(starts)
    )
    return header + types + strings, infos
