# SPDX-License-Identifier: MIT
"""Runs inside one of the two hosts: its network, vftrace, and the guest's QEMU."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vftlab.agent import serve
from vftlab.devices import PF, Steer, functions
from vftlab.hosts import macs, management_address
from vftlab.job import TRACER_READY_S, JobError, boottime_ns, modprobe, say, wait_for
from vftlab.qmp import Monitor

from experiment.cases import CASES, DEVICE, GUEST, VF_MAC, Place

RESULTS = Path("/results")
GUEST_FILES = Path("/tmp/guest")
TAP, BRIDGE = "tap0", "br0"
PORT = 4444
GUEST_MIB = 128
DOWNTIME_LIMIT_MS = 300
# More, and on one emulated processor the guest is hardly run while its memory is sent.
BYTES_PER_SECOND = 4 << 20
MIGRATION_S = 200.0
UNPLUG_S = 60.0
BOOT_S = 180.0
STEER_BYTES = (1 << 20, 1 << 18)
ENDED = ("completed", "failed", "cancelled")


def _ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if result.returncode:
        raise JobError(f"ip {' '.join(words)}: {result.stderr.strip()}")


def _interface(mac: str) -> str:
    """The network interface with that address."""

    def found() -> list[str]:
        places = Path("/sys/class/net").glob("*/address")
        return [place.parent.name for place in places if place.read_text().strip() == mac]

    wait_for(f"an interface {mac}", 20, found)
    return found()[0]


class Experimenter:
    """The state of one host between the outside's commands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.place = Place(TAP, "", "")
        self.tracer: subprocess.Popen[bytes] | None = None
        self.qemu: subprocess.Popen[bytes] | None = None
        self.monitor: Monitor | None = None
        self.serial = Path()
        self.run = ""

    @property
    def qmp(self) -> Monitor:
        if self.monitor is None:
            raise JobError("no guest runs")
        return self.monitor

    # -- once -----------------------------------------------------------------------------------

    def prepare(self) -> dict[str, object]:
        """The host's network and devices."""
        socket.sethostname(f"host-{self.name}")
        modprobe("kvm-amd", "vfio-pci", "mdev", "igb", "virtio_net", "tun", "bridge", "vftsteer")
        mac = macs(self.name)
        management = _interface(mac["management"])
        _ip("link", "set", management, "mtu", "9000", "up")
        _ip("addr", "add", f"{management_address(self.name)}/24", "dev", management)
        _ip("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
        uplink = _interface(mac["bridge"])
        _ip("tuntap", "add", TAP, "mode", "tap")
        for port in (uplink, TAP):
            _ip("link", "set", port, "master", BRIDGE, "up")
        _ip("link", "set", BRIDGE, "up")
        (address,) = functions(1)
        card = _interface(mac["card"])
        # The host decides on the VF's address, so that it is the same on both.
        _ip("link", "set", card, "vf", "0", "mac", VF_MAC)
        steer = Steer.create(NUMBERS[self.name], "precopy-p2p")
        self.place = Place(TAP, address, steer.name)
        before, after = STEER_BYTES
        steer.command(f"bytes {before} {after}")
        GUEST_FILES.mkdir()
        share = Path("/tmp/share")
        share.mkdir()
        options = "ro,trans=virtio,version=9p2000.L,cache=loose"
        subprocess.run(["mount", "-t", "9p", "-o", options, "guest", str(share)], check=True)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(share / name, GUEST_FILES / name)
        return {"pf": PF, "kernel": os.uname().release, **asdict(self.place)}

    def record(self) -> float:
        """Start vftrace; how long it took to be ready, s."""
        begun = time.monotonic()
        log = RESULTS / "vftrace.err"
        command = [sys.executable, "-m", "vftrace", "record"]
        command += [*os.environ.get("VFTRACE_OPTIONS", "").split(), "-o", str(RESULTS / "host.vft")]
        with log.open("w") as errors:
            tracer = subprocess.Popen(command, stderr=errors, stdout=errors)
        self.tracer = tracer

        def ready() -> bool:
            if tracer.poll() is not None:
                raise JobError(f"vftrace ended: {log.read_text().strip()}")
            return "ready" in log.read_text().splitlines()

        wait_for("vftrace ready", TRACER_READY_S, ready)
        say(f"vftrace ready after {time.monotonic() - begun:.1f} s")
        return time.monotonic() - begun

    def stop_recording(self) -> None:
        """End vftrace; its recording is whole after that."""
        if self.tracer is not None:
            self.tracer.send_signal(signal.SIGINT)
            if self.tracer.wait(60) != 0:
                raise JobError(f"vftrace failed: {(RESULTS / 'vftrace.err').read_text().strip()}")

    # -- for each run ---------------------------------------------------------------------------

    def start(self, case: str, run: str, uuid: str, *, incoming: bool) -> None:
        """Start the guest's QEMU."""
        way = CASES[case]
        self.run = run
        self.serial = RESULTS / f"{run}.serial"
        monitor = Path("/tmp") / f"{run}.qmp"
        append = [
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check",
            f"random.trust_cpu=on audit=0 apparmor=0 address={GUEST} {way.options}",
        ]
        command = [
            *("qemu-system-x86_64", "-name", f"guest={run}", "-uuid", uuid),
            *("-M", way.machine, "-accel", "kvm", "-cpu", "qemu64", "-m", str(GUEST_MIB)),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-kernel", str(GUEST_FILES / "vmlinuz"), "-initrd", str(GUEST_FILES / "initrd.img")),
            *("-append", " ".join(append), "-serial", f"file:{self.serial}"),
            *("-qmp", f"unix:{monitor},server=on,wait=off"),
            *way.words(self.place, incoming=incoming),
        ]
        if incoming:
            command += ["-incoming", f"tcp:{management_address(self.name)}:{PORT}"]
        log = RESULTS / f"{run}.qemu"
        with log.open("wb") as out:
            self.qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            self.monitor = Monitor(monitor)
        except JobError as failure:
            raise JobError(f"{failure}; it said: {log.read_text().strip()}") from None
        wanted = [{"capability": name, "state": True} for name in ("events", "return-path")]
        self.qmp("migrate-set-capabilities", capabilities=wanted)

    def booted(self, lines: int) -> list[str]:
        """Wait until the guest has set up so many network devices; what it said."""
        what = re.compile(r"^guest: .*", re.MULTILINE)
        done = re.compile(r"^guest: \S+ (net|slave) ", re.MULTILINE)

        def text() -> str:
            return self.serial.read_text(errors="replace") if self.serial.exists() else ""

        wait_for(
            "the guest's network",
            BOOT_S,
            lambda: len(done.findall(text())) >= lines or self._gone(),
        )
        return [line.strip() for line in what.findall(text())]

    def linked(self) -> None:
        """Wait until the guest reports here that its VF has its link."""
        wait_for("the VF's link", BOOT_S, lambda: " has its link" in self._serial() or self._gone())

    def _serial(self) -> str:
        return self.serial.read_text(errors="replace") if self.serial.is_file() else ""

    def _gone(self) -> bool:
        if self.qemu is None or self.qemu.poll() is not None:
            said = (RESULTS / f"{self.run}.qemu").read_text().strip()
            raise JobError(f"the guest's QEMU has ended: {said}")
        return False

    def unplug(self) -> dict[str, int]:
        """Request that the guest releases the VF, and wait until it has."""
        asked = boottime_ns()
        self.qmp("device_del", id=DEVICE)
        event = self.qmp.wait_event("DEVICE_DELETED", UNPLUG_S)
        return {"asked_at_ns": asked, "done_at_ns": event.at_ns}

    def plug_when_running(self) -> dict[str, int]:
        """Put the VF in as soon as the destination runs."""
        resumed = self.qmp.wait_event("RESUME", MIGRATION_S)
        asked = boottime_ns()
        self.qmp("device_add", driver="vfio-pci", host=self.place.vf, id=DEVICE)
        return {"resumed_at_ns": resumed.at_ns, "asked_at_ns": asked, "done_at_ns": boottime_ns()}

    def migrate(self, to: str) -> dict[str, Any]:
        """Migrate to the host `to` and wait for the end: QEMU's words, times and figures."""
        qmp = self.qmp
        limits = {"max-bandwidth": BYTES_PER_SECOND, "downtime-limit": DOWNTIME_LIMIT_MS}
        qmp("migrate-set-parameters", **limits)
        asked = boottime_ns()
        qmp("migrate", uri=f"tcp:{management_address(to)}:{PORT}")
        end = time.monotonic() + MIGRATION_S
        statuses: list[dict[str, object]] = []
        while True:
            answer = qmp("query-migrate")
            status = answer.get("status")
            if not statuses or statuses[-1]["status"] != status:
                statuses.append({"at_ns": boottime_ns(), "status": status})
                say(f"{self.run}: migration {status} {answer.get('error-desc', '')}".rstrip())
            if status in ENDED:
                return {"asked_at_ns": asked, "statuses": statuses, "query_migrate": answer}
            if time.monotonic() > end:
                raise JobError(f"migration still {status} after {MIGRATION_S:.0f} s")
            time.sleep(0.1)

    def told(self) -> dict[str, Any]:
        """Return the events of the guest's QEMU and the reports of the guest so far."""
        events: list[dict[str, object]] = []
        if self.monitor is not None:
            events = [
                {"at_ns": event.at_ns, "event": event.name, "data": event.data}
                for event in list(self.monitor.events)
            ]
        lines = [line for line in self._serial().splitlines() if line.startswith("guest: ")]
        pid = self.qemu.pid if self.qemu is not None else None
        return {"pid": pid, "events": events, "guest": lines}

    def end(self) -> dict[str, Any]:
        """End the guest's QEMU, if there is one; returns its events."""
        told = self.told()
        if self.qemu is not None:
            self.qemu.terminate()
            try:
                self.qemu.wait(20)
            except subprocess.TimeoutExpired:
                self.qemu.kill()
                self.qemu.wait()
        self.qemu = self.monitor = None
        return told


NUMBERS = {"a": 1, "b": 2}
COMMANDS = (
    *("prepare", "record", "stop_recording"),
    *("start", "booted", "linked", "unplug", "plug_when_running", "migrate", "told", "end"),
)


def main(name: str) -> int:
    """Serve the outside."""
    here = Experimenter(name)
    serve({command: getattr(here, command) for command in COMMANDS})
    return 0
