# SPDX-License-Identifier: MIT
"""Numbers of the Linux uAPI, each once. Where bpf/ has them too, a test compares both."""

PAGE_SIZE = 4096
"""Bytes of a page of the guest (x86)."""

KVM_CREATE_VM = 0xAE01
KVM_RUN = 0xAE80
KVM_MEM_LOG_DIRTY_PAGES = 1
KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
KVM_CAP_DIRTY_LOG_RING = 192
KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223

VFIO_DEVICE_STATES = (
    "ERROR",
    "STOP",
    "RUNNING",
    "STOP_COPY",
    "RESUMING",
    "RUNNING_P2P",
    "PRE_COPY",
    "PRE_COPY_P2P",
)
"""enum vfio_device_mig_state of linux/vfio.h, by number."""
VFIO_DEVICE_STATE_RESUMING = VFIO_DEVICE_STATES.index("RESUMING")

VFIO_MIGRATION_STOP_COPY = 1
VFIO_MIGRATION_P2P = 2
VFIO_MIGRATION_PRE_COPY = 4
"""Flags of VFIO_DEVICE_FEATURE_MIGRATION."""
