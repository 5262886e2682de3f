"""Reads BTF: offsets of structure members, ids and parameters of functions (Documentation/bpf/btf.rst)."""

import functools
import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_STRUCT, _UNION, _FUNC, _FUNC_PROTO = 4, 5, 12, 13
# Words behind the three of struct btf_type, by kind: (fixed, for each of its vlen members).
_EXTRA = {
    1: (1, 0), 3: (3, 0), 4: (0, 3), 5: (0, 3), 6: (0, 2), 13: (0, 2), 14: (1, 0),
    15: (0, 3), 17: (1, 0), 19: (0, 3),
}  # fmt: skip
_WORDS_BEHIND = [_EXTRA.get(kind, (0, 0)) for kind in range(32)]


@dataclass(frozen=True)
class _Btf:
    """`words`: the types; `structures`: where in them a structure or union begins; `functions`: the offset of
    each function's name, `ids` its type id, `types` the type id of its prototype; `prototypes`: the type id of each
    prototype, ascending, and `prototypes_at` where in the words it begins; `count`: how many types there are.

    Arrays, because the memory of a hundred thousand Python numbers is not all given back.
    """

    words: "array[int]"
    strings: bytes
    structures: "array[int]"
    functions: "array[int]"
    ids: "array[int]"
    types: "array[int]"
    prototypes: "array[int]"
    prototypes_at: "array[int]"
    count: int

    def prototype(self, number: int) -> int | None:
        """Return where in the words the prototype of this type id begins; None if it is none."""
        at = bisect_left(self.prototypes, number)
        if at == len(self.prototypes) or self.prototypes[at] != number:
            return None
        return self.prototypes_at[at]


def of_module(module: str) -> Path:
    """Return where the BTF of a module is, if it is one and has any."""
    return VMLINUX.parent / module


def knows(name: str, module: str) -> bool:
    """Whether the BTF of a module, or of the kernel if that is built in, has this name anywhere."""
    place = of_module(module)
    try:
        return b"\0" + name.encode() + b"\0" in (place if place.exists() else VMLINUX).read_bytes()
    except OSError:
        return False


def member_offset(structure: str, member: str, btf: Path = VMLINUX) -> int | None:
    """Offset in bytes of a direct member of a structure; None where the BTF lacks it."""
    try:
        read = _read(btf)
    except (OSError, struct.error, ValueError):
        return None
    return _member_offset(read, read.strings, structure, member)


def module_member_offset(structure: str, member: str, module: str) -> int | None:
    """As `member_offset`, for a structure of a module, or of the kernel where the module's BTF does not have it.

    A module's BTF continues the kernel's: its strings begin where the kernel's end.
    """
    place = of_module(module)
    if not place.exists():
        return member_offset(structure, member)
    try:
        base, read = _read(VMLINUX), _module(place)
    except (OSError, struct.error, ValueError):
        return None
    own = _member_offset(read, base.strings + read.strings, structure, member)
    return _member_offset(base, base.strings, structure, member) if own is None else own


def function_id(name: str, btf: Path = VMLINUX) -> int | None:
    """The BTF type id of a kernel function; None if it has none."""
    try:
        read = _read(btf)
    except (OSError, struct.error, ValueError):
        return None
    return _function_id(read, read.strings, name)


def function(name: str, modules: Sequence[str] = ()) -> tuple[int, str | None]:
    """The BTF type id of a function, and which of these modules it is in, None if it is in the kernel itself.

    LookupError if it is in none of them. A module's types continue those of the kernel.
    """
    try:
        for module in modules:
            place = of_module(module)
            if place.exists():
                base, read = _read(VMLINUX), _module(place)
                number = _function_id(read, base.strings + read.strings, name)
                if number is not None:
                    return base.count + number, module
    except (OSError, struct.error, ValueError) as error:
        raise LookupError(f"the BTF of the kernel cannot be read: {error}") from error
    number = function_id(name)
    if number is None:
        raise LookupError(f"the BTF of the kernel does not have {name}")
    return number, None


