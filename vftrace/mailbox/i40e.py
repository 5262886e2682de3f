# SPDX-License-Identifier: MIT
"""i40e (X710, XL710, X722) and its VFs: drivers/net/ethernet/intel/i40e/i40e_virtchnl_pf.c."""

from vftrace.events import layout
from vftrace.mailbox.driver import Driver, HookedFunction
from vftrace.mailbox.virtchnl import OPCODES, VIRTCHNL_PROTOCOL

DRIVER = Driver(
    name="i40e",
    number=layout.I40E,
    protocol=VIRTCHNL_PROTOCOL,
    hooks=(
        HookedFunction(
            "i40e_vc_process_vf_msg",
            ("pf", "vf_id", "v_opcode", "v_retval", "msg", "msglen"),
            entry="kp_i40e_request",
        ),
        # All replies and all events pass here; i40e_vc_send_msg_to_vf is static, and events bypass it.
        HookedFunction(
            "i40e_aq_send_msg_to_vf",
            ("hw", "vfid", "v_opcode", "v_retval", "msg", "msglen"),
            entry="kp_i40e_send",
            at_return="kr_send",
        ),
        HookedFunction(
            "i40e_reset_vf",
            ("vf", "flr"),
            entry="kp_reset",
            at_return="kr_i40e_reset",
            optional=True,
        ),
    ),
    layout={
        "pdev": ("i40e_pf.pdev",),
        "device": ("pci_dev.dev",),
        "hw": ("i40e_pf.hw",),
        # Messages number the VFs over the whole card.
        "vf_base": ("i40e_hw.func_caps", "i40e_hw_capabilities.vf_base_id"),
        "vf_pf": ("i40e_vf.pf",),
        "vf_id": ("i40e_vf.vf_id",),
    },
    opcodes=OPCODES,
)
