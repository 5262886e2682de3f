# SPDX-License-Identifier: MIT
"""Reads an orchestrator's names for a VM from QEMU's command line and from the process's control group.

OpenStack needs nothing here: the UUID on the command line is Nova's instance.
"""

import re
from pathlib import Path

import msgspec

from vftrace.host import processes

_POD = re.compile(
    r"[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?:\.slice)?(?:/|$)",
    re.MULTILINE,
)
"""A pod's control group: `.../pod<uid>/` with the cgroupfs driver, `...-pod<uid with _>.slice/` with systemd's
(Kubernetes, pkg/kubelet/cm: pod_container_manager_linux.go, cgroup_manager_linux.go ToSystemd). In a control group
namespace the path begins with `/..` and may lack the part before the pod."""


class Placement(msgspec.Struct, frozen=True):
    """An orchestrator's names for a VM; all None if no orchestrator is known.

    `namespace` and `vmi` are KubeVirt's VirtualMachineInstance, `pod_uid` the pod that it runs in, `vmid` is Proxmox
    VE's number.
    """

    namespace: str | None = None
    vmi: str | None = None
    pod_uid: str | None = None
    vmid: str | None = None


def placement_of(argv: list[str], name: str | None, cgroup: str) -> Placement:
    """Return the orchestrator's names for the VM with this command line, name and text of /proc/PID/cgroup.

    KubeVirt names a libvirt domain NAMESPACE_NAME (pkg/util/util.go, DomainFromNamespaceName); neither part can contain
    an underscore. Proxmox VE passes its number as `-id` (PVE/QemuServer.pm, config_to_command).
    """
    pod = _POD.search(cgroup)
    namespace, _, vmi = (name or "").partition("_")
    number = processes.option(argv, "id")
    kubevirt = bool(pod and namespace and vmi)
    return Placement(
        namespace=namespace if kubevirt else None,
        vmi=vmi if kubevirt else None,
        pod_uid=pod[1].replace("_", "-") if pod else None,
        vmid=number if number and re.fullmatch(r"[0-9]{1,9}", number, re.ASCII) else None,
    )


def find(pid: int, argv: list[str], name: str | None) -> Placement:
    """Return the orchestrator's names for the VM of this process."""
    return placement_of(argv, name, _control_group(processes.PROC / str(pid)))


def _control_group(process: Path) -> str:
    try:
        return (process / "cgroup").read_text(errors="replace")
    except OSError:
        return ""
