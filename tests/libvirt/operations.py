# SPDX-License-Identifier: MIT
"""The table of operations on real domains by libvirt, each with its truth.

Each is a small function. `expect` is what happened, as libvirt, QEMU and the operation itself have it,
in order: never vftrace's own output. Names are stable: recordings and tests are kept under them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from tests.libvirt.domains import BUSY, CALM, STEADY, Domain
from tests.libvirt.play import PROXIED, Play
from vftrace.demo.guest import DirtySet

Kind = Literal["move", "save", "load"]
Outcome = Literal["completed", "failed", "cancelled"]

SLOWLY = ("--bandwidth", "8")
"""MiB/s, as the demo's slow network: such a move lasts long enough to be disturbed."""


@dataclass(frozen=True)
class Expected:
    """One migration, save or load that takes place.

    `cause` None: whatever is given. `qemu` is the last status QEMU must have reported (None: not asked). `compare`
    names the figures that QEMU has as well; `why` explains where QEMU's word is not the outcome.
    """

    kind: Kind
    outcome: Outcome
    cause: str | None = None
    qemu: str | None = None
    compare: frozenset[str] = frozenset({"downtime", "rounds", "bytes"})
    why: str = ""


@dataclass(frozen=True)
class Operation:
    """One row of the table."""

    name: str
    play: Callable[[Play], None]
    what: str
    expect: tuple[Expected, ...]
    own_pids: bool = False
    before: Callable[[Play], None] | None = None
    """What is done before vftrace begins to record."""
    known: str = ""
    """Why vftrace is still wrong here."""


OPERATIONS: dict[str, Operation] = {}

MOVED = Expected("move", "completed", qemu="completed")
SAVED = Expected("save", "completed", qemu="completed", compare=frozenset({"rounds", "bytes"}))
SAVED_LIVE = Expected("save", "completed", qemu="completed")
LOADED = Expected("load", "completed", compare=frozenset())
CANCELLED = Expected("move", "cancelled", "cancelled", "cancelled", compare=frozenset({"rounds"}))
RING = replace(MOVED, compare=frozenset({"downtime", "fewer-rounds", "bytes"}))
"""Of a dirty ring a sync that finds nothing resets nothing: it is not seen."""

NOT_STOPPED = replace(MOVED, compare=frozenset({"rounds", "bytes", "total"}))
"""The guest was stopped before and after: the move has no downtime of its own."""

BROKEN = Expected("move", "failed", "destination-ended", "failed", compare=frozenset({"rounds"}))


def operation(
    name: str,
    *expect: Expected,
    own_pids: bool = False,
    before: Callable[[Play], None] | None = None,
    known: str = "",
) -> Callable[[Callable[[Play], None]], Callable[[Play], None]]:
    """Put a function into the table; its docstring is the row's description."""

    def add(play: Callable[[Play], None]) -> Callable[[Play], None]:
        what = (play.__doc__ or "").strip().splitlines()[0].rstrip(".")
        OPERATIONS[name] = Operation(name, play, what, expect, own_pids, before, known)
        return play

    return add


def _domain(
    play: Play,
    dirty: DirtySet = CALM,
    *,
    disk: bool = False,
    dirty_ring: bool = False,
) -> Domain:
    return play.create(Domain("lv-one", play.pair.shared, dirty, disk, dirty_ring))


def _steady(play: Play) -> None:
    _domain(play, STEADY)


# Moves that arrive.


@operation("direct", MOVED)
def direct(play: Play) -> None:
    """virsh talks to both daemons."""
    _domain(play, STEADY)
    play.migrate(*SLOWLY)


@operation("late", MOVED, before=lambda play: _steady(play))
def late(play: Play) -> None:
    """direct, of a domain that was there before vftrace."""
    play.migrate(*SLOWLY)


@operation("p2p", MOVED)
def p2p(play: Play) -> None:
    """The source's daemon talks to the destination's."""
    _domain(play, STEADY)
    play.migrate("--p2p", *SLOWLY)


@operation("tunnelled", MOVED)
def tunnelled(play: Play) -> None:
    """The stream goes through both daemons' own connection."""
    _domain(play, STEADY)
    play.migrate("--p2p", "--tunnelled", *SLOWLY)


