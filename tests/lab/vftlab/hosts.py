# SPDX-License-Identifier: MIT
"""Two emulated hosts, each with an igb card, and a third point: a network namespace of this machine.

The cards, and a second interface of each host for its bridge, are on a switch (vftlab.switch) with the
tap of the third point; a network of their own between the two hosts carries migrations.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vftlab.build import Built
from vftlab.common import LAB, TREE, LabError
from vftlab.machine import CARD_PORT, Machine, die_with_parent, share

NAMES = ("a", "b")
# Two of them beside each other, and what they hold of 2500 MiB is never used.
MEMORY_MIB = 1280
THIRD_POINT = "10.9.0.1"
TAP = "third"
ANSWER_S = 300.0
BOOT_S = 180.0


def macs(name: str) -> dict[str, str]:
    """Link addresses of a host: of its card, of its bridge's interface, of the one for migrations."""
    kinds = ("card", "bridge", "management")
    return {kind: f"52:54:00:0{name}:00:0{n}" for n, kind in enumerate(kinds, 1)}


def management_address(name: str) -> str:
    """The host's address on the network for migrations."""
    return f"10.8.0.{NAMES.index(name) + 1}"


def _wires(name: str, built: Built, sockets: Path) -> tuple[str, ...]:
    """QEMU's words for what connects a host."""

    def stream(what: str, path: Path, *more: str) -> tuple[str, str]:
        return "-netdev", ",".join(
            ("stream", f"id={what}", "addr.type=unix", f"addr.path={path}", *more)
        )

    first = name == NAMES[0]
    management = ("server=on",) if first else ("server=off", "reconnect-ms=200")
    mac = macs(name)
    return (
        *CARD_PORT,
        *stream("card", sockets / f"{name}.card", "server=off"),
        *("-device", f"igb,bus=rp,netdev=card,mac={mac['card']}"),
        *stream("bridge", sockets / f"{name}.bridge", "server=off"),
        *("-device", f"virtio-net-pci,netdev=bridge,mac={mac['bridge']}"),
        *stream("management", sockets / "management", *management),
        *("-device", f"virtio-net-pci,netdev=management,mac={mac['management']}"),
        *("-device", "virtio-serial-pci,id=serial"),
        *_serial_port("agent", sockets / f"{name}.agent"),
        *_serial_port("clock", sockets / f"{name}.clock"),
        *share("guest", built.guest.path, "readonly=on"),
    )


def _serial_port(name: str, path: Path) -> tuple[str, ...]:
    return (
        *("-chardev", f"socket,id={name},path={path},server=off"),
        *("-device", f"virtserialport,bus=serial.0,chardev={name},name={name}"),
    )


class Host:
    """One emulated host; its agent obeys `call`."""

    def __init__(self, name: str, machine: Machine, sockets: Path, script: str) -> None:
        self.name = name
        self.results = machine.results
        listeners = {}
        for port in ("agent", "clock"):
            listeners[port] = socket.socket(socket.AF_UNIX)
            listeners[port].bind(str(sockets / f"{name}.{port}"))
            listeners[port].listen()
            listeners[port].settimeout(30)
        lab = machine.results / ".lab"
        shutil.rmtree(machine.results, ignore_errors=True)
        lab.mkdir(parents=True)
        words = {"LAB_SCRIPT": script, "LAB_ARGUMENTS": name}
        (lab / "env").write_text("".join(f"{k}={shlex.quote(v)}\n" for k, v in words.items()))
        self._output = (machine.results / "output").open("wb")
        self.process = subprocess.Popen(
            machine.command(),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            self._agent = listeners["agent"].accept()[0]
            clock = listeners["clock"].accept()[0]
        except TimeoutError:
            raise LabError(f"host {name}: its QEMU did not connect: {self._said()}") from None
        self._lines = self._agent.makefile("rb")
        threading.Thread(target=self._tell_time, args=(clock,), daemon=True).start()

    @staticmethod
    def _tell_time(clock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while clock.recv(1):
                clock.sendall(time.time_ns().to_bytes(8, "little", signed=True))

    def _said(self) -> str:
        text = (self.results / "output").read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "nothing"

    def wait_ready(self) -> None:
        """Until its agent is there."""
        self._answer("to boot", BOOT_S)

    def call(self, do: str, seconds: float = ANSWER_S, **arguments: object) -> Any:
        """Run a command of the agent; raises LabError with its error if it fails."""
        self._agent.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return self._answer(do, seconds)

    def _answer(self, what: str, seconds: float) -> Any:
        self._agent.settimeout(seconds)
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise LabError(f"host {self.name}: no answer to {what} in {seconds:.0f} s") from None
        if not line:
            raise LabError(f"host {self.name} has gone: {self._said()}")
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(f"host {self.name}: {answer['error']}")
        return answer["returned"]

    def quit(self) -> None:
        """Power it off."""
        with contextlib.suppress(LabError, OSError):
            self.call("quit", 20)
            self.process.wait(30)

    def close(self) -> None:
        """End it in any case."""
        self.process.kill()
        self.process.wait()
        self._output.close()


@dataclass(frozen=True)
class Third:
    """The third point; `pid` is a process in its network namespace."""

    pid: int

    def command(self, *words: str | Path) -> list[str]:
        """What runs a program there."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *map(str, words)]


@contextlib.contextmanager
def _switch(sockets: Path, log: Path) -> Iterator[Third]:
    ports = [f"{name}.{kind}" for name in NAMES for kind in ("card", "bridge")]
    command = ["unshare", "--net", sys.executable, "-m", "vftlab.switch", str(sockets), *ports]
    command += ["--tap", TAP, "--address", f"{THIRD_POINT}/24", "--log", str(log)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(LAB)},
        preexec_fn=die_with_parent,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise LabError("the switch did not start (it needs root and /dev/net/tun)")
            yield Third(process.pid)
        finally:
            process.kill()


@dataclass(frozen=True)
class Pair:
    """Both hosts and the third point."""

    a: Host
    b: Host
    third: Third


@contextlib.contextmanager
def two_hosts(built: Built, results: Path, script: str) -> Iterator[Pair]:
    """Boot both; `script` is what runs in them: an executable of the tree that serves vftlab.agent."""
    if os.geteuid() != 0:
        raise LabError("two hosts need root: for a tap and a network namespace")
    results.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vft")))
        third = stack.enter_context(_switch(sockets, results / "switch.log"))
        hosts: list[Host] = []
        for name in NAMES:
            machine = Machine(
                built,
                results / name,
                processors=1,
                memory_mib=MEMORY_MIB,
                network=_wires(name, built, sockets),
            )
            hosts.append(Host(name, machine, sockets, script))
            stack.callback(hosts[-1].close)
        for host in hosts:
            host.wait_ready()
        yield Pair(hosts[0], hosts[1], third)
        both(lambda host: host.quit(), hosts)


def both(act: Any, hosts: Sequence[Host]) -> list[Any]:
    """Do something with several hosts at once; the first failure is raised after all have ended."""
    found: list[Any] = [None] * len(hosts)
    failures: list[BaseException] = []

    def one(index: int, host: Host) -> None:
        try:
            found[index] = act(host)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


__all__ = ["TREE", "Host", "Pair", "Third", "both", "management_address", "two_hosts"]
