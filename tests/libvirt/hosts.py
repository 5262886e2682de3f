# SPDX-License-Identifier: MIT
"""Two hosts on one machine, each with a real libvirtd of its own.

A host is a set of namespaces (mount, network, UTS) with its own /etc, /var and /run (an overlay and a
tmpfs), its own host UUID and its own name. A veth pair joins the two; nothing of it is seen outside.
Processes stay in the machine's pid namespace, where vftrace sees them, unless `own_pids` is set, which
is how a KubeVirt pod runs libvirtd and QEMU.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.libvirt.keeper import inhabitants

KEEPER = Path(__file__).with_name("keeper.py")
ADDRESSES = {"a": "192.0.2.1", "b": "192.0.2.2"}
LIBVIRTD = "libvirtd"

_TIMEOUT = 60.0

# No controllers, no security drivers and no namespaces of QEMU's own: a host here is a namespace already.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
seccomp_sandbox = 0
stdio_handler = "file"
"""

# The monitor's log is the truth: QEMU_MONITOR_SEND_MSG, _RECV_REPLY and _RECV_EVENT with QEMU's own stamps.
LIBVIRTD_CONF = """\
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
listen_addr = "0.0.0.0"
host_uuid = "{uuid}"
log_filters = "2:qemu.qemu_monitor 1:qemu.qemu_process 3:*"
log_outputs = "1:file:{log}"
keepalive_interval = {keepalive}
keepalive_count = {keepalive}
"""

QEMU_USER = {
    "passwd": "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
    "group": "libvirt-qemu:x:64055:\n",
}

KEEPALIVE = 5
"""Both the seconds between two pings of a connection and how many may go unanswered."""


class HostError(Exception):
    """A host or its daemon did not do what the test needs."""


