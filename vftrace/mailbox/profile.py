# SPDX-License-Identifier: MIT
"""Profiles: TOML files that name the messages a vendor's driver has beyond those of its table.

    driver = "ixgbe"

    [[message]]
    opcode = 0x41
    name = "MIG_STOP"
    role = "stop"
    request = ["reason", "cookie:x"]

docs/how-to/vendor-profile.md describes them. A profile can only add messages. If it could give a known opcode more
words, a key could leave the kernel with them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import msgspec
from msgspec.structs import replace

from vftrace.mailbox.driver import Arguments, Drivers, Opcode, Reader, Role, Stage, Words
from vftrace.mailbox.drivers import DRIVERS
from vftrace.mailbox.words import WORD_PROTOCOL

MAX_MESSAGES = 200
"""Limit over all profiles of a driver: bpf/mailbox.h keeps two rules for each in a map of 1024."""

MAX_WORDS = 15
"""A mailbox has 16 words; the first holds the opcode."""

MAX_TEXT = 100_000

_MESSAGE_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,39}")
_WORD_NAME = re.compile(r"([a-z][a-z0-9_]{0,23})(:x)?")
_PROFILE_KEYS = {"driver", "about", "message"}
_MESSAGE_KEYS = {"opcode", "name", "role", "stage", "request", "reply", "key"}
_KEYS = ("request", "reply", "both")


class ProfileError(ValueError):
    """What is wrong with a profile, in one line."""


class Profile(msgspec.Struct, frozen=True):
    """What one file adds to the table of the driver `number`."""

    number: int
    opcodes: Mapping[int, Opcode]


def parse_profile(text: str) -> Profile:
    """Read a profile. Raises ProfileError, which names the fault and its place."""
    import tomllib

    if len(text) > MAX_TEXT:
        # Recordings carry the text, and their readers are bounded.
        raise ProfileError(f"longer than {MAX_TEXT} characters")
    try:
        document = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: also a number of thousands of digits
        raise ProfileError(f"not TOML: {error}") from error
    _only(document, _PROFILE_KEYS, "the file")
    # A profile's messages are words; virtchnl's opcodes are those of its header.
    drivers = {d.name: d.number for d in DRIVERS.values() if d.protocol is WORD_PROTOCOL}
    name = _one_of(document.get("driver"), drivers, "driver")
    if not isinstance(document.get("about", ""), str):
        raise ProfileError("about is not a text")
    messages = document.get("message")
    if not isinstance(messages, list) or not messages:
        raise ProfileError("it names no [[message]]")
    number = drivers[name]
    opcodes: dict[int, Opcode] = {}
    for index, entry in enumerate(messages, start=1):
        where = f"message {index}"
        code, opcode = _message(entry, where)
        known = DRIVERS[number].opcodes.get(code)
        if known is not None:
            raise ProfileError(f"{where}: {name} has an opcode 0x{code:x} already, {known.name}")
        if code in opcodes:
            raise ProfileError(f"{where}: opcode 0x{code:x} is named twice")
        opcodes[code] = opcode
    names = [opcode.name for opcode in (*DRIVERS[number].opcodes.values(), *opcodes.values())]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProfileError(f"two messages are called {twice[0]}")
    return Profile(number, opcodes)


def with_profiles(profiles: Iterable[Profile], drivers: Drivers = DRIVERS) -> Drivers:
    """The drivers with the messages that profiles add. Raises ProfileError if two profiles name one opcode."""
    found = dict(drivers)
    for profile in profiles:
        driver = found[profile.number]
        twice = sorted(driver.opcodes.keys() & profile.opcodes.keys())
        if twice:
            raise ProfileError(f"another profile names opcode 0x{twice[0]:x} of {driver.name} too")
        opcodes = {**driver.opcodes, **profile.opcodes}
        if len(opcodes) > MAX_MESSAGES:
            raise ProfileError(f"more than {MAX_MESSAGES} messages of {driver.name}")
        found[profile.number] = replace(driver, opcodes=opcodes)
    return found


def drivers_of(recorded: Iterable[str], given: Iterable[str] = ()) -> Drivers:
    """The drivers with the messages of profiles: texts kept in a recording, and texts given now, which take precedence.

    Recordings of one boot may hold the same text, which counts once. Raises ProfileError as `parse_profile` and
    `with_profiles`.
    """
    now = [parse_profile(text) for text in given]
    before = [parse_profile(text) for text in dict.fromkeys(recorded)]
    taken = {(profile.number, code) for profile in now for code in profile.opcodes}
    left = [
        replace(p, opcodes={c: o for c, o in p.opcodes.items() if (p.number, c) not in taken})
        for p in before
    ]
    return with_profiles([*left, *now])


def _message(entry: Any, where: str) -> tuple[int, Opcode]:
    if not isinstance(entry, dict):
        raise ProfileError("message is not a table: write [[message]]")
    _only(entry, _MESSAGE_KEYS, where)
    code = entry.get("opcode")
    if not isinstance(code, int) or isinstance(code, bool) or not 0 < code <= 0xFFFF:
        raise ProfileError(f"{where}: opcode is not a number from 0x1 to 0xffff")
    name = entry.get("name")
    if not isinstance(name, str) or _MESSAGE_NAME.fullmatch(name) is None:
        raise ProfileError(f"{where}: name is not a word of A to Z, 0 to 9 and _, such as MIG_STOP")
    role = entry.get("role")
    if role is not None:
        _one_of(role, get_args(Role), f"{where}: role")
    stage = _one_of(entry.get("stage", "any"), [s.value for s in Stage], f"{where}: stage")
    key = entry.get("key")
    if key is not None:
        _one_of(key, _KEYS, f"{where}: key")
    request, request_size = _words(entry.get("request", []), f"{where}: request")
    reply, reply_size = _words(entry.get("reply", []), f"{where}: reply")
    return code, Opcode(
        name,
        Stage(stage),
        request=request,
        request_size=request_size,
        reply=reply,
        reply_size=reply_size,
        request_key=key in ("request", "both"),
        reply_key=key in ("reply", "both"),
        role=role,
    )


def _words(names: Any, where: str) -> tuple[Reader, int]:
    """Return what reads the named words, from word 1 on, and how many words that makes with the first."""
    if not isinstance(names, list) or len(names) > MAX_WORDS:
        raise ProfileError(f"{where} is not a list of at most {MAX_WORDS} names of words")
    fields: list[tuple[int, str, Callable[[int], int | str]]] = []
    for at, text in enumerate(names, start=1):
        match = _WORD_NAME.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ProfileError(
                f"{where}: {text!r} names no word (such as queues, or cookie:x for hexadecimal)"
            )
        if any(match[1] == name for _, name, _ in fields):
            raise ProfileError(f"{where}: two words are called {match[1]}")
        fields.append((at, match[1], hex if match[2] else int))

    def read(words: Words) -> Arguments:
        return {name: shown(words[at]) for at, name, shown in fields}

    return read, 1 + len(names)


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ProfileError(f"{where}: unknown key {unknown[0]!r} (known: {_list(sorted(known))})")


def _one_of(value: Any, choices: Iterable[str], what: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ProfileError(f"{what} is not one of {_list(choices)}")
    return value


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