def _function_id(read: _Btf, strings: bytes, name: str) -> int | None:
    wanted = _name_offsets(strings, name)
    places = (i for i, offset in enumerate(read.functions) if offset in wanted)
    first = next(places, None)
    return None if first is None else read.ids[first]


def parameters(name: str, module: str) -> tuple[str, ...] | None:
    """The names of a module's function's parameters; None if the BTF does not have the function.

    The types and strings of a module's BTF continue those of the kernel's.
    """
    place = of_module(module)
    try:
        base = _read(VMLINUX)
        read = _module(place) if place.exists() else base
    except (OSError, struct.error, ValueError):
        return None
    own = 0 if read is base else base.count
    strings = base.strings if read is base else base.strings + read.strings
    wanted = _name_offsets(strings, name)
    for offset, number in zip(read.functions, read.types, strict=True):
        if offset in wanted:
            btf, at = base, base.prototype(number)
            if number > own:
                btf, at = read, read.prototype(number - own)
            return None if at is None else _parameters(btf.words, strings, at)
    return None


def _parameters(words: "array[int]", strings: bytes, at: int) -> tuple[str, ...]:
    count = words[at + 1] & 0xFFFF
    starts = [words[i] for i in range(at + 3, at + 3 + 2 * count, 2)]
    return tuple(strings[i : strings.index(0, i)].decode() for i in starts)


def forget() -> None:
    """Give back the memory of what was read (some 10 MB for the kernel's own)."""
    _read.cache_clear()
    _read_module.cache_clear()


@functools.cache
def _read(btf: Path) -> _Btf:
    """Read once: a kernel has a hundred thousand types, and an emulated machine is slow."""
    return _parse(btf.read_bytes())


def _module(place: Path) -> _Btf:
    """A module's BTF. The module may be unloaded and another build of it loaded."""
    found = place.stat()
    return _read_module(place, found.st_ino, found.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _read_module(place: Path, _inode: int, _changed_ns: int) -> _Btf:
    """Read once: a driver's functions and structures are looked up one after the other."""
    return _parse(place.read_bytes())


def _parse(data: bytes) -> _Btf:
    magic, _, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("not BTF")
    words = array("I", data[header + type_off : header + type_off + type_len])
    structures, functions, ids, types, prototypes, prototypes_at = (array("I") for _ in range(6))
    at, end, number, behind = 0, len(words), 0, _WORDS_BEHIND
    while at < end:
        number += 1
        info = words[at + 1]
        kind = info >> 24 & 0x1F
        if kind in (_STRUCT, _UNION):
            structures.append(at)
        elif kind == _FUNC:
            functions.append(words[at])
            ids.append(number)
            types.append(words[at + 2])
        elif kind == _FUNC_PROTO:
            prototypes.append(number)
            prototypes_at.append(at)
        fixed, each = behind[kind]
        at += 3 + fixed + each * (info & 0xFFFF)
    strings = data[header + str_off : header + str_off + str_len]
    lists = (structures, functions, ids, types, prototypes, prototypes_at)
    return _Btf(words, strings, *lists, number)


def _member_offset(btf: _Btf, strings: bytes, structure: str, member: str) -> int | None:
    names, members = _name_offsets(strings, structure), _name_offsets(strings, member)
    words = btf.words
    for at in btf.structures:
        if words[at] in names:
            info = words[at + 1]
            for i in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
                if words[i] in members:
                    # with kind_flag set the upper byte is a bitfield's size
                    return int(words[i + 2] & 0xFFFFFF if info >> 31 else words[i + 2]) // 8
    return None


def _name_offsets(strings: bytes, name: str) -> set[int]:
    """Return every place where exactly this string begins. A name may also be the tail of a longer one."""
    text = name.encode() + b"\0"
    found, at = set(), strings.find(text)
    while at >= 0:
        found.add(at)
        at = strings.find(text, at + 1)
    return found
