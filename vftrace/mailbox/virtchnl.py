# SPDX-License-Identifier: MIT
"""The protocol of i40e and ice: virtchnl (include/linux/avf/virtchnl.h; since 7.x include/linux/net/intel/virtchnl.h).

A message is an opcode, a status and up to 4 KiB of bytes. 0 is granted, every other status refused; what a number means
depends on driver and kernel. The numbers of bytes that may leave the kernel exclude RSS keys (CONFIG_RSS_KEY), the
guest's flows and packets (cloud filters, flow director), and everything of RDMA and of opcodes that are not here: 34 is
INLINE_IPSEC_CRYPTO in vendors' headers, with cipher keys.
"""

from vftrace.events import Mailbox, Virtchnl
from vftrace.mailbox.driver import (
    Arguments,
    Decoded,
    Driver,
    Opcode,
    Protocol,
    Reader,
    Stage,
    Words,
    nothing,
)

EVENT = 17

_EVENTS = {1: "link", 2: "reset-impending", 3: "driver-close"}
"""enum virtchnl_event_codes."""

_FLAGS = {1: "unicast", 2: "multicast"}
"""FLAG_VF_UNICAST_PROMISC, FLAG_VF_MULTICAST_PROMISC."""


def u16(words: Words, at: int) -> int:
    """The 16-bit number at an even byte offset."""
    return words[at // 4] >> 8 * (at % 4) & 0xFFFF


def mac(words: Words, at: int) -> str:
    """The MAC address at an even byte offset."""
    parts = (u16(words, at + i) for i in (0, 2, 4))
    return ":".join(f"{part & 0xFF:02x}:{part >> 8:02x}" for part in parts)


class VirtchnlProtocol(Protocol):
    """Messages of virtchnl."""

    def decode(self, event: Mailbox | Virtchnl, driver: Driver) -> Decoded:
        """Decode one message. Missing bytes count as 0."""
        assert isinstance(event, Virtchnl)
        opcode = driver.opcodes.get(event.opcode)
        to_vf = event.direction == Mailbox.TO_VF
        reply = to_vf and event.opcode != EVENT
        granted = event.status == 0
        arguments: Arguments = {}
        size = 0 if opcode is None else opcode.reply_size if to_vf else opcode.request_size
        # A refusal, or a message shorter than the table's, has no arguments.
        if opcode is not None and event.bytes >= size and not (reply and not granted):
            arguments = (opcode.reply if to_vf else opcode.request)(event.word)
        if reply and not granted:
            arguments = {"status": event.status}
        return Decoded(
            opcode=event.opcode,
            name=opcode.name if opcode else None,
            arguments=arguments,
            result="none" if not reply else "ACK" if granted else "NACK",
            answered=opcode is None or opcode.answered,
            quiet=opcode is not None and opcode.quiet,
            note=opcode.normal_nack(event.word) if opcode and reply and not granted else None,
        )

    def exportable(self, driver: Driver) -> dict[int, int]:
        """Keys are driver << 24 | direction << 16 | opcode, values a number of bytes."""
        rules = {}
        for number, opcode in driver.opcodes.items():
            rules[driver.number << 24 | number] = opcode.request_size
            rules[driver.number << 24 | 1 << 16 | number] = opcode.reply_size
        return rules


VIRTCHNL_PROTOCOL = VirtchnlProtocol()


def _version(words: Words) -> Arguments:
    return {"version": f"{words[0]}.{words[1]}"}


def _caps(words: Words) -> Arguments:
    return {"caps": f"0x{words[0]:x}"}


def _resources(words: Words) -> Arguments:
    found: Arguments = {"pairs": u16(words, 2), "vectors": u16(words, 4), "max_mtu": u16(words, 6)}
    return {**found, "caps": f"0x{words[2]:x}", "mac": mac(words, 30)}


def _pairs(words: Words) -> Arguments:
    return {"vsi": u16(words, 0), "pairs": u16(words, 2)}


def _vectors(words: Words) -> Arguments:
    return {"vectors": u16(words, 0)}


def _queues(words: Words) -> Arguments:
    return {"vsi": u16(words, 0), "rx": f"0x{words[1]:x}", "tx": f"0x{words[2]:x}"}


def _addresses(words: Words) -> Arguments:
    return {"count": u16(words, 2), "mac": mac(words, 4)}


def _vlans(words: Words) -> Arguments:
    return {"count": u16(words, 2), "vlan": u16(words, 4) & 0xFFF}


def _promiscuous(words: Words) -> Arguments:
    names = [name for bit, name in _FLAGS.items() if u16(words, 2) & bit]
    return {"mode": ",".join(names) or "none"}


def _sized(words: Words) -> Arguments:
    return {"vsi": u16(words, 0), "size": u16(words, 2)}


def _requested(words: Words) -> Arguments:
    return {"pairs": u16(words, 0)}


def _event(words: Words) -> Arguments:
    event = words[0]
    found: Arguments = {"event": _EVENTS.get(event, str(event))}
    if event == 1:
        return {**found, "speed": words[1], "up": bool(words[2] & 0xFF)}
    return {**found, "severity": words[3]}


def _opcode(
    name: str,
    stage: Stage = Stage.PREPARE,
    request: tuple[int, Reader] = (0, nothing),
    reply: tuple[int, Reader] = (0, nothing),
) -> Opcode:
    """A message whose readers need the given numbers of bytes; no other byte leaves the kernel."""
    return Opcode(name, stage, request[1], request[0], reply[1], reply[0])


OPCODES = {
    1: _opcode("VERSION", Stage.NEGOTIATE, (8, _version), (8, _version)),
    2: Opcode("RESET_VF", Stage.RESET, request_size=0, reply_size=0, answered=False),
    3: _opcode("GET_VF_RESOURCES", Stage.NEGOTIATE, (4, _caps), (36, _resources)),
    6: _opcode("CONFIG_VSI_QUEUES", request=(4, _pairs)),
    7: _opcode("CONFIG_IRQ_MAP", request=(4, _vectors)),
    8: _opcode("ENABLE_QUEUES", Stage.UP, (12, _queues)),
    9: _opcode("DISABLE_QUEUES", Stage.DOWN, (12, _queues)),
    10: _opcode("ADD_ETH_ADDR", request=(12, _addresses)),
    11: _opcode("DEL_ETH_ADDR", Stage.ANY, (12, _addresses)),
    12: _opcode("ADD_VLAN", request=(6, _vlans)),
    13: _opcode("DEL_VLAN", Stage.ANY, (6, _vlans)),
    14: _opcode("CONFIG_PROMISCUOUS_MODE", request=(4, _promiscuous)),
    15: Opcode("GET_STATS", request_size=0, reply_size=0, quiet=True),
    EVENT: _opcode("EVENT", Stage.ANY, reply=(16, _event)),
    18: _opcode("CONFIG_RSS_HFUNC"),
    20: _opcode("RDMA", Stage.ANY),
    21: _opcode("CONFIG_RDMA_IRQ_MAP", Stage.ANY),
    22: _opcode("RELEASE_RDMA_IRQ_MAP", Stage.ANY),
    23: _opcode("CONFIG_RSS_KEY", request=(4, _sized)),
    24: _opcode("CONFIG_RSS_LUT", request=(4, _sized)),
    25: _opcode("GET_RSS_HENA_CAPS"),
    26: _opcode("SET_RSS_HENA"),
    27: _opcode("ENABLE_VLAN_STRIPPING"),
    28: _opcode("DISABLE_VLAN_STRIPPING"),
    29: _opcode("REQUEST_QUEUES", Stage.ANY, (2, _requested)),
    30: _opcode("ENABLE_CHANNELS", Stage.ANY),
    31: _opcode("DISABLE_CHANNELS", Stage.ANY),
    32: _opcode("ADD_CLOUD_FILTER", Stage.ANY),
    33: _opcode("DEL_CLOUD_FILTER", Stage.ANY),
    44: _opcode("GET_SUPPORTED_RXDIDS", Stage.NEGOTIATE),
    45: _opcode("ADD_RSS_CFG"),
    46: _opcode("DEL_RSS_CFG", Stage.ANY),
    47: _opcode("ADD_FDIR_FILTER", Stage.ANY),
    48: _opcode("DEL_FDIR_FILTER", Stage.ANY),
    51: _opcode("GET_OFFLOAD_VLAN_V2_CAPS", Stage.NEGOTIATE),
    52: _opcode("ADD_VLAN_V2"),
    53: _opcode("DEL_VLAN_V2", Stage.ANY),
    54: _opcode("ENABLE_VLAN_STRIPPING_V2"),
    55: _opcode("DISABLE_VLAN_STRIPPING_V2"),
    56: _opcode("ENABLE_VLAN_INSERTION_V2"),
    57: _opcode("DISABLE_VLAN_INSERTION_V2"),
}
"""Messages of the kernel's header that i40e and ice may answer."""
