"""Messages that ixgbe's and igb's VFs have in common: a driver's table lays its own over these rows."""

from vftrace.mailbox.table import (
    NACK,
    Arguments,
    Opcode,
    Stage,
    Words,
    always,
    hashes,
    info,
    mac,
)


def _reset_reply(words: Words) -> Arguments:
    return {} if words[0] & NACK else {"mac": mac(words)}


def _mac_address(words: Words) -> Arguments:
    return {"mac": mac(words)}


def _multicast(words: Words) -> Arguments:
    count, values = hashes(words)
    return {"count": count, "hashes": values}


def _vlan(words: Words) -> Arguments:
    return {"add": bool(info(words)), "vlan": words[1] & 0xFFF}


def _max_frame(words: Words) -> Arguments:
    return {"max_frame": words[1]}


OPCODES = {
    0x01: Opcode(
        "RESET",
        Stage.RESET,
        reply=_reset_reply,
        reply_words=3,
        normal_nack=always("no administrative MAC"),
    ),
    0x02: Opcode("SET_MAC_ADDR", Stage.PREPARE, request=_mac_address, request_words=3),
    0x03: Opcode("SET_MULTICAST", Stage.OPEN, request=_multicast, counted=True),
    0x04: Opcode("SET_VLAN", Stage.PREPARE, request=_vlan, request_words=2),
    0x05: Opcode("SET_LPE", Stage.OPEN, request=_max_frame, request_words=2),
    0x100: Opcode("PF_CONTROL"),
}
"""As e1000_mbx.h and ixgbe_mbx.h both have them."""
