# SPDX-License-Identifier: MIT
"""Jobs about the mailbox of a card and its virtual functions: igb's on the emulated card, with igbvf and
ourselves as the other side, and ixgbe's own code over memory (modules/fakeixgbe), message by message."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from vftlab.devices import PCI, PF
from vftlab.function import OpenFunction
from vftlab.job import Job, JobError, boottime_ns, modprobe, say, wait_for
from vftlab.vm import migrate, migration_truth, vm, vm_truth, wait_resumed

FAKE = Path("/sys/kernel/debug/fakeixgbe")
FAKE_PF = "0000:00:00.0"

# Those of docs/profiles/assisted-ixgbe.toml.
MIG_STOP, MIG_SAVE, MIG_RESTORE, MIG_RESUME = 0x41, 0x42, 0x43, 0x44
COOKIE = 0xC001CAFE

KPROBES = Path("/sys/kernel/debug/kprobes/list")
VIRTCHNL_KEY = bytes(range(0xA0, 0xA0 + 52))


def ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if result.returncode:
        raise JobError(f"ip {' '.join(words)}: {result.stderr.strip()}")


def netdev(device: Path) -> str:
    wait_for(f"an interface of {device.name}", 20, lambda: any((device / "net").glob("*")))
    return next((device / "net").iterdir()).name


def mailbox_igb(job: Job) -> None:
    """A VF of igb with igbvf: bound, up, MAC, VLAN, frame size, refused, reset; then one of our own."""
    modprobe("igb", "igbvf", "8021q", "vfio-pci")
    card = PCI / "devices" / PF
    pf = netdev(card)
    carrier = Path("/sys/class/net") / pf / "carrier"

    def pf_up() -> None:
        ip("link", "set", pf, "up")
        wait_for("igb's link", 20, lambda: carrier.read_text().strip() == "1")

    pf_up()
    # Making VFs resets the card, and a VF probed meanwhile finds no PF (6.1): the driver gets it afterwards.
    (card / "sriov_drivers_autoprobe").write_text("0")
    (card / "sriov_numvfs").write_text("1")
    time.sleep(1)
    pf_up()
    address = (card / "virtfn0").resolve().name
    steps: list[dict[str, object]] = []

    def step(what: str, act: Callable[[], object], seconds: float = 1.0, **facts: object) -> None:
        # Said before it is done: what follows from it comes later.
        steps.append({"at_ns": boottime_ns(), "what": what, **facts})
        say(what)
        act()
        time.sleep(seconds)

    def bind() -> None:
        (PCI / "devices" / address / "driver_override").write_text("igbvf")
        (PCI / "drivers_probe").write_text(address)

    step("bind", bind, 2.0)
    vf = netdev(card / "virtfn0")
    mtu, mac = 1400, "02:00:00:00:00:77"
    step("up", lambda: ip("link", "set", vf, "up"), 2.0)
    step("mac", lambda: ip("link", "set", vf, "address", mac), mac=mac)

    def add_vlan() -> None:
        ip("link", "add", "link", vf, "name", "v100", "type", "vlan", "id", "100")
        ip("link", "set", "v100", "up")

    step("vlan", add_vlan, vlan=100)
    step("vlan-gone", lambda: ip("link", "del", "v100"), vlan=100)
    step("mtu", lambda: ip("link", "set", vf, "mtu", str(mtu)), 2.0, mtu=mtu)
    # From now on the host decides on the MAC, and the guest's own is refused.
    host_mac = "02:11:22:33:44:55"
    step("host-mac", lambda: ip("link", "set", pf, "vf", "0", "mac", host_mac), mac=host_mac)
    step(
        "mac-refused",
        lambda: subprocess.run(
            ["ip", "link", "set", vf, "address", "02:00:00:00:00:78"],
            capture_output=True,
            check=False,
        ),
        mac="02:00:00:00:00:78",
    )
    step("pf-down", lambda: ip("link", "set", pf, "down"))
    step("pf-up", lambda: ip("link", "set", pf, "up"), 4.0)
    step("unbind", lambda: (PCI / "drivers/igbvf/unbind").write_text(address))
    # igbvf never sends SET_PROMISC, so this job sends the other messages itself, through vfio-pci.
    steps.append({"at_ns": boottime_ns(), "what": "vfio-open"})
    with OpenFunction(address) as function:
        time.sleep(1)
        asked = [
            {"at_ns": boottime_ns(), "words": words, "answer": function.ask(*words)}
            for words in (
                [1, 0, 0],
                [6 | 2 << 16],
                [6 | 1 << 16],
                [0x42, 0x11111111],
                [4 | 1 << 16, 7],
            )
        ]
        say(f"asked {len(asked)} things")
        step("vfio-reset", function.reset)
        steps.append({"at_ns": boottime_ns(), "what": "vfio-close"})
    time.sleep(1)
    (card / "sriov_drivers_autoprobe").write_text("1")
    job.write_truth(
        {"pf": PF, "vf": 0, "address": address, "driver": "igb", "steps": steps, "asked": asked}
    )


def _control(command: str) -> str:
    (FAKE / "control").write_text(command + "\n")
    return (FAKE / "answer").read_text().strip()


def script() -> list[tuple[str, str]]:
    """What is put into the mailboxes: a name for each, and the module's command.

    Every opcode of ixgbe_mbx.h, with every API version, then malformed ones and unknown ones.
    """
    key = " ".join(f"dead{number:04x}" for number in range(5))
    return [
        ("before a reset", "send 0 0009"),
        ("VF 0 has a MAC", "send 0 00000001"),
        ("VF 1 has none", "send 1 00000001"),
        *((f"API {n}", f"send {vf} 8 {n:x}") for vf in (0, 1) for n in range(8, -1, -1)),
        ("API 1.4", "send 0 8 5"),
        ("API that nobody knows", "send 1 8 99"),
        ("API 1.2", "send 1 8 3"),
        ("queues", "send 0 9"),
        ("xcast none", "send 0 c 0"),
        ("xcast multi", "send 0 c 1"),
        ("xcast allmulti", "send 0 c 2"),
        ("xcast promisc", "send 0 c 3"),
        ("multicast", "send 0 00030003 01230abc 00000fff"),
        ("MAC the host gave", "send 0 2 00000002 00001000"),
        ("MAC the host did not give", "send 0 2 00000002 00009900"),
        ("own MAC", "send 1 2 00000002 00002100"),
        ("MAC of a group", "send 1 2 00000001 00002100"),
        ("add a VLAN", "send 0 00010004 00000064"),
        ("delete it", "send 0 00000004 00000064"),
        ("add another", "send 1 00010004 00000fff"),
        ("frame size", "send 0 5 000005ee"),
        ("frame size too large", "send 0 5 00010000"),
        ("no MAC filters", "send 0 00000006"),
        ("a MAC filter", "send 0 00010006 33221102 00005544"),
        ("table", "send 0 a"),
        ("RSS key", "send 0 b"),
        # What the key left in the memory stands behind these.
        ("queues after the key", "send 0 9"),
        ("MAC that is the key", "send 0 2"),
        ("IPsec that is the key", "send 0 d"),
        ("key again", "send 0 b"),
        ("VLAN after the key", "send 0 00010004 00000065"),
        ("multicast that claims more than it has", "send 0 001e0003"),
        ("unknown after the key", "send 0 0000007f"),
        ("link", "send 0 10"),
        ("PF's link", "send 0 11"),
        ("features", "send 0 12 00000003"),
        ("IPsec add", f"send 0 d 01020304 02003201 c0a80001 0 0 0 {key}"),
        ("IPsec delete", "send 0 e 00000001"),
        ("VLAN after IPsec", "send 0 00010004 00000066"),
        ("no opcode", "send 1 0"),
        ("unknown opcode", "send 1 00420042 11111111"),
        ("the largest opcode", "send 1 0000ffff"),
        ("all bits", "send 1 ffffffff ffffffff"),
        ("an answer nobody asked for", "send 1 80000002"),
        ("with clear to send", "send 1 20000009"),
        ("VF 3 may not have the key", "send 3 1"),
        ("VF 3's API", "send 3 8 5"),
        ("VF 3's key", "send 3 b"),
        ("function reset", "reset 0"),
        ("after it", "send 0 9"),
        ("reset again", "send 0 1"),
    ]


def mailbox_ixgbe(job: Job) -> None:
    """The real ixgbe.ko answers every message there is, good and bad, over registers of memory."""
    modprobe("ixgbe", "fakeixgbe")
    rss_key = _control("key")
    log: list[dict[str, object]] = []
    for what, command in script():
        at_ns = boottime_ns()
        status, *memory = _control(command).split()
        verb, vf, *words = command.split()
        entry: dict[str, object] = {"at_ns": at_ns, "what": what, "verb": verb, "vf": int(vf)}
        log.append(
            entry
            | {
                "words": [int(word, 16) for word in words],
                "replied": status == "replied",
                "memory": [int(word, 16) for word in memory],
            }
        )
    at_ns = boottime_ns()
    _control("ping")
    log.append({"at_ns": at_ns, "what": "ping", "verb": "ping"})
    time.sleep(1)
    say(f"{len(log)} commands, {sum(bool(entry.get('replied')) for entry in log)} replies")
    job.write_truth(
        {
            "pf": FAKE_PF,
            "driver": "ixgbe",
            "vfs": 4,
            "log": log,
            "rss_key": rss_key,
            "keys": [rss_key],
        }
    )


def mailbox_flood(job: Job) -> None:
    """One VF asks as fast as it can for ten seconds: nothing may be lost uncounted."""
    modprobe("ixgbe", "fakeixgbe")
    _control("send 1 1")
    sent, begun = 0, time.monotonic()
    while time.monotonic() - begun < 10:
        _control("flood 1 2000 00000009")
        sent += 2000
    seconds = time.monotonic() - begun
    say(f"{sent} messages in {seconds:.1f} s: {sent / seconds:.0f} a second")
    time.sleep(1)
    job.write_truth(
        {"pf": FAKE_PF, "driver": "ixgbe", "vf": 1, "requests": sent + 1, "replies": sent + 1}
    )


def mailbox_assisted(job: Job) -> None:
    """PF and VF help a migration by mailbox, as the patches of 2015 did: stop, save, restore, resume.

    The VMs and their migration are real, the VF's messages are put into fakeixgbe by us: no driver has
    them. VF 2 pings meanwhile and its own talk is ordinary.
    """
    modprobe("kvm-amd", "ixgbe", "fakeixgbe")
    log: list[dict[str, object]] = []

    def say_words(verb: str, vf: int, *words: int) -> None:
        log.append({"at_ns": boottime_ns(), "verb": verb, "vf": vf, "words": list(words)})
        answer = _control(" ".join([f"{verb} {vf}", *(f"{word:x}" for word in words)]))
        if answer.split()[0] != "replied":
            raise JobError(f"{log[-1]}: {answer}")

    def ordinary(vf: int) -> None:
        for words in ([1], [8, 5], [9], [0xC, 1], [5, 1518]):
            say_words("send", vf, *words)

    ordinary(0)
    ordinary(2)
    with (
        vm("source", job.results) as source,
        vm("destination", job.results, incoming=True, options=["-S"]) as destination,
    ):
        time.sleep(1)

        def stop() -> None:
            say_words("vendor", 0, MIG_STOP, 1, COOKIE)
            say_words("vendor", 0, MIG_SAVE, 4096)
            say_words("send", 2, 0xC, 2)

        migration = migrate(source, during=stop)
        say_words("vendor", 1, MIG_RESTORE, COOKIE, 4096)
        destination.monitor("cont")
        wait_resumed(destination)
        say_words("vendor", 1, MIG_RESUME)
        _control("ping")
        say_words("send", 2, 0xC, 1)
        if migration.status != "completed":
            raise JobError(f"the migration is {migration.status}")
        job.write_truth(
            {
                "vms": [vm_truth(source, "source"), vm_truth(destination, "destination")],
                "migration": migration_truth(migration),
                "pf": FAKE_PF,
                "driver": "ixgbe",
                "log": log,
            }
        )


def messages(driver: str, vf: int = 1) -> list[tuple[str, int, bytes]]:
    """What iavf sends in its life (drivers/net/ethernet/intel/iavf/iavf_virtchnl.c), and messages that are wrong."""
    # ice's VSI is 1 for every VF, i40e's is the VF's own (modules/fakei40e, fakeice).
    vsi = 1 if driver == "ice" else 101 + vf
    address = struct.pack("<HH", vsi, 1) + bytes.fromhex("02aabbccdd01") + b"\1\0" + bytes(8)
    queues = struct.pack("<HHII", vsi, 0, 15, 15)
    rings = b"".join(
        struct.pack("<HHHHQQ", vsi, n, 512, 0, 0x100000 + n * 0x4000, 0)
        + struct.pack("<HHIHHIIBBHQiI", vsi, n, 512, 0, 0, 2048, 1522, 0, 0, 0, 0x200000, 0, 0)
        for n in range(4)
    )
    vectors = b"".join(struct.pack("<HHHHHH", vsi, n, 3, 3, 0, 1) for n in (1, 2))
    return [
        ("reset", 2, b""),
        ("version", 1, struct.pack("<II", 1, 1)),
        ("resources", 3, struct.pack("<I", 0x1B7B01C9)),
        ("vectors", 7, struct.pack("<H", 2) + vectors + bytes(12)),
        ("address", 10, address),
        ("vlan", 12, struct.pack("<HHHH", vsi, 1, 100, 0)),
        ("rings", 6, struct.pack("<HHI", vsi, 4, 0) + rings + bytes(64)),
        ("up", 8, queues),
        ("hash", 25, b""),
        ("hash", 26, struct.pack("<Q", 0xF)),
        ("key", 23, struct.pack("<HH", vsi, 52) + VIRTCHNL_KEY + b"\0"),
        ("table", 24, struct.pack("<HH", vsi, 64) + bytes(65)),
        ("promiscuous", 14, struct.pack("<HH", vsi, 2)),
        ("statistics", 15, struct.pack("<HHII", vsi, 0, 0, 0)),
        ("down", 9, queues),
        ("address gone", 11, address),
        ("not negotiated", 51, b""),
        # What stands behind it in the driver's buffer is the key's message, or another VF's.
        ("unknown", 119, b"\1\2"),
        ("too short", 1, b"\1"),
    ]


RESETS = 20
"""As many in a minute are a loop of a driver that never configures (vftrace/analysis/devices/vf_history.py)."""
LOOP = (
    ("version", 1, struct.pack("<II", 1, 1)),
    ("resources", 3, struct.pack("<I", 0x1B7B01C9)),
    ("reset", 2, b""),
)


def wait_for_probes(function: str) -> None:
    """Wait until a tracer has attached to a driver's function, its last one; without a tracer, some seconds."""
    until = time.monotonic() + 15
    while time.monotonic() < until and function not in KPROBES.read_text():
        time.sleep(0.2)
    # The return probe comes next.
    time.sleep(1)


