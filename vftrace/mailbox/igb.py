"""Messages of igb (82576, I350) and its VFs (drivers/net/ethernet/intel/igb/e1000_mbx.h, igb_main.c)."""

from dataclasses import replace

from vftrace.mailbox import shared
from vftrace.mailbox.table import Arguments, Opcode, Stage, Table, Words, info, mac

_FILTER_ACTS = {0: "set", 1: "clear", 2: "add"}
"""E1000_VF_MAC_FILTER_CLR and _ADD."""

_PROMISC_MULTICAST = 2
"""E1000_VF_SET_PROMISC_MULTICAST, in bits 23:16."""


def _mac_address(words: Words) -> Arguments:
    act = _FILTER_ACTS.get(info(words), str(info(words)))
    # igb_set_vf_mac_filter: clear takes all filters away
    return {"act": act} if act == "clear" else {"act": act, "mac": mac(words)}


def _cleared(words: Words) -> str | None:
    # igbvf clears at every change of filters, with no address; igb calls that an "invalid MAC filter".
    clears = _FILTER_ACTS.get(info(words)) == "clear"
    return "igb takes no clear without an address" if clears else None


def _promisc(words: Words) -> Arguments:
    return {"multicast": bool(info(words) & _PROMISC_MULTICAST)}


TABLE = Table(
    driver="igb",
    number=2,
    opcodes={
        **shared.OPCODES,
        0x02: replace(shared.OPCODES[0x02], request=_mac_address, normal_nack=_cleared),
        0x06: Opcode("SET_PROMISC", Stage.OPEN, request=_promisc),
    },
)
