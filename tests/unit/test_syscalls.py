# SPDX-License-Identifier: MIT
"""Names of system calls and requests, against the C headers of this machine."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vftrace import syscalls

HEADERS = {
    "linux/kvm.h": "KVM_",
    "linux/vfio.h": "VFIO_",
    "linux/vhost.h": "VHOST_",
    "linux/if_tun.h": "TUN",
    "linux/userfaultfd.h": "UFFDIO_",
}
INCLUDE = Path("/usr/include")
READ, WRITE = 2, 1
ARM = {
    "KVM_ARM_VCPU_INIT": (WRITE, 8 * 4, 0xAE),
    "KVM_ARM_PREFERRED_TARGET": (READ, 8 * 4, 0xAF),
    "KVM_ARM_MTE_COPY_TAGS": (READ, 6 * 8, 0xB4),
}
"""Direction, size and number: asm/kvm.h of arm64 has `struct kvm_vcpu_init` (8 words of 32 bits) and `struct
kvm_arm_copy_mte_tags` (6 of 64)."""


def _requests() -> list[str]:
    return [
        name
        for header, prefix in HEADERS.items()
        for name in re.findall(
            rf"^#define\s+({prefix}\w+)\s+_IO[WR]*\(", (INCLUDE / header).read_text(), re.MULTILINE
        )
    ]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_requests_have_the_numbers_of_the_headers(tmp_path: Path) -> None:
    """The compiler, not we, computes them. Requests of another architecture's structures do not compile here."""
    wanted = {name: number for number, name in syscalls.IOCTLS.items()}
    names = [name for name in _requests() if name in wanted and name not in ARM]
    assert len(names) > 200
    source = tmp_path / "requests.c"
    source.write_text(
        "#include <stdio.h>\n#include <sys/ioctl.h>\n"
        + "".join(f"#include <{header}>\n" for header in HEADERS)
        + "int main(void){"
        + "".join(f'printf("{name} %x\\n",(unsigned){name});' for name in names)
        + "}"
    )
    subprocess.run(["gcc", "-o", str(tmp_path / "requests"), str(source)], check=True)
    printed = subprocess.run(
        [str(tmp_path / "requests")], capture_output=True, text=True, check=True
    )
    found = dict(line.split() for line in printed.stdout.splitlines())
    assert {name: int(number, 16) for name, number in found.items()} == {
        name: wanted[name] for name in names
    }


@pytest.mark.parametrize("name", ARM)
def test_requests_of_arm64(name: str) -> None:
    direction, size, number = ARM[name]
    assert syscalls.request_name(direction << 30 | size << 16 | 0xAE << 8 | number) == name


@pytest.mark.skipif(not (INCLUDE / "linux/kvm.h").exists(), reason="needs the headers")
def test_every_request_of_the_headers_has_a_name() -> None:
    """But those of POWER, which is not supported, and one whose number another request has on a vCPU's fd."""
    named = {*syscalls.IOCTLS.values(), *syscalls._OF_CONTAINER.values()}
    missing = {name for name in _requests() if name not in named}
    power = {n for n in missing if re.search("PPC|SPAPR|ALLOCATE_RMA", n)}
    assert missing - power == {"KVM_ARM_SET_DEVICE_ADDR"}


@pytest.mark.parametrize(
    ("machine", "header", "pattern"),
    [
        ("x86_64", "x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+) (\d+)"),
        ("aarch64", "asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+) (\d+)"),
    ],
)
def test_calls_have_the_numbers_of_the_headers(machine: str, header: str, pattern: str) -> None:
    path = INCLUDE / header
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    found = re.findall(pattern, path.read_text())
    numbers = {int(number): name for name, number in found if "arch_specific" not in name}
    numbers = {number: name for number, name in numbers.items() if name != "syscalls"}
    assert len(numbers) > 300
    assert {n: syscalls.name_of(machine, n) for n in numbers} == numbers


def test_what_is_not_known_keeps_its_number() -> None:
    assert syscalls.name_of("x86_64", 9999) == "syscall 9999"
    assert syscalls.name_of("riscv64", 29) == "syscall 29"
    assert syscalls.request_name(0x1234) == "ioctl 0x1234"


def test_a_containers_requests_are_distinguished_from_a_devices() -> None:
    assert syscalls.request_name(0x3B71, "/dev/vfio/vfio") == "VFIO_IOMMU_MAP_DMA"
    assert syscalls.request_name(0x3B71, "vfio-device") == "VFIO_DEVICE_PCI_HOT_RESET"