@operation("parallel", MOVED)
def parallel(play: Play) -> None:
    """Two multifd channels."""
    _domain(play, STEADY)
    play.migrate("--parallel", "--parallel-connections", "2", *SLOWLY)


@operation("parallel-40", MOVED)
def parallel_40(play: Play) -> None:
    """Forty multifd channels."""
    _domain(play, STEADY)
    play.migrate("--parallel", "--parallel-connections", "40", *SLOWLY)


@operation("postcopy", MOVED)
def postcopy(play: Play) -> None:
    """The switch to post-copy by hand, in the second pass."""
    _domain(play, BUSY)
    moving = play.begin("--postcopy", *SLOWLY)
    play.wait_pass(2)
    play.a.virsh("migrate-postcopy", play.domain.name)
    play.answer(moving)


@operation("postcopy-after-precopy", MOVED)
def postcopy_after_precopy(play: Play) -> None:
    """virsh switches to post-copy after the first pass."""
    _domain(play, BUSY)
    play.migrate("--postcopy", "--postcopy-after-precopy", *SLOWLY)


@operation("postcopy-recover", MOVED)
def postcopy_recover(play: Play) -> None:
    """The network is reset in post-copy, and the move resumed."""
    _domain(play, BUSY)
    moving = play.begin("--postcopy", "--postcopy-bandwidth", "2", *SLOWLY)
    play.wait_pass(2)
    play.a.virsh("migrate-postcopy", play.domain.name)
    play.wait_status("postcopy-active")
    time.sleep(0.3)
    play.reset_network()
    play.wait_status("postcopy-paused")
    play.answer(moving, good=False)
    play.migrate("--postcopy", "--postcopy-resume")


@operation("auto-converge", MOVED)
def auto_converge(play: Play) -> None:
    """A guest that writes faster than the link is throttled until it fits."""
    _domain(play, BUSY)
    play.migrate(
        *("--auto-converge", "--auto-converge-initial", "60", "--auto-converge-increment", "30"),
        *SLOWLY,
    )


@operation("compressed", MOVED)
def compressed(play: Play) -> None:
    """XBZRLE: a page that is sent again goes as a difference."""
    _domain(play, BUSY)
    play.migrate("--compressed", "--comp-methods", "xbzrle", *SLOWLY)


@operation("compressed-mt", MOVED)
def compressed_mt(play: Play) -> None:
    """zlib in threads of their own."""
    _domain(play, STEADY)
    play.migrate("--compressed", "--comp-methods", "mt", *SLOWLY)


@operation("copy-storage", MOVED)
def copy_storage(play: Play) -> None:
    """The disk is mirrored over NBD before memory is."""
    _domain(play, STEADY, disk=True)
    play.migrate("--copy-storage-all", *SLOWLY)


@operation("suspend", MOVED)
def suspend(play: Play) -> None:
    """The destination stays suspended until virsh resumes it."""
    _domain(play)
    play.migrate("--suspend")
    time.sleep(0.5)
    play.b.virsh("resume", play.domain.name)


@operation("suspend-never", replace(MOVED, compare=frozenset({"rounds", "bytes"})))
def suspend_never(play: Play) -> None:
    """The destination stays suspended."""
    _domain(play)
    play.migrate("--suspend")
    time.sleep(0.5)


@operation("timeout-suspend", MOVED)
def timeout_suspend(play: Play) -> None:
    """virsh suspends the guest because the move takes longer than a second."""
    _domain(play, BUSY)
    play.migrate("--timeout", "1", "--timeout-suspend", *SLOWLY)


@operation("timeout-postcopy", MOVED)
def timeout_postcopy(play: Play) -> None:
    """virsh switches to post-copy because the move takes longer than a second."""
    _domain(play, BUSY)
    play.migrate("--postcopy", "--timeout", "1", "--timeout-postcopy", *SLOWLY)


