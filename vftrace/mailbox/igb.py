# SPDX-License-Identifier: MIT
"""igb (82576, I350) and its VFs: drivers/net/ethernet/intel/igb/e1000_mbx.h, igb_main.c."""

from msgspec.structs import replace

from vftrace.events import layout
from vftrace.mailbox.driver import Arguments, Driver, HookedFunction, Opcode, Stage, Words
from vftrace.mailbox.words import COMMON, WORD_PROTOCOL, info, mac

_FILTER_ACTS = {0: "set", 1: "clear", 2: "add"}
"""E1000_VF_MAC_FILTER_CLR and _ADD."""

_PROMISC_MULTICAST = 2
"""E1000_VF_SET_PROMISC_MULTICAST, in bits 23:16."""


def _mac_address(words: Words) -> Arguments:
    act = _FILTER_ACTS.get(info(words), str(info(words)))
    # igb_set_vf_mac_filter: clear removes all filters
    return {"act": act} if act == "clear" else {"act": act, "mac": mac(words)}


def _cleared(words: Words) -> str | None:
    # igbvf clears its filters, without an address, at every change; igb refuses that as an "invalid MAC filter".
    clears = _FILTER_ACTS.get(info(words)) == "clear"
    return "igb takes no clear without an address" if clears else None


def _promisc(words: Words) -> Arguments:
    return {"multicast": bool(info(words) & _PROMISC_MULTICAST)}


DRIVER = Driver(
    name="igb",
    number=layout.IGB,
    protocol=WORD_PROTOCOL,
    hooks=(
        # The words are valid when igb_read_mbx returns, and when igb_write_mbx is called.
        HookedFunction(
            "igb_read_mbx",
            ("hw", "msg", "size", "mbx_id"),
            entry="kp_read",
            at_return="kr_igb_read",
        ),
        HookedFunction("igb_write_mbx", ("hw", "msg", "size", "mbx_id"), entry="kp_igb_write"),
        # Returns 0 if the VF was reset as a function.
        HookedFunction(
            "igb_check_for_rst",
            ("hw", "mbx_id"),
            entry="kp_check_for_rst",
            at_return="kr_igb_check_for_rst",
            optional=True,
        ),
    ),
    layout={
        "back": ("e1000_hw.back",),
        "pdev": ("igb_adapter.pdev",),
        "device": ("pci_dev.dev",),
    },
    opcodes={
        **COMMON,
        0x02: replace(COMMON[0x02], request=_mac_address, normal_nack=_cleared),
        0x06: Opcode("SET_PROMISC", Stage.OPEN, request=_promisc),
    },
)
