# SPDX-License-Identifier: MIT
"""ice (E810, E830) and its VFs: drivers/net/ethernet/intel/ice/ice_virtchnl.c (virt/virtchnl.c since 7.x)."""

from vftrace.events import layout
from vftrace.mailbox.driver import Driver, HookedFunction
from vftrace.mailbox.virtchnl import OPCODES, VIRTCHNL_PROTOCOL

DRIVER = Driver(
    name="ice",
    number=layout.ICE,
    protocol=VIRTCHNL_PROTOCOL,
    hooks=(
        HookedFunction("ice_vc_process_vf_msg", ("pf", "event"), entry="kp_ice_request"),
        # All replies and all events pass here; ice_vc_send_msg_to_vf does not see events.
        HookedFunction(
            "ice_aq_send_msg_to_vf",
            ("hw", "vfid", "v_opcode", "v_retval", "msg", "msglen"),
            entry="kp_ice_send",
            at_return="kr_send",
        ),
        HookedFunction(
            "ice_reset_vf",
            ("vf", "flags"),
            entry="kp_reset",
            at_return="kr_ice_reset",
            optional=True,
        ),
    ),
    layout={
        "pdev": ("ice_pf.pdev",),
        "device": ("pci_dev.dev",),
        "hw": ("ice_pf.hw",),
        "vf_pf": ("ice_vf.pf",),
        "vf_id": ("ice_vf.vf_id",),
        "event_len": ("ice_rq_event_info.msg_len",),
        "event_buffer": ("ice_rq_event_info.msg_buf",),
    },
    opcodes=OPCODES,
)
