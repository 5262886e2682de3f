# SPDX-License-Identifier: MIT
"""The steps of an operation: start domains, move and save them, wait for QEMU's events, cause failures."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.libvirt.domains import Domain
from tests.libvirt.hosts import Host, Pair
from tests.libvirt.truth import Message, MonitorLog, events

PROXIED = Path("/run/proxied.sock")
"""Each host's own end of a proxied stream."""

_TIMEOUT = 60.0
_GUEST_TICKS = 0x7000


class OperationError(Exception):
    """The operation did not do what it is for."""


@dataclass
class Play:
    """One operation under way on the two hosts."""

    pair: Pair
    stack: ExitStack
    domains: list[Domain] = field(default_factory=list)
    logs: dict[str, MonitorLog] = field(default_factory=dict)
    pids: dict[str, set[int]] = field(default_factory=lambda: {"a": set(), "b": set()})
    aliases: set[str] = field(default_factory=set)
    """Other names that the first domain has had."""

    @property
    def a(self) -> Host:
        """The host where domains start."""
        return self.pair.a

    @property
    def b(self) -> Host:
        """The host they move to."""
        return self.pair.b

    @property
    def domain(self) -> Domain:
        """The first domain."""
        return self.domains[0]

    def create(self, domain: Domain, *options: str) -> Domain:
        """Start a domain on host a, and wait until its guest runs."""
        self.domains.append(domain)
        domain.write()
        if domain.disk:
            for host in self.pair.hosts:
                domain.make_disk(host)
        self.a.virsh("create", str(domain.xml), *options)
        self.wait_guest(self.a, domain)
        return domain

    def wait_guest(self, host: Host, domain: Domain | None = None) -> None:
        """Wait until the guest has written its set for the first time."""
        name = (domain or self.domain).name
        read = ("qemu-monitor-command", "--hmp", name, f"xp/1xw {_GUEST_TICKS:#x}")
        self.wait(lambda: "0x00000000" not in host.virsh(*read), f"{name} to run")
        self.note_pids()

    def migrate_command(self, host: Host, *options: str, domain: Domain | None = None) -> list[str]:
        """`virsh migrate --live` from this host to the other."""
        there = f"qemu+tcp://host-{self.pair.other(host).name}/system"
        name = (domain or self.domain).name
        live = () if "--no-live" in options else ("--live",)
        options = tuple(option for option in options if option != "--no-live")
        return host.virsh_command("migrate", *live, name, there, *options)

    def migrate(self, *options: str, host: Host | None = None) -> None:
        """Move the domain; raises HostError if libvirt reports a failure."""
        host = host or self.a
        host.run(*self.migrate_command(host, *options))
        self.note_pids()

    def begin(
        self, *options: str, domain: Domain | None = None, host: Host | None = None
    ) -> "subprocess.Popen[str]":
        """Begin to move the domain."""
        host = host or self.a
        return self.call(host, *self.migrate_command(host, *options, domain=domain))

    def call(self, host: Host, *command: str) -> "subprocess.Popen[str]":
        """Start a program on a host; it is ended with the operation."""
        process = subprocess.Popen(
            host.inside(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.stack.callback(_end, process)
        return process

    def answer(self, process: "subprocess.Popen[str]", *, good: bool | None = True) -> str:
        """Wait for a program; `good` says how it must end (None: either way). Returns its words."""
        try:
            out, err = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise OperationError(f"{_words(process)} does not end") from error
        self.note_pids()
        said = (err or out).strip()
        if good is not None and (process.returncode == 0) != good:
            raise OperationError(f"{_words(process)} ended with {process.returncode}: {said}")
        return said

    def wait(self, wanted: Callable[[], object], what: str, timeout: float = _TIMEOUT) -> None:
        """Ask again every 20 ms."""
        deadline = time.monotonic() + timeout
        while not wanted():
            if time.monotonic() > deadline:
                raise OperationError(f"waited {timeout:.0f} s for {what}")
            time.sleep(0.02)

    def wait_event(
        self,
        name: str,
        wanted: Callable[[dict[str, object]], bool] = lambda data: True,
        host: Host | None = None,
        domain: Domain | None = None,
        count: int = 1,
    ) -> Message:
        """Wait for the `count`-th such event of the domain on the host (a unless it is named)."""
        host, domain = host or self.a, domain or self.domain

        def found() -> list[Message]:
            said = events(self.logs[host.name].poll(), domain.name, name)
            return [event for event in said if wanted(event.body.get("data", {}))]

        self.wait(lambda: len(found()) >= count, f"{name} of {domain.name} on {host.name}")
        self.note_pids()
        return found()[count - 1]

    def wait_status(self, status: str, host: Host | None = None, count: int = 1) -> Message:
        """Wait until QEMU's migration has this status."""
        return self.wait_event(
            "MIGRATION", lambda data: data["status"] == status, host, count=count
        )

    def wait_pass(
        self, number: int, host: Host | None = None, domain: Domain | None = None
    ) -> None:
        """Wait until QEMU begins this pass over memory."""
        self.wait_event("MIGRATION_PASS", lambda data: data["pass"] == number, host, domain)

    def kill(self, host: Host, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the domain's QEMU on the host."""
        pid = host.qemu_pid(self.domain.name)
        if pid is None:
            raise OperationError(f"no QEMU of {self.domain.name} on {host.name}")
        self.pids[host.name].add(pid)
        os.kill(pid, number)

    def freeze(self, host: Host) -> None:
        """Stop the host's libvirtd; it continues at the end at the latest."""
        host.signal_daemon(signal.SIGSTOP)
        self.stack.callback(self.thaw, host)

    def thaw(self, host: Host) -> None:
        """Continue a stopped libvirtd."""
        with suppress(subprocess.CalledProcessError):
            host.signal_daemon(signal.SIGCONT)

    def kill_daemon(self, host: Host) -> None:
        """Kill the host's libvirtd; QEMU stays."""
        host.signal_daemon(signal.SIGKILL)

    def reset_network(self) -> None:
        """Reset the migration's TCP connections (not libvirt's own) in mid-flight."""
        # tcp_diag: the kernel aborts the socket and sends RST. QEMU's ports begin at 49152.
        self.a.run("ss", "--kill", "--tcp", "dport", ">=", ":49152")

    def hmp(self, host: Host, *words: str) -> str:
        """Let the domain's QEMU obey its human monitor."""
        return host.virsh("qemu-monitor-command", "--hmp", self.domain.name, *words)

    def note_pids(self) -> None:
        """Remember the QEMUs of each host."""
        for host in self.pair.hosts:
            self.pids[host.name].update(host.qemus())

    def relay(self, path: Path) -> None:
        """Hand connections to this unix socket of host a on to that of host b, as virt-handler does."""
        here, there = (Path(f"/proc/{host.pid}/root{path}") for host in self.pair.hosts)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(here))
        listener.listen()
        self.stack.callback(listener.close)
        threading.Thread(target=_relay, args=(listener, there), daemon=True).start()


def _relay(listener: socket.socket, there: Path) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(there))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def _words(process: "subprocess.Popen[str]") -> str:
    assert isinstance(process.args, list)
    words = [str(word) for word in process.args]
    return " ".join(words[words.index("virsh") :] if "virsh" in words else words)
