# SPDX-License-Identifier: MIT
"""The lengths of requests from ftrace's text (tests/host/clocked.py)."""

import pytest

from tests.host.clocked import lengths

TRACE = """
 python-1   [000] .....  1000: tracing_mark_write: 5000
 qemu-7     [001] .....  2000: sys_ioctl(fd: 9, cmd: 4010ae42, arg: 7f00)
 qemu-8     [000] .....  2100: sys_ioctl(fd: 9, cmd: 4010ae42, arg: 7f00)
 qemu-7     [001] d....  2200: sched_switch: prev_comm=qemu prev_pid=7 prev_state=R+ ==> next_comm=x y next_pid=9
 qemu-8     [000] .....  2300: sys_ioctl -> 0x0
 <idle>-0   [001] d....  2900: sched_switch: prev_comm=x prev_pid=9 prev_state=S ==> next_comm=qemu next_pid=7
 qemu-7     [001] d....  3000: sched_switch: prev_comm=qemu prev_pid=7 prev_state=D ==> next_comm=s next_pid=0
 <idle>-0   [001] dN...  3500: sched_wakeup: comm=qemu pid=7 prio=120 target_cpu=001
 <idle>-0   [001] d....  3600: sched_switch: prev_comm=s prev_pid=0 prev_state=R ==> next_comm=qemu next_pid=7
 qemu-7     [001] .....  4000: sys_ioctl -> 0x0
 qemu-7     [001] .....  4100: sys_ioctl -> 0x0
 python-1   [000] .....  5000: tracing_mark_write: 7000
"""


def test_a_request_is_as_long_as_it_ran_or_slept() -> None:
    """Half a ns for each cycle; 700 and 100 cycles of waiting for a CPU."""
    assert list(lengths(TRACE.splitlines())) == [
        pytest.approx(100),
        pytest.approx((2000 - 700 - 100) / 2),
    ]
