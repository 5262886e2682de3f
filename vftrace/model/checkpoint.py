# SPDX-License-Identifier: MIT
"""The steps of a blackout."""

from enum import StrEnum


class Checkpoint(StrEnum):
    """The steps of the blackout in the order in which QEMU passes them.

    `held` ends when the management sends `cont`. It precedes `clock-set`, because QEMU sets kvmclock only then
    (hw/i386/kvm/clock.c, kvmclock_vm_state_change).
    """

    VCPUS_STOPPED = "vcpus-stopped"
    DEVICES_STOPPED = "devices-stopped"
    CLOCK_READ = "clock-read"
    FINAL_SYNC_DONE = "final-sync-done"
    STATE_SAVED = "state-saved"
    DEVICES_LOADED = "devices-loaded"
    HELD = "held"
    CLOCK_SET = "clock-set"
    VCPUS_RUNNING = "vcpus-running"
