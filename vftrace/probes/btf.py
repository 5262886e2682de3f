# SPDX-License-Identifier: MIT
"""Reads BTF: offsets of structure members, ids and parameters of functions (Documentation/bpf/btf.rst)."""

import functools
import itertools
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_WORD = 4
_STRUCT, _UNION, _TYPEDEF, _FUNC, _FUNC_PROTO = 4, 5, 8, 12, 13
# Words behind the three of struct btf_type, by kind: (fixed, for each of its vlen members).
_EXTRA = {
    1: (1, 0), 3: (3, 0), 4: (0, 3), 5: (0, 3), 6: (0, 2), 13: (0, 2), 14: (1, 0),
    15: (0, 3), 17: (1, 0), 19: (0, 3),
}  # fmt: skip
_WORDS_BEHIND = [_EXTRA.get(kind, (0, 0)) for kind in range(32)]


class _Btf(msgspec.Struct, frozen=True, eq=False):
    """`words`: the types, which begin at `begin` in `data`; `strings`: the names that they use."""

    data: bytes
    begin: int
    words: "memoryview[int]"
    strings: bytes


class _Functions(msgspec.Struct, frozen=True):
    """`functions`: the offset of each function's name, `ids` its type id, `types` the type id of its prototype;
    `prototypes`: the type id of each prototype, ascending, and `prototypes_at` where in the words it begins;
    `typedefs` and `typedef_ids`: the offset of each typedef's name, and its type id; `count`: how many types there are.

    Arrays, because the memory of a hundred thousand Python numbers is not all given back.
    """

    functions: "array[int]"
    ids: "array[int]"
    types: "array[int]"
    prototypes: "array[int]"
    prototypes_at: "array[int]"
    typedefs: "array[int]"
    typedef_ids: "array[int]"
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


@functools.cache
def member_offset(structure: str, member: str, btf: Path = VMLINUX) -> int | None:
    """Offset in bytes of a direct member of a structure; None where the BTF lacks it. A search takes milliseconds."""
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
                    return _functions(base).count + number, module
    except (OSError, struct.error, ValueError) as error:
        raise LookupError(f"the BTF of the kernel cannot be read: {error}") from error
    number = function_id(name)
    if number is None:
        raise LookupError(f"the BTF of the kernel does not have {name}")
    return number, None


def tracepoint(name: str) -> int:
    """The BTF type id of a tracepoint of the kernel itself, by its name without its category: it is the id of a
    typedef (include/trace/bpf_probe.h). Raises LookupError."""
    try:
        read = _read(VMLINUX)
    except (OSError, struct.error, ValueError) as error:
        raise LookupError(f"the BTF of the kernel cannot be read: {error}") from error
    wanted = _name_offsets(read.strings, f"btf_trace_{name}")
    found = _functions(read)
    for offset, number in zip(found.typedefs, found.typedef_ids, strict=True):
        if offset in wanted:
            return number
    raise LookupError(f"the BTF of the kernel does not have the tracepoint {name}")


def _function_id(read: _Btf, strings: bytes, name: str) -> int | None:
    wanted = _name_offsets(strings, name)
    found = _functions(read)
    places = (i for i, offset in enumerate(found.functions) if offset in wanted)
    first = next(places, None)
    return None if first is None else found.ids[first]


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
    own = 0 if read is base else _functions(base).count
    strings = base.strings if read is base else base.strings + read.strings
    wanted = _name_offsets(strings, name)
    found = _functions(read)
    for offset, number in zip(found.functions, found.types, strict=True):
        if offset in wanted:
            btf, number = (read, number - own) if number > own else (base, number)
            at = _functions(btf).prototype(number)
            return None if at is None else _parameters(btf.words, strings, at)
    return None


def _parameters(words: "memoryview[int]", strings: bytes, at: int) -> tuple[str, ...]:
    count = words[at + 1] & 0xFFFF
    starts = [words[i] for i in range(at + 3, at + 3 + 2 * count, 2)]
    return tuple(strings[i : strings.index(0, i)].decode() for i in starts)


def forget() -> None:
    """Give back the memory of what was read (some 10 MB for the kernel's own)."""
    _read.cache_clear()
    _read_module.cache_clear()
    _functions.cache_clear()


@functools.cache
def _read(btf: Path) -> _Btf:
    """Read once: the kernel's has some megabytes."""
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
    begin = header + type_off
    words = memoryview(data)[begin : begin + type_len].cast("I")
    return _Btf(data, begin, words, data[header + str_off : header + str_off + str_len])


@functools.lru_cache(maxsize=2)
def _functions(btf: _Btf) -> _Functions:
    """Look at every type, once: a kernel has a hundred thousand, and an emulated machine is slow."""
    functions, ids, types, prototypes, prototypes_at = (array("I") for _ in range(5))
    typedefs, typedef_ids = array("I"), array("I")
    words, behind = btf.words, _WORDS_BEHIND
    at, end, number = 0, len(words), 0
    while at < end:
        number += 1
        info = words[at + 1]
        kind = info >> 24 & 0x1F
        if kind == _FUNC:
            functions.append(words[at])
            ids.append(number)
            types.append(words[at + 2])
        elif kind == _FUNC_PROTO:
            prototypes.append(number)
            prototypes_at.append(at)
        elif kind == _TYPEDEF:
            typedefs.append(words[at])
            typedef_ids.append(number)
        fixed, each = behind[kind]
        at += 3 + fixed + each * (info & 0xFFFF)
    return _Functions(
        functions, ids, types, prototypes, prototypes_at, typedefs, typedef_ids, number
    )


def _member_offset(btf: _Btf, strings: bytes, structure: str, member: str) -> int | None:
    names, members = _name_offsets(strings, structure), _name_offsets(strings, member)
    words = btf.words
    # The whole string is the likely one, and each search looks through megabytes.
    likely = sorted(names, key=lambda name: strings[name - 1] != 0)
    for at in itertools.chain.from_iterable(_structures(btf, name) for name in likely):
        for i in range(at + 3, at + 3 + 3 * (words[at + 1] & 0xFFFF), 3):
            if words[i] in members:
                # with kind_flag set the upper byte is a bitfield's size
                offset = words[i + 2]
                return (offset & 0xFFFFFF if words[at + 1] >> 31 else offset) // 8
    return None


def _structures(btf: _Btf, name: int) -> Iterator[int]:
    """Yield where in the words a structure or union of this name begins. `name`: its offset in the strings.

    Found without looking at every type. Behind the same number elsewhere (a type's id, a size) stands a name or an id,
    which is too small for the kind of a structure.
    """
    wanted = name.to_bytes(_WORD, sys.byteorder)
    end = btf.begin + btf.words.nbytes
    place = btf.data.find(wanted, btf.begin, end - 2 * _WORD)
    while place >= 0:
        at, odd = divmod(place - btf.begin, _WORD)
        if not odd and btf.words[at + 1] >> 24 & 0x1F in (_STRUCT, _UNION):
            yield at
        place = btf.data.find(wanted, place + 1, end - 2 * _WORD)


def _name_offsets(strings: bytes, name: str) -> set[int]:
    """Return every place where exactly this string begins. A name may also be the tail of a longer one."""
    text = name.encode() + b"\0"
    found, at = set(), strings.find(text)
    while at >= 0:
        found.add(at)
        at = strings.find(text, at + 1)
    return found
