# SPDX-License-Identifier: MIT
"""The process that keeps a host's namespaces: it makes the host's own files, and ends all its processes.

    unshare --mount --net --uts python3 keeper.py DIRECTORY NAME

It prints "ready" and waits. When its standard input ends, because the test closed it or died, it kills
every process that shares its network namespace (libvirtd's QEMUs are not libvirtd's children) and ends.
With them go the namespaces, the mounts and the network.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def main(directory: Path, name: str) -> None:
    socket.sethostname(name)
    for tree in ("etc", "var"):
        upper, work = directory / tree, directory / f".{tree}"
        for made in (upper, work):
            made.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir=/{tree},upperdir={upper},workdir={work}"
        mount("-t", "overlay", "-o", options, "overlay", f"/{tree}")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/lock").mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The first process of a pid namespace inherits every orphan: let none of them stay a zombie.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    sys.stdin.read()
    end_all()


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def end_all() -> None:
    """Kill what shares this network namespace until only this process is left."""
    deadline = time.monotonic() + 10
    while others := inhabitants(os.getpid()):
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            sys.exit(f"processes that do not end: {sorted(others)}")
        time.sleep(0.02)


def inhabitants(of: int) -> set[int]:
    """The other living processes in the network namespace of process `of`."""
    ours = Path(f"/proc/{of}/ns/net").readlink()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        # A zombie process has no namespaces.
        with suppress(OSError):
            if (process / "ns/net").readlink() == ours:
                found.add(int(process.name))
    return found - {of}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
