"""The steps of a blackout."""

from enum import StrEnum


class Checkpoint(StrEnum):
    """The steps of the blackout in the order in which QEMU passes them.

    `held` ends when a manager sends `cont`: kvmclock is set only then (QEMU hw/i386/kvm/clock.c,
    kvmclock_vm_state_change), so it stands before `clock-set`.
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
