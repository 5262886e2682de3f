# SPDX-License-Identifier: MIT
"""What KubeVirt, Proxmox VE and OpenStack call a VM: command lines and control groups as these systems write them."""

import pytest

from vftrace.host import processes
from vftrace.host.orchestrator import Placement, placement_of

POD = "2f3c1a9e-77aa-4c0b-9d5e-0123456789ab"
SYSTEMD = (
    "0::/kubepods.slice/kubepods-burstable.slice/"
    f"kubepods-burstable-pod{POD.replace('-', '_')}.slice/cri-containerd-c0ffee.scope\n"
)
CGROUPFS = f"11:memory:/kubepods/burstable/pod{POD}/c0ffee\n0::/\n"
FROM_A_POD = f"0::/../../pod{POD}/c0ffee\n"


def placement(line: str, cgroup: str) -> Placement:
    argv = line.split()
    return placement_of(argv, processes.identity_of(argv).name, cgroup)


@pytest.mark.parametrize("cgroup", [SYSTEMD, CGROUPFS, FROM_A_POD])
def test_kubevirt(cgroup: str) -> None:
    line = "/usr/libexec/qemu-kvm -name guest=prod-db_primary-0,debug-threads=on -S -uuid x"
    assert placement(line, cgroup) == Placement("prod-db", "primary-0", POD, None)


def test_a_pod_whose_vm_is_not_kubevirts() -> None:
    assert placement("qemu-system-x86_64 -name web", SYSTEMD) == Placement(pod_uid=POD)


def test_proxmox() -> None:
    line = "/usr/bin/kvm -id 104 -name web_1,debug-threads=on -no-shutdown"
    cgroup = "0::/qemu.slice/104.scope\n"
    assert placement(line, cgroup) == Placement(vmid="104")


@pytest.mark.parametrize("number", ["", "x", "1e3", "१", "1" * 10])
def test_what_is_no_number_is_none(number: str) -> None:
    assert placement_of(["kvm", "-id", number], None, "") == Placement()


def test_openstacks_uuid_is_the_instances() -> None:
    instance = "7d7f8f1e-3f3c-4d37-8f6b-1f5e0a9b2c3d"
    argv = f"qemu-system-x86_64 -name guest=instance-0000002a -uuid {instance}".split()
    assert processes.identity_of(argv).uuid == instance
    assert placement_of(argv, "instance-0000002a", "0::/machine.slice/x.scope") == Placement()
