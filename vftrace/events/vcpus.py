# SPDX-License-Identifier: MIT
"""Events of vCPU time: totals by state while a VM migrates, and the time before. The collector writes them."""

from vftrace.events import layout
from vftrace.events.base import Event
from vftrace.events.layout import Kind


class VcpuTime(Event, frozen=True):
    """Totals of one vCPU thread from `begun_ns` to `until_ns` by state (struct vft_vcpu_time in bpf/wire.h).

    `wait` counts the page faults in which the thread slept: entry i counts those shorter than 2**i us. `held_state` is
    one of THROTTLE and LIMIT.
    """

    KIND = Kind.VCPU_TIME

    THROTTLE = layout.VCPU_THROTTLE
    LIMIT = layout.VCPU_LIMIT

    begun_ns: int
    until_ns: int
    guest_ns: int
    idle_ns: int
    fault_ns: int
    exit_ns: int
    user_ns: int
    queue_ns: int
    throttle_ns: int
    limit_ns: int
    ring_ns: int
    stopped_ns: int
    unknown_ns: int
    exits: int
    faults: int
    ring_full: int
    waits: int
    wait_ns: int
    longest_wait_ns: int
    held_from_ns: int
    held_until_ns: int
    pid: int
    thread: int
    vcpu: int
    held_state: int
    wait: tuple[int, ...]


class VcpuBaseline(Event, frozen=True):
    """How a vCPU thread spent the time before its VM migrated, from `from_ns` to `until_ns` (/proc/PID/task/TID/stat
    and schedstat). The rest of that time it slept."""

    KIND = Kind.VCPU_BASELINE

    pid: int
    thread: int
    vcpu: int
    from_ns: int
    until_ns: int
    guest_ns: int
    user_ns: int
    system_ns: int
    queue_ns: int
