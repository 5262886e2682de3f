# SPDX-License-Identifier: MIT
"""ixgbe (82599, X540, X550) and its VFs: drivers/net/ethernet/intel/ixgbe/ixgbe_mbx.h, ixgbe_sriov.c."""

from msgspec.structs import replace

from vftrace.events import layout
from vftrace.mailbox.driver import Arguments, Driver, HookedFunction, Opcode, Stage, Words, always
from vftrace.mailbox.words import COMMON, WORD_PROTOCOL, info, mac

API_VERSIONS = ("1.0", "2.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7")
"""enum ixgbe_pfvf_api_rev, in its order."""

XCAST_MODES = ("none", "multi", "allmulti", "promisc")
"""enum ixgbevf_xcast_modes (drivers/net/ethernet/intel/ixgbe/ixgbe.h)."""

FEATURES = {1: "ipsec", 2: "esx-mbx"}
"""IXGBEVF_PF_SUP_*."""


def _named(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _reset_reply(words: Words) -> Arguments:
    return {**COMMON[0x01].reply(words), "mc_filter_type": words[3]}


def _macvlan(words: Words) -> Arguments:
    # ixgbe_set_vf_macvlan_msg: index 0 removes all filters
    return {"index": info(words), "mac": mac(words)} if info(words) else {"index": 0}


def _api(words: Words) -> Arguments:
    return {"version": _named(API_VERSIONS, words[1])}


def _queues(words: Words) -> Arguments:
    return {"tx": words[1], "rx": words[2], "vlan": words[3], "default": words[4]}


def _xcast(words: Words) -> Arguments:
    return {"mode": _named(XCAST_MODES, words[1])}


def _ipsec_add(words: Words) -> Arguments:
    # struct sa_mbx_msg (ixgbe_ipsec.h): spi is big-endian, then u8 dir, u8 proto, u16 family, addr[4]
    spi = int.from_bytes(words[1].to_bytes(4, "little"), "big")
    return {"spi": f"0x{spi:08x}", "dir": words[2] & 0xFF, "proto": words[2] >> 8 & 0xFF}


def _features(words: Words) -> Arguments:
    names = [name for bit, name in FEATURES.items() if words[1] & bit]
    rest = words[1] & ~sum(FEATURES)
    return {"features": ",".join([*names, *([f"0x{rest:x}"] if rest else [])]) or "none"}


DRIVER = Driver(
    name="ixgbe",
    number=layout.IXGBE,
    protocol=WORD_PROTOCOL,
    hooks=(
        # The words are valid when ixgbe_read_mbx returns, and when ixgbe_write_mbx is called.
        HookedFunction(
            "ixgbe_read_mbx",
            ("hw", "msg", "size", "mbx_id"),
            entry="kp_read",
            at_return="kr_ixgbe_read",
        ),
        HookedFunction("ixgbe_write_mbx", ("hw", "msg", "size", "mbx_id"), entry="kp_ixgbe_write"),
        # Returns 0 if the VF was reset as a function.
        HookedFunction(
            "ixgbe_check_for_rst",
            ("hw", "mbx_id"),
            entry="kp_check_for_rst",
            at_return="kr_ixgbe_check_for_rst",
            optional=True,
        ),
    ),
    layout={
        "back": ("ixgbe_hw.back",),
        "pdev": ("ixgbe_adapter.pdev",),
        "device": ("pci_dev.dev",),
    },
    opcodes={
        **COMMON,
        0x01: replace(COMMON[0x01], reply=_reset_reply, reply_size=4),
        0x06: Opcode("SET_MACVLAN", Stage.PREPARE, request=_macvlan, request_size=3),
        0x08: Opcode(
            "API_NEGOTIATE",
            Stage.NEGOTIATE,
            request=_api,
            request_size=2,
            normal_nack=always("the VF tries an older version next"),
        ),
        0x09: Opcode("GET_QUEUES", Stage.PREPARE, reply=_queues, reply_size=5),
        0x0A: Opcode("GET_RETA", Stage.PREPARE),
        0x0B: Opcode("GET_RSS_KEY", Stage.PREPARE, reply_key=True),
        0x0C: Opcode(
            "UPDATE_XCAST_MODE",
            Stage.OPEN,
            request=_xcast,
            request_size=2,
            reply=_xcast,
            reply_size=2,
        ),
        # ixgbe_ipsec_vf_add_sa writes the answer into the request's buffer, which still holds the key.
        0x0D: Opcode(
            "IPSEC_ADD",
            request=_ipsec_add,
            request_size=7,
            reply=lambda words: {"handle": words[1]},
            reply_size=2,
            request_key=True,
            reply_key=True,
        ),
        0x0E: Opcode("IPSEC_DEL", request=lambda words: {"handle": words[1]}, request_size=2),
        0x10: Opcode(
            "GET_LINK_STATE",
            Stage.OPEN,
            reply=lambda words: {"enabled": bool(words[1])},
            reply_size=2,
        ),
        0x11: Opcode(
            "GET_PF_LINK_STATE",
            reply=lambda words: {"speed": f"0x{words[1]:x}", "up": bool(words[2])},
            reply_size=3,
        ),
        0x12: Opcode(
            "FEATURES_NEGOTIATE",
            Stage.NEGOTIATE,
            request=_features,
            request_size=2,
            reply=_features,
            reply_size=2,
            normal_nack=always("the card's driver knows no features"),
        ),
    },
)
