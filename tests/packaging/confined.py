# SPDX-License-Identifier: MIT
"""Runs a command as systemd runs it for a unit: user, capabilities, system calls, memory, mounts.

    unshare --mount python confined.py UNIT PLACE COMMAND...

Only what vftrace.service uses is known here. PLACE stays writable, as its CacheDirectory= would be. It stands in for a
systemd where none runs: what each setting does is in systemd.exec(5), the code in systemd's src/core/execute.c.
"""

import ctypes
import os
import platform
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from vftrace.syscalls import name_of

NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)
# include/uapi/linux/prctl.h
SET_KEEPCAPS, SET_SECCOMP, CAPBSET_DROP, SET_NO_NEW_PRIVS, CAP_AMBIENT, SET_MDWE = (
    8,
    22,
    24,
    38,
    47,
    65,
)
# include/uapi/linux/capability.h, by number
CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39,
}  # fmt: skip
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
ALLOW, EPERM, EAFNOSUPPORT = 0x7FFF0000, 0x00050001, 0x00050061


def settings(unit: Path) -> dict[str, list[str]]:
    """Each setting of the unit, a value for each of its lines."""
    found = defaultdict(list)
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return dict(found)


def members(name: str) -> set[str]:
    """The system calls of a set, from systemd itself."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    )
    lines = [line.strip() for line in done.stdout.splitlines()[1:]]
    return {call for line in lines if line and line[0] != "#" for call in members(line)}


def allowed_calls(filters: list[str]) -> set[str]:
    """The allow list: @default, and what the lines add and take away (systemd.exec(5))."""
    allowed = members("@default")
    for line in filters:
        calls = set().union(*(members(word) for word in line.lstrip("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def hide(place: str) -> None:
    if Path(place).is_dir():
        mount("-t", "tmpfs", "-o", "mode=000,ro", "tmpfs", place)


def arrange_mounts(place: Path, unit: dict[str, list[str]]) -> None:
    """PrivateMounts=, PrivateDevices=, ProtectHome=, ProtectKernelModules=, ProtectSystem=strict."""
    mount("--make-rprivate", "/")
    assert unit["PrivateDevices"] == unit["ProtectHome"] == unit["ProtectKernelModules"] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
    mount("--bind", str(place), str(place))
    devices = place / "dev"
    devices.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(devices))
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        (devices / name).touch()
        mount("--bind", f"/dev/{name}", str(devices / name))
    (devices / "shm").mkdir(mode=0o1777)
    mount("--rbind", str(devices), "/dev")
    for name in ("/usr/lib/modules", "/home", "/root"):
        hide(name)
    mount("-o", "remount,bind,ro", "/")


def seccomp(calls: set[str], families: list[str]) -> None:
    """SystemCallFilter=, SystemCallErrorNumber=EPERM, RestrictAddressFamilies=, SystemCallArchitectures=native."""
    machine = platform.machine()
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    by_name = {name_of(machine, number): number for number in range(1024)}
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, architecture), (0x06, 0, 0, EPERM), (0x20, 0, 0, 0)]
    code += [(0x15, 0, 2 * len(families) + 2, by_name["socket"]), (0x20, 0, 0, 16)]
    for family in families:
        code += [(0x15, 0, 1, FAMILIES[family]), (0x06, 0, 0, ALLOW)]
    code += [(0x06, 0, 0, EAFNOSUPPORT)]
    for name in sorted(calls - {"socket"}):
        if name in by_name:
            code += [(0x15, 0, 1, by_name[name]), (0x06, 0, 0, ALLOW)]
    code += [(0x06, 0, 0, EPERM)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(packed))
    kept = ctypes.create_string_buffer(program)
    prctl(SET_SECCOMP, 2, ctypes.addressof(kept))


def prctl(*words: int) -> None:
    padded = [ctypes.c_ulong(word) for word in (*words[1:], 0, 0, 0, 0)[:4]]
    if LIBC.prctl(words[0], *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {words}")


def change_rights(unit: dict[str, list[str]]) -> None:
    """User=, CapabilityBoundingSet=, AmbientCapabilities=, UMask=, NoNewPrivileges=, MemoryDenyWriteExecute=."""
    ambient = {CAPABILITIES[name] for name in unit["AmbientCapabilities"][0].split()}
    bounding = {CAPABILITIES[name] for name in unit["CapabilityBoundingSet"][0].split()}
    os.umask(int(unit["UMask"][0], 8))
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in set(range(last + 1)) - bounding:
        prctl(CAPBSET_DROP, capability)
    prctl(SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    mask = sum(1 << capability for capability in ambient)
    words = [part >> shift & 0xFFFFFFFF for shift in (0, 32) for part in (mask, mask, mask)]
    header, data = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *words)
    assert LIBC.capset(header, data) == 0
    for capability in ambient:
        prctl(CAP_AMBIENT, 2, capability)
    prctl(SET_NO_NEW_PRIVS, 1)
    assert unit["MemoryDenyWriteExecute"] == ["yes"]
    prctl(SET_MDWE, 1)


def main() -> None:
    unit, place = settings(Path(sys.argv[1])), Path(sys.argv[2])
    calls = allowed_calls(unit["SystemCallFilter"])
    os.chown(place, NOBODY, NOBODY)
    arrange_mounts(place, unit)
    change_rights(unit)
    os.environ["CACHE_DIRECTORY"] = str(place / "cache")
    seccomp(calls, unit["RestrictAddressFamilies"][0].split())
    os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