@operation("suspended-meanwhile", MOVED)
def suspended_meanwhile(play: Play) -> None:
    """Somebody suspends the guest while it moves; libvirt resumes it there, as it ran before."""
    _domain(play, BUSY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(2)
    play.a.virsh("suspend", play.domain.name)
    play.answer(moving)


@operation("paused", NOT_STOPPED)
def paused(play: Play) -> None:
    """The guest was suspended before; it is resumed there by hand."""
    _domain(play)
    play.a.virsh("suspend", play.domain.name)
    time.sleep(0.3)
    play.migrate()
    time.sleep(0.5)
    play.b.virsh("resume", play.domain.name)


@operation("nonlive", MOVED)
def nonlive(play: Play) -> None:
    """Without --live the guest stands still from the beginning."""
    _domain(play)
    play.migrate("--no-live")


@operation("persistent", MOVED)
def persistent(play: Play) -> None:
    """A defined domain is defined there and undefined here."""
    domain = Domain("lv-one", play.pair.shared)
    play.domains.append(domain)
    domain.write()
    play.a.virsh("define", str(domain.xml))
    play.a.virsh("start", domain.name)
    play.wait_guest(play.a)
    play.migrate("--persistent", "--undefinesource")
    play.b.virsh("undefine", domain.name)


@operation("dname", MOVED)
def dname(play: Play) -> None:
    """The domain has another name there."""
    _domain(play)
    play.aliases.add("lv-another")
    play.migrate("--dname", "lv-another")


@operation("unix", MOVED)
def unix(play: Play) -> None:
    """The stream goes over a unix socket that both hosts see."""
    _domain(play, STEADY)
    path = play.pair.shared / "migration.sock"
    play.migrate("--migrateuri", f"unix://{path}", *SLOWLY)


@operation("proxied", MOVED)
def proxied(play: Play) -> None:
    """Each end is a unix socket of its own host, with a proxy between (KubeVirt)."""
    _proxied(play)


def _proxied(play: Play) -> None:
    _domain(play, STEADY)
    play.relay(PROXIED)
    play.migrate("--migrateuri", f"unix://{PROXIED}", *SLOWLY)


@operation("own-pids", MOVED, own_pids=True)
def own_pids(play: Play) -> None:
    """libvirtd and QEMU in a pid and mount namespace of their own."""
    _domain(play, STEADY)
    play.migrate(*SLOWLY)


@operation("kubevirt", MOVED, own_pids=True)
def kubevirt(play: Play) -> None:
    """own-pids and proxied, which is a KubeVirt pod."""
    _proxied(play)


@operation("two-at-once", MOVED, MOVED)
def two_at_once(play: Play) -> None:
    """Two domains move at the same time."""
    other = Domain("lv-two", play.pair.shared, STEADY)
    first = _domain(play, STEADY)
    play.create(other)
    moving = [play.begin(*SLOWLY, domain=each) for each in (first, other)]
    for each in moving:
        play.answer(each)


@operation("there-and-back", MOVED, MOVED)
def there_and_back(play: Play) -> None:
    """The domain moves to the other host and back."""
    _domain(play)
    play.migrate()
    play.migrate(host=play.b)


@operation("dirty-ring", RING)
def dirty_ring(play: Play) -> None:
    """KVM logs in a dirty ring."""
    _domain(play, STEADY, dirty_ring=True)
    play.migrate(*SLOWLY)


# Moves that do not.


@operation("abort", CANCELLED)
def abort(play: Play) -> None:
    """domjobabort in mid-move."""
    _domain(play, BUSY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(3)
    play.a.virsh("domjobabort", play.domain.name)
    play.answer(moving, good=False)


@operation("retry", CANCELLED, MOVED)
def retry(play: Play) -> None:
    """A move is aborted, the next one arrives."""
    _domain(play, STEADY)
    moving = play.begin("--bandwidth", "4")
    play.wait_pass(1)
    time.sleep(0.3)
    play.a.virsh("domjobabort", play.domain.name)
    play.answer(moving, good=False)
    play.migrate()


@operation("abort-on-error", MOVED)
def abort_on_error(play: Play) -> None:
    """With --abort-on-error, and no error: the firmware makes no I/O that could have one."""
    _domain(play, STEADY, disk=True)
    play.migrate("--abort-on-error", "--copy-storage-all", *SLOWLY)


@operation("destination-killed", BROKEN)
def destination_killed(play: Play) -> None:
    """The destination's QEMU is killed in mid-move."""
    _killed(play)


def _killed(play: Play, *options: str) -> None:
    _domain(play, BUSY)
    moving = play.begin(*options, *SLOWLY)
    play.wait_pass(3)
    play.kill(play.b)
    play.answer(moving, good=False)


@operation("destination-killed-p2p", BROKEN)
def destination_killed_p2p(play: Play) -> None:
    """The destination's QEMU is killed in mid-move, peer to peer."""
    _killed(play, "--p2p")


@operation("destination-killed-parallel", BROKEN)
def destination_killed_parallel(play: Play) -> None:
    """The destination's QEMU is killed in mid-move, with multifd."""
    _killed(play, "--parallel", "--parallel-connections", "2")


@operation(
    "destination-killed-held",
    Expected(
        *("move", "failed", "destination-ended", "completed"),
        compare=frozenset({"downtime", "rounds", "bytes"}),
        why="QEMU's stream was complete; the guest never ran there",
    ),
)
def destination_killed_held(play: Play) -> None:
    """The destination's QEMU has loaded everything and waits for `cont` when it is killed."""
    _domain(play, STEADY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(2)
    # Its daemon cannot say `cont`.
    play.freeze(play.b)
    play.wait_status("completed")
    time.sleep(0.5)
    play.kill(play.b)
    play.thaw(play.b)
    play.answer(moving, good=False)
    play.wait_event("RESUME", count=2)


@operation(
    "destination-killed-postcopy",
    Expected(
        *("move", "failed", "destination-ended", "postcopy-paused"),
        compare=frozenset({"rounds"}),
        why="the guest ran there and is lost",
    ),
)
def destination_killed_postcopy(play: Play) -> None:
    """The destination's QEMU is killed in post-copy: the guest is lost."""
    _domain(play, BUSY)
    moving = play.begin("--postcopy", "--postcopy-bandwidth", "1", *SLOWLY)
    play.wait_pass(2)
    play.a.virsh("migrate-postcopy", play.domain.name)
    play.wait_status("postcopy-active")
    time.sleep(0.5)
    play.kill(play.b)
    play.answer(moving, good=False)
    play.wait_status("postcopy-paused")


@operation(
    "source-killed",
    Expected("move", "failed", "source-ended", "active", compare=frozenset({"rounds"})),
)
def source_killed(play: Play) -> None:
    """The source's QEMU is killed in mid-move."""
    _domain(play, BUSY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(3)
    play.kill(play.a)
    play.answer(moving, good=False)


@operation(
    "source-daemon-killed", Expected("move", "failed", "destination-ended", compare=frozenset())
)
def source_daemon_killed(play: Play) -> None:
    """The source's libvirtd is killed in mid-move: the destination's ends its QEMU."""
    _domain(play, BUSY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(3)
    play.kill_daemon(play.a)
    play.answer(moving, good=False)
    play.wait(lambda: play.b.qemu_pid(play.domain.name) is None, "the destination's end")
    time.sleep(0.5)


@operation(
    "destination-daemon-killed",
    Expected(
        *("move", "failed", "resumed-after-stop", "completed"),
        why="QEMU's stream was complete; nobody sent cont, and libvirt resumed the source",
    ),
)
def destination_daemon_killed(play: Play) -> None:
    """The destination's libvirtd is killed during the move: its QEMU loads, and is not continued."""
    _domain(play, STEADY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(2)
    play.kill_daemon(play.b)
    play.answer(moving, good=False)
    play.wait_event("RESUME", count=2)


@operation("destination-daemon-killed-p2p", CANCELLED)
def destination_daemon_killed_p2p(play: Play) -> None:
    """The destination's libvirtd is killed in mid-move, peer to peer: the source's one gives up."""
    _domain(play, BUSY)
    moving = play.begin("--p2p", *SLOWLY)
    play.wait_pass(3)
    play.kill_daemon(play.b)
    play.answer(moving, good=False)


@operation("source-daemon-frozen", MOVED)
def source_daemon_frozen(play: Play) -> None:
    """The source's libvirtd hangs for two seconds: the switchover waits for it."""
    _domain(play, STEADY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(2)
    play.freeze(play.a)
    time.sleep(2)
    play.thaw(play.a)
    play.answer(moving)


@operation("destination-daemon-frozen", MOVED)
def destination_daemon_frozen(play: Play) -> None:
    """The destination's libvirtd hangs for two seconds: the loaded guest waits for `cont`."""
    _domain(play, STEADY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(2)
    play.freeze(play.b)
    time.sleep(2)
    play.thaw(play.b)
    play.answer(moving)


# The destination ends before the source, which sleeps for its bandwidth, sends again: whether the network or the
# destination was first cannot be seen.
@operation("network-reset", replace(BROKEN, cause=None))
def network_reset(play: Play) -> None:
    """The migration's TCP connection is reset in mid-move."""
    _domain(play, BUSY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(3)
    play.reset_network()
    play.answer(moving, good=False)


# Saves and loads.


@operation("save-restore", SAVED, LOADED)
def save_restore(play: Play) -> None:
    """virsh save to a file, virsh restore from it."""
    _domain(play)
    path = str(play.pair.shared / "saved")
    play.a.virsh("save", play.domain.name, path)
    play.a.virsh("restore", path)
    play.wait_guest(play.a)


@operation("save-restore-there", SAVED, LOADED)
def save_restore_there(play: Play) -> None:
    """virsh save to a file, virsh restore on the other host."""
    _domain(play)
    path = str(play.pair.shared / "saved")
    play.a.virsh("save", play.domain.name, path)
    play.b.virsh("restore", path)
    play.wait_guest(play.b)


@operation("managedsave", SAVED, LOADED)
def managedsave(play: Play) -> None:
    """virsh managedsave, and virsh start from what it saved."""
    domain = Domain("lv-one", play.pair.shared)
    play.domains.append(domain)
    domain.write()
    play.a.virsh("define", str(domain.xml))
    play.a.virsh("start", domain.name)
    play.wait_guest(play.a)
    play.a.virsh("managedsave", domain.name)
    play.a.virsh("start", domain.name)
    play.wait_guest(play.a)


@operation("dump", SAVED_LIVE)
def dump(play: Play) -> None:
    """virsh dump: the guest stands still meanwhile."""
    _domain(play)
    play.a.virsh("dump", play.domain.name, str(play.pair.shared / "dumped"))


@operation("dump-live", SAVED_LIVE)
def dump_live(play: Play) -> None:
    """virsh dump --live."""
    _domain(play)
    play.a.virsh("dump", "--live", play.domain.name, str(play.pair.shared / "dumped"))


@operation("dump-memory")
def dump_memory(play: Play) -> None:
    """virsh dump --memory-only is no migration: QEMU's dump-guest-memory."""
    _domain(play)
    play.a.virsh("dump", "--memory-only", play.domain.name, str(play.pair.shared / "dumped"))


def _snapshot(play: Play, *options: str) -> None:
    play.a.virsh("snapshot-create-as", play.domain.name, "first", *options)


def _with_memory(play: Play) -> tuple[str, ...]:
    disk = f"{play.domain.image}.first"
    return (
        *("--memspec", f"file={play.pair.shared}/memory,snapshot=external"),
        *("--diskspec", f"vda,snapshot=external,file={disk}", "--atomic"),
    )


@operation("snapshot-live", SAVED_LIVE)
def snapshot_live(play: Play) -> None:
    """An external snapshot with memory, while the guest runs."""
    _domain(play, disk=True)
    _snapshot(play, "--live", *_with_memory(play))


@operation("snapshot-external", SAVED_LIVE)
def snapshot_external(play: Play) -> None:
    """An external snapshot with memory, while the guest stands still."""
    _domain(play, disk=True)
    _snapshot(play, *_with_memory(play))


@operation("snapshot-internal")
def snapshot_internal(play: Play) -> None:
    """An internal snapshot (savevm) and back to it (loadvm): no migration, and no move."""
    _domain(play, disk=True)
    _snapshot(play)
    play.a.virsh("snapshot-revert", play.domain.name, "first")


@operation("snapshot-then-migrate", SAVED_LIVE, MOVED)
def snapshot_then_migrate(play: Play) -> None:
    """A live snapshot with memory, then a move: the descriptor is used again."""
    _domain(play, disk=True)
    _snapshot(play, "--live", *_with_memory(play))
    # libvirt moves no domain that it knows snapshots of.
    play.a.virsh("snapshot-delete", play.domain.name, "first", "--metadata")
    play.b.run("sh", "-c", f"qemu-img create -q -f qcow2 {play.domain.image}.first 16M")
    play.migrate("--copy-storage-all")


@operation("blockcommit")
def blockcommit(play: Play) -> None:
    """A disk-only snapshot and an active commit with pivot: no migration."""
    _domain(play, disk=True)
    _snapshot(play, "--disk-only", "--diskspec", f"vda,file={play.domain.image}.first")
    play.a.virsh("blockcommit", play.domain.name, "vda", "--active", "--pivot", "--wait")


# What is no migration, and moves beside it.


def _dirty_rate(play: Play, mode: str) -> None:
    play.a.virsh("domdirtyrate-calc", play.domain.name, "--seconds", "1", "--mode", mode)


def _measured(play: Play) -> bool:
    said = play.a.virsh("domstats", "--dirtyrate", play.domain.name)
    return "dirtyrate.calc_status=2" in said


@operation("dirtyrate-sampling")
def dirtyrate_sampling(play: Play) -> None:
    """domdirtyrate-calc by sampling: no migration."""
    _domain(play, STEADY)
    _dirty_rate(play, "page-sampling")
    play.wait(lambda: _measured(play), "the dirty rate")


@operation("dirtyrate-bitmap", MOVED)
def dirtyrate_bitmap(play: Play) -> None:
    """domdirtyrate-calc by bitmap, then a move: logging was on and off before."""
    _domain(play, STEADY)
    _dirty_rate(play, "dirty-bitmap")
    play.wait(lambda: _measured(play), "the dirty rate")
    play.migrate(*SLOWLY)


@operation("dirtyrate-bitmap-meanwhile", MOVED)
def dirtyrate_bitmap_meanwhile(play: Play) -> None:
    """A move that begins while domdirtyrate-calc logs."""
    _domain(play, STEADY)
    play.a.virsh("domdirtyrate-calc", play.domain.name, "--seconds", "3", "--mode", "dirty-bitmap")
    time.sleep(0.5)
    play.migrate(*SLOWLY)


@operation("dirtyrate-bitmap-destination-killed", BROKEN)
def dirtyrate_bitmap_destination_killed(play: Play) -> None:
    """The same, and the destination is killed."""
    _domain(play, BUSY)
    play.a.virsh("domdirtyrate-calc", play.domain.name, "--seconds", "3", "--mode", "dirty-bitmap")
    time.sleep(0.3)
    moving = play.begin(*SLOWLY)
    play.wait_pass(3)
    play.kill(play.b)
    play.answer(moving, good=False)


@operation("dirtyrate-ring", RING)
def dirtyrate_ring(play: Play) -> None:
    """domdirtyrate-calc by dirty ring, then a move."""
    _domain(play, STEADY, dirty_ring=True)
    _dirty_rate(play, "dirty-ring")
    play.wait(lambda: _measured(play), "the dirty rate")
    play.migrate(*SLOWLY)


@operation("dirty-limit", RING)
def dirty_limit(play: Play) -> None:
    """A move of a guest under a dirty limit: QEMU logs from before, and its vCPU threads reset the ring."""
    _domain(play, STEADY, dirty_ring=True)
    play.hmp(play.a, "set_vcpu_dirty_limit", "100")
    time.sleep(0.5)
    play.migrate(*SLOWLY)


@operation("reset")
def reset(play: Play) -> None:
    """virsh reset: no migration."""
    _domain(play)
    play.a.virsh("reset", play.domain.name)
    time.sleep(0.5)


@operation("reset-meanwhile", MOVED)
def reset_meanwhile(play: Play) -> None:
    """virsh reset in mid-move."""
    _domain(play, STEADY)
    moving = play.begin(*SLOWLY)
    play.wait_pass(1)
    time.sleep(0.3)
    play.hmp(play.a, "system_reset")
    play.answer(moving)


@operation("suspend-resume")
def suspend_resume(play: Play) -> None:
    """virsh suspend and resume: no migration."""
    _domain(play)
    play.a.virsh("suspend", play.domain.name)
    time.sleep(0.3)
    play.a.virsh("resume", play.domain.name)