@dataclass
class Host:
    """One of the two hosts; `name` is "a" or "b"."""

    name: str
    directory: Path
    own_pids: bool
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    keeper: "subprocess.Popen[str] | None" = None
    daemon: "subprocess.Popen[bytes] | None" = None
    pid: int = 0
    """The keeper's pid, in the machine's pid namespace."""

    @property
    def address(self) -> str:
        """Its address on the network between the two."""
        return ADDRESSES[self.name]

    @property
    def log(self) -> Path:
        """libvirtd's log, with the monitors' traffic."""
        return self.directory / "libvirtd.log"

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` on this host."""
        pids = ("--pid",) if self.own_pids else ()
        return ["nsenter", "--target", str(self.pid), "--mount", "--net", "--uts", *pids, *command]

    def run(
        self, *command: str, check: bool = True, timeout: float = _TIMEOUT
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program on this host to its end."""
        done = subprocess.run(
            self.inside(*command),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise HostError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}")
        return done

    def virsh(self, *words: str, check: bool = True) -> str:
        """What `virsh` on this host prints."""
        return self.run(*self.virsh_command(*words), check=check).stdout

    def virsh_command(self, *words: str) -> list[str]:
        """The words of a virsh call, to be run on this host."""
        return ["virsh", "--connect", "qemu:///system", *words]

    def start(self) -> None:
        """Write the host's own files and make its namespaces."""
        self._write_etc(self.directory / "etc")
        pids = ("--pid", "--fork", "--mount-proc") if self.own_pids else ()
        self.keeper = subprocess.Popen(
            [
                *("unshare", "--mount", "--net", "--uts", *pids),
                *(sys.executable, str(KEEPER), str(self.directory), f"host-{self.name}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C in the terminal reaches the test, which ends its hosts in order.
            start_new_session=True,
        )
        assert self.keeper.stdout is not None
        if self.keeper.stdout.readline() != "ready\n":
            raise HostError(f"{self.name}: the namespaces cannot be made (see above)")
        self.pid = _child(self.keeper.pid) if self.own_pids else self.keeper.pid

    def _write_etc(self, etc: Path) -> None:
        (etc / "libvirt").mkdir(parents=True)
        (etc / "libvirt/qemu.conf").write_text(QEMU_CONF)
        settings = LIBVIRTD_CONF.format(uuid=self.uuid, log=self.log, keepalive=KEEPALIVE)
        (etc / "libvirt/libvirtd.conf").write_text(settings)
        names = [f"{address} host-{name}\n" for name, address in ADDRESSES.items()]
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        # libvirtd looks its default user up before it reads its configuration.
        for name, line in QEMU_USER.items():
            (etc / name).write_text(Path(f"/etc/{name}").read_text() + line)

    def start_daemon(self) -> None:
        """Start libvirtd and wait until it answers."""
        with (self.directory / "libvirtd.messages").open("ab") as messages:
            self.daemon = subprocess.Popen(
                self.inside(LIBVIRTD, "--listen"),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                start_new_session=True,
            )
        deadline = time.monotonic() + _TIMEOUT
        while not self.virsh("version", check=False):
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                said = (self.directory / "libvirtd.messages").read_text() + self.log.read_text()
                raise HostError(f"{self.name}: libvirtd does not answer: {said[-500:]}")
            time.sleep(0.05)

    def answers(self) -> bool:
        """Whether libvirtd is there."""
        return self.daemon is not None and self.daemon.poll() is None

    def signal_daemon(self, number: signal.Signals) -> None:
        """Send a signal to libvirtd itself."""
        assert self.daemon is not None
        pid = _child(self.daemon.pid) if self.own_pids else self.daemon.pid
        subprocess.run(["kill", f"-{int(number)}", str(pid)], check=True)
        if number == signal.SIGKILL:
            self.daemon.wait(_TIMEOUT)

    def qemu_pid(self, domain: str) -> int | None:
        """The pid of the domain's QEMU here, in the machine's pid namespace."""
        return next(iter(self.qemus(domain)), None)

    def qemus(self, domain: str | None = None) -> list[int]:
        """The QEMUs on this host, of one domain or of all."""
        return [pid for pid in sorted(inhabitants(self.pid)) if _is_qemu(pid, domain)]

    def end(self) -> None:
        """End every process of the host, and with them its namespaces."""
        if self.keeper is None:
            return
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        try:
            self.keeper.wait(_TIMEOUT)
        finally:
            self.keeper.kill()
            self.keeper.wait()
            if self.daemon is not None:
                self.daemon.wait(_TIMEOUT)


@dataclass(frozen=True)
class Pair:
    """Host a, host b, and a directory both see under the same name."""

    a: Host
    b: Host
    shared: Path

    @property
    def hosts(self) -> tuple[Host, Host]:
        """Both."""
        return self.a, self.b

    def other(self, host: Host) -> Host:
        """The one that `host` is not."""
        return self.b if host is self.a else self.a

    def at(self, name: str) -> Host:
        """The host of this name."""
        return self.a if name == "a" else self.b


@contextmanager
def two_hosts(own_pids: bool = False) -> Iterator[Pair]:
    """The two hosts, their daemons running; everything is gone afterwards."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="vftrace-libvirt-"))
        stack.callback(shutil.rmtree, directory)
        shared = directory / "shared"
        shared.mkdir()
        a, b = (Host(name, directory / name, own_pids) for name in ADDRESSES)
        for host in (a, b):
            stack.callback(host.end)
            host.start()
        _join(a, b)
        for host in (a, b):
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "between")
            host.run("ip", "link", "set", "between", "up")
        a.start_daemon()
        _share_capabilities(a, b)
        b.start_daemon()
        yield Pair(a, b, shared)


def _join(a: Host, b: Host) -> None:
    """A veth pair, each end made in its host's own network."""
    veth = ["ip", "link", "add", "between", "type", "veth", "peer", "between", "netns", str(b.pid)]
    # Only in a's network: `ip` finds b's by a pid of the machine's pid namespace.
    subprocess.run(["nsenter", "--target", str(a.pid), "--net", *veth], check=True)


def _share_capabilities(source: Host, destination: Host) -> None:
    """Hand on what the first daemon found out about QEMU, which takes a second or more to ask."""
    cache = "var/cache/libvirt"
    if (source.directory / cache).exists():
        destination.run("mkdir", "-p", f"/{cache}")
        copied = ["cp", "-a", f"{source.directory}/{cache}/.", f"/{cache}/"]
        destination.run(*copied)


def _is_qemu(pid: int, domain: str | None) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False
    if not Path(words[0]).name.startswith("qemu-system") or "-uuid" not in words:
        return False
    name = words[words.index("-name") + 1] if "-name" in words else ""
    return domain is None or f"guest={domain}" in name.split(",")


def _child(pid: int) -> int:
    """The only child of a process: what `unshare --fork` or `nsenter --pid` started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        raise HostError(f"process {pid} has {len(children)} children")
    return int(children[0])