def _virtchnl(job: Job, driver: str) -> None:
    """The real driver answers the messages of an iavf over memory; the truth is what its firmware was given."""
    modprobe(driver, f"fake{driver}")
    wait_for_probes(f"{driver}_reset_vf")
    directory = Path(f"/sys/kernel/debug/fake{driver}")
    log: list[dict[str, object]] = []

    def command(what: str, text: str, **facts: object) -> None:
        at_ns = boottime_ns()
        (directory / "control").write_text(text)
        *lines, _ = (directory / "answer").read_text().strip().splitlines()
        answers = [[int(word) for word in line.split()[:4]] for line in lines]
        log.append({"at_ns": at_ns, "what": what, **facts, "answers": answers})

    for what, opcode, content in messages(driver):
        facts = {"vf": 1, "opcode": opcode, "content": content.hex()}
        command(what, f"send 1 {opcode} {content.hex()}", **facts)
    for what in ("flr 1", "link 0", "link 1", "notify"):
        command(what, what)
    # Another VF's driver negotiates, gives up and begins anew (ethernet-linux-ice#57).
    for _ in range(RESETS):
        for what, opcode, content in LOOP:
            facts = {"vf": 2, "opcode": opcode, "content": content.hex()}
            command(what, f"send 2 {opcode} {content.hex()}", **facts)
    time.sleep(1)
    say(f"{len(log)} commands, {sum(len(entry['answers']) for entry in log)} messages to VFs")  # type: ignore[arg-type,misc]
    job.write_truth({"pf": FAKE_PF, "driver": driver, "log": log, "keys": [VIRTCHNL_KEY.hex()]})


def mailbox_i40e(job: Job) -> None:
    """The real i40e.ko answers the messages of an iavf, good and bad, over registers of memory."""
    _virtchnl(job, "i40e")


def mailbox_ice(job: Job) -> None:
    """The real ice.ko answers the messages of an iavf, good and bad, over registers of memory."""
    _virtchnl(job, "ice")


JOBS: dict[str, Callable[[Job], None]] = {
    "mailbox-igb": mailbox_igb,
    "mailbox-ixgbe": mailbox_ixgbe,
    "mailbox-i40e": mailbox_i40e,
    "mailbox-ice": mailbox_ice,
    "mailbox-assisted": mailbox_assisted,
    "mailbox-flood": mailbox_flood,
}
