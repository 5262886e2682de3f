"""Messages of igb (82576, I350) and its VFs (drivers/net/ethernet/intel/igb/e1000_mbx.h, igb_main.c)."""

from vftrace.mailbox.table import (
    NACK,
    Arguments,
    Opcode,
    Stage,
    Table,
    Words,
    always,
    hashes,
    info,
    mac,
)

_FILTER_ACTS = {0: "set", 1: "clear", 2: "add"}
"""E1000_VF_MAC_FILTER_CLR and _ADD."""

_PROMISC_MULTICAST = 2
"""E1000_VF_SET_PROMISC_MULTICAST, in bits 23:16."""


def _reset_reply(words: Words) -> Arguments:
    return {} if words[0] & NACK else {"mac": mac(words)}


def _mac_address(words: Words) -> Arguments:
    act = _FILTER_ACTS.get(info(words), str(info(words)))
    # igb_set_vf_mac_filter: clear takes all filters away
    return {"act": act} if act == "clear" else {"act": act, "mac": mac(words)}


def _cleared(words: Words) -> str | None:
    # igbvf clears at every change of filters, with no address; igb calls that an "invalid MAC filter".
    clears = _FILTER_ACTS.get(info(words)) == "clear"
    return "igb takes no clear without an address" if clears else None


def _multicast(words: Words) -> Arguments:
    count, values = hashes(words)
    return {"count": count, "hashes": values}


def _vlan(words: Words) -> Arguments:
    return {"add": bool(info(words)), "vlan": words[1] & 0xFFF}


def _promisc(words: Words) -> Arguments:
    return {"multicast": bool(info(words) & _PROMISC_MULTICAST)}


TABLE = Table(
    driver="igb",
    number=2,
    opcodes={
        0x01: Opcode(
            "RESET",
            Stage.RESET,
            reply=_reset_reply,
            reply_words=3,
            normal_nack=always("no administrative MAC"),
        ),
        0x02: Opcode(
            "SET_MAC_ADDR",
            Stage.PREPARE,
            request=_mac_address,
            request_words=3,
            normal_nack=_cleared,
        ),
        0x03: Opcode("SET_MULTICAST", Stage.OPEN, request=_multicast, counted=True),
        0x04: Opcode("SET_VLAN", Stage.PREPARE, request=_vlan, request_words=2),
        0x05: Opcode(
            "SET_LPE",
            Stage.OPEN,
            request=lambda words: {"max_frame": words[1]},
            request_words=2,
        ),
        0x06: Opcode("SET_PROMISC", Stage.OPEN, request=_promisc),
        0x100: Opcode("PF_CONTROL"),
    },
)
