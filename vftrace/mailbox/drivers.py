"""The drivers whose mailbox is known. Another one is added here."""

from collections.abc import Mapping

from vftrace.mailbox import igb, ixgbe
from vftrace.mailbox.table import Table

Tables = Mapping[int, Table]

TABLES: Tables = {table.number: table for table in (ixgbe.TABLE, igb.TABLE)}
"""By the number their events carry."""

_WORDS_BY_COUNT, _HOLDS_KEY = 0x100, 0x200


def shipped_words(table: Table) -> dict[int, int]:
    """What the kernel side may send on of each message (bpf/mailbox.h, `exportable_words`).

    Keys are driver << 24 | direction << 16 | opcode, values a number of words and flags.
    """
    rules = {}
    for number, opcode in table.opcodes.items():
        counted = _WORDS_BY_COUNT if opcode.counted else 0
        request_key = _HOLDS_KEY if opcode.request_key else 0
        reply_key = _HOLDS_KEY if opcode.reply_key else 0
        rules[table.number << 24 | number] = opcode.request_words | counted | request_key
        rules[table.number << 24 | 1 << 16 | number] = opcode.reply_words | reply_key
    return rules
