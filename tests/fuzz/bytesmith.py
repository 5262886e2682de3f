# SPDX-License-Identifier: MIT
"""Damages bytes and words of text without knowing what they mean; fast, because millions are wanted."""

from collections.abc import Sequence
from random import Random

INTERESTING = (
    *(
        b"\0",
        b"\xff",
        b"\x7f",
        b"\x80",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x80",
        b"\x01\0\0\0",
    ),
    *(b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 7 + b"\x80", b"\0" * 64),
)


def damaged(data: bytes, chance: Random, words: Sequence[bytes] = INTERESTING) -> bytes:
    """The bytes with one to eight things wrong."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(8):
            case 0 if found:
                found[at % len(found)] = chance.randrange(256)
            case 1 if found:
                found[at % len(found)] ^= 1 << chance.randrange(8)
            case 2:
                found[at:at] = chance.choice(words)
            case 3:
                word = chance.choice(words)
                found[at : at + len(word)] = word
            case 4:
                del found[at : at + chance.choice((1, 2, 4, 8, 64))]
            case 5:
                until = at + chance.choice((1, 4, 16, 64))
                found[at:at] = found[at:until] * chance.choice((1, 2, 20))
            case 6:
                del found[at:]
            case _:
                found[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
    return bytes(found)


NESTED = ("[" * 3000, '{"a":' * 3000, "[[" * 20_000, "- " * 2000)
"""What parsers that call themselves do not come back from."""

ODD_TEXTS = (
    *(
        "",
        "x",
        "-",
        "--",
        "=",
        ",",
        ",,",
        ":",
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        "\0",
        "\n",
        "\r\n",
        "\t",
    ),
    *("\u202e", "\x1b[2J", "\ufffd", "é", "\ud800", "[/x]", "<b>", "a" * 200, "9" * 30),
    *("0", "-1", "1e999", "NaN", "Infinity", "0x41", "true", "null", "18446744073709551616"),
)

HUGE = (*NESTED, "a" * 5000, "9" * 5000, "\ufffd" * 130_000)
"""Rarely taken, because they are slow."""


def rearranged(words: Sequence[str], dictionary: Sequence[str], chance: Random) -> list[str]:
    """The words of a line with some replaced, repeated, left out or made of others."""
    found = list(words)
    for _ in range(chance.choice((1, 1, 2, 4, 12))):
        at = chance.randrange(len(found) + 1)
        new = chance.choice(HUGE if chance.random() < 0.004 else dictionary)
        match chance.randrange(6):
            case 0:
                found[at:at] = [new]
            case 1:
                found[at : at + 1] = [new]
            case 2:
                del found[at : at + 1]
            case 3:
                found[at:at] = found[at : at + 2] * chance.choice((1, 2, 40))
            case 4 if found:
                word = found[at % len(found)]
                cut = chance.randrange(len(word) + 1)
                found[at % len(found)] = word[:cut] + new + word[cut:]
            case _:
                found[at : at + 1] = ["".join((new, *chance.choices(dictionary, k=2)))]
    return found
