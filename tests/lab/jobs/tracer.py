# SPDX-License-Identifier: MIT
"""Jobs about vftrace itself: every way to attach in one run, a start in the middle of a migration, and `doctor`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vftlab.devices import Steer, vfio_device
from vftlab.job import CannotHereError, Job, JobError, boottime_ns, modprobe, say, wait_for
from vftlab.vm import Migration, migrate, migration_truth, vm, vm_truth, wait_resumed

from jobs.attach import SHIM, modules_of_functions, takes_fentry, takes_kprobe
from jobs.steer import best_kind

WAYS = ("fentry", "kprobe", "tracepoint")
READY_S = 500.0
# Threads and compilers of three tracers share two emulated processors.
NOISE_NS = 20_000_000


MODULES = ("kvm-amd", "vfio-pci", "mdev", "igb")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def tracers(
    results: Path,
    options: dict[str, list[str]],
    modules: Sequence[str] = MODULES,
    *,
    on: int | None = None,
) -> Iterator[dict[str, Path]]:
    """One `vftrace record` for each entry, all at once; their recordings are whole after the context.

    `modules` are loaded before. `on`: the processor on which they run once they are ready.
    """
    modprobe(*modules)
    begun = boottime_ns()
    started: dict[str, subprocess.Popen[bytes]] = {}
    logs = {name: results / f"{name}.err" for name in options}
    recordings = {name: results / f"{name}.vft" for name in options}

    def ready(name: str) -> bool:
        if started[name].poll() is not None:
            raise JobError(f"vftrace {name} ended: {logs[name].read_text().strip()}")
        return "ready" in logs[name].read_text().splitlines()

    try:
        for name, more in options.items():
            command = [sys.executable, "-m", "vftrace", "record", *more]
            command += ["-o", str(recordings[name])]
            with logs[name].open("wb") as errors:
                started[name] = subprocess.Popen(command, stdout=errors, stderr=errors)
        for name in options:
            wait_for(f"vftrace {name} ready", READY_S, lambda name=name: ready(name))
            say(
                f"vftrace {name} ready {(boottime_ns() - begun) / 1e9:.1f} s after all were started"
            )
        if on is not None:
            for process in started.values():
                for pid in (process.pid, *_children(process.pid)):
                    for thread in Path(f"/proc/{pid}/task").iterdir():
                        os.sched_setaffinity(int(thread.name), {on})
        yield recordings
        for process in started.values():
            process.send_signal(signal.SIGINT)
        for name, process in started.items():
            if process.wait(60) != 0:
                raise JobError(f"vftrace {name} failed: {logs[name].read_text().strip()}")
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def report_of(recording: Path) -> Any:
    """Return the result of `vftrace report --format json` for a recording."""
    command = [sys.executable, "-m", "vftrace", "report", "--format", "json", str(recording)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise JobError(f"{recording.name}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _replayed(recording: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report_of(recording)["migrations"]
    return found


def _same(first: object, other: object, where: str) -> None:
    """JobError unless both are the same but for times, which may differ by the noise."""
    if isinstance(first, dict) and isinstance(other, dict):
        if first.keys() != other.keys():
            raise JobError(f"{where} has {sorted(first)} and {sorted(other)}")
        for key in first:
            # The rates and what rests on them are quotients of times. Each tracer attaches to system calls at a time
            # of its own, and sorts them by the time that they took.
            rates = ("rate_bytes_per_second", "mean_rate_bytes_per_second")
            if key not in (*rates, "forecast", "set_by", "slowest_device", "calls", "brownout"):
                _same(first[key], other[key], f"{where}.{key}")
    elif isinstance(first, list) and isinstance(other, list):
        if len(first) != len(other):
            raise JobError(f"{where} has {len(first)} and {len(other)} entries")
        for i, (a, b) in enumerate(zip(first, other, strict=True)):
            _same(a, b, f"{where}[{i}]")
    elif first != other and not _near(first, other, where):
        raise JobError(f"{where} is {first} and {other}")


def _near(first: object, other: object, where: str) -> bool:
    timed = where.rsplit(".", 1)[-1].endswith("ns") or ".state_ns" in where
    return (
        timed
        and isinstance(first, int)
        and isinstance(other, int)
        and abs(first - other) <= NOISE_NS
    )


def _devices() -> tuple[str, str]:
    """For a source and its destination, of the kind that every kernel of the lab has; their UUIDs."""
    source, target = (Steer.create(number, best_kind()) for number in (10, 20))
    return source.name, target.name


def _ways_agree(reports: dict[str, Any]) -> None:
    """JobError unless all ways see the same migration, or one that sees another has marked it.

    7.x preempts a task inside a program and inside bpf(2), and other tasks' runs on that CPU are skipped meanwhile
    (docs/reference/probes.md): under three tracers on emulated processors that is common. Figures may be missing then,
    but not without a mark.
    """
    found: list[tuple[bool, str, Any]] = []
    for way, report in reports.items():
        migrations = report["migrations"]
        if len(migrations) != 1:
            raise JobError(f"{way}: {len(migrations)} migrations instead of one")
        (migration,) = migrations
        missed = {m["probe"]: m["count"] for m in migration.pop("missed_runs")}
        total = {
            f"{m['probe']} {m['reason']}": m["count"] for m in report["hosts"][0]["missed_runs"]
        }
        said = f"{migration['strategy']}, {migration['outcome']}, {len(migration['rounds'])} rounds"
        sent = migration["channel"]["bytes"]
        say(f"{way}: {said}, {sent} bytes; skipped runs meanwhile {missed}, in all {total}")
        if migration.pop("incomplete") != bool(missed):
            raise JobError(f"{way}: {missed} and the mark do not agree")
        found.append((bool(missed), way, migration))
    # One without a mark first, if there is one.
    (marked, first, wanted), *others = sorted(found, key=lambda each: each[0])
    for also_marked, way, migration in others:
        try:
            _same(wanted, migration, way)
        except JobError as difference:
            if not (marked or also_marked):
                raise
            say(f"{first} and {way} differ, and are marked: {difference}")
        else:
            say(f"{first} and {way} agree")


@contextlib.contextmanager
def _on_cpu(number: int) -> Iterator[None]:
    """What is started meanwhile runs on this CPU only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ways(job: Job) -> None:
    """Three tracers, each attached in another way, see the same migration."""
    options = {way: ["--way", way] for way in WAYS}
    with tracers(job.results, options, on=1) as recordings:
        source_device, target_device = _devices()
        # A tracer that is preempted inside bpf(2) hides runs on its own CPU only.
        with (
            _on_cpu(0),
            vm("source", job.results, devices=[vfio_device(source_device)]) as source,
            vm(
                "destination", job.results, devices=[vfio_device(target_device)], incoming=True
            ) as destination,
        ):
            migration = migrate(source)
            destination.monitor.wait_event("RESUME", 20)
            job.write_truth(
                {
                    "vms": [vm_truth(source, "source"), vm_truth(destination, "destination")],
                    "migration": migration_truth(migration),
                }
            )
    _ways_agree({way: report_of(recording) for way, recording in recordings.items()})


def late(job: Job) -> None:
    """A tracer that starts when the VM already runs knows its device, and sees all of the migration."""
    source_device, target_device = _devices()
    with (
        vm("source", job.results, devices=[vfio_device(source_device)]) as source,
        vm(
            "destination", job.results, devices=[vfio_device(target_device)], incoming=True
        ) as destination,
    ):
        with tracers(job.results, {"late": []}) as recordings:
            migration = migrate(source)
            destination.monitor.wait_event("RESUME", 20)
            job.write_truth({"migration": migration_truth(migration)})
        (found,) = _replayed(recordings["late"])
        devices = found["devices"]
        assert isinstance(devices, list)
        seen = {d["role"]: (d["address"], d["id"], d["driver"], d["bytes"]) for d in devices}
        say(f"{found['strategy']} {found['outcome']}: {seen}")
        wanted = {
            role: (name, "vf0", "vftsteer", migration.vfio_bytes)
            for role, name in (("source", source_device), ("destination", target_device))
        }
        if (found["strategy"], found["outcome"]) != ("vfio", "completed") or seen != wanted:
            raise JobError(f"expected {wanted}")


# Modules with probes of their own, and a function of each that has one.
FOLLOWED = {
    "vfio": "vfio_device_fops_unl_ioctl",
    "igb": "igb_read_mbx",
    "ixgbe": "ixgbe_read_mbx",
}


def follow(job: Job) -> None:
    """The modules come after vftrace has started (LAB_LATE_MODULES=1), and its probes with them."""
    if os.environ.get("LAB_LATE_MODULES") != "1" or os.environ.get("VFTRACE") != "1":
        raise CannotHereError("LAB_LATE_MODULES=1 and VFTRACE=1 let vftrace start before modules")
    there = [m for m in ("kvm", *FOLLOWED) if Path("/sys/module", m).exists()]
    if there:
        raise JobError(f"loaded already: {', '.join(there)}")
    modprobe("kvm-amd")
    probes = Path("/sys/kernel/debug/kprobes/list")
    seconds = {}
    for module, function in FOLLOWED.items():
        begun = boottime_ns()
        modprobe(module)
        wait_for(f"a probe in {module}", READY_S, lambda name=function: name in probes.read_text())
        seconds[module] = (boottime_ns() - begun) / 1e9
        say(f"{module}: probed {seconds[module]:.1f} s after it was loaded")
    job.write_truth({"seconds": seconds})


def _unload_kvm() -> bool:
    """Whether kvm could be unloaded."""
    done = subprocess.run(
        ["modprobe", "-r", "kvm-amd", "kvm"], capture_output=True, text=True, check=False
    )
    say(f"modprobe -r kvm-amd kvm: {done.stderr.strip() or 'done'}")
    return not Path("/sys/module/kvm").exists()


def _plain(results: Path) -> Migration:
    modprobe("kvm-amd")
    with vm("source", results) as source, vm("destination", results, incoming=True) as destination:
        migration = migrate(source)
        wait_resumed(destination)
        return migration


def late_kvm(job: Job) -> None:
    """kvm comes after vftrace has started, goes if vftrace lets it, and comes again: each migration is seen."""
    if Path("/sys/module/kvm").exists() and not _unload_kvm():
        raise CannotHereError("kvm is in use by another tracer: run this job without VFTRACE")
    with tracers(job.results, {"late-kvm": []}, modules=()) as recordings:
        migrations = [_plain(job.results)]
        again = _unload_kvm()
        if again:
            migrations.append(_plain(job.results))
    job.write_truth({"unloaded": again, "migrations": [migration_truth(m) for m in migrations]})
    found = _replayed(recordings["late-kvm"])
    seen = [(m["role"], m["outcome"], m["incomplete"], len(m["rounds"])) for m in found]
    wanted = [
        ("stitched", "completed", False, m.result["ram"]["dirty-sync-count"]) for m in migrations
    ]
    say(f"seen: {seen}")
    if seen != wanted:
        raise JobError(f"expected {wanted}")


INSTANCES = 1024
"""Of each of vftrace's return probes (vftrace/probes/attach.py)."""
SENDERS = 1100


@contextlib.contextmanager
def blocked_senders(count: int) -> Iterator[None]:
    """So many threads that wait inside sendmsg(2), as their socket is full."""
    left, right = socket.socketpair()
    left.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            left.send(bytes(4096))
    left.setblocking(True)

    def send() -> None:
        with contextlib.suppress(OSError):
            left.sendmsg([bytes(4096)])

    threading.stack_size(65536)
    threads = [threading.Thread(target=send) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
        calls = [Path(f"/proc/self/task/{thread.native_id}/syscall") for thread in threads]
        sendmsg = "46 "
        wait_for(
            "all threads in sendmsg",
            60,
            lambda: all(c.read_text().startswith(sendmsg) for c in calls),
        )
        yield
    finally:
        right.close()
        for thread in threads:
            thread.join()
        left.close()


def missed_runs(job: Job) -> None:
    """A migration while a return probe has no instance left is incomplete, and the next one is not."""
    with tracers(job.results, {"missed": []}) as recordings:
        with blocked_senders(SENDERS):
            migrations = [_plain(job.results)]
        # The next reading of the kernel's counters (vftrace/collect/live.py) is not of the next migration.
        time.sleep(2)
        migrations.append(_plain(job.results))
    job.write_truth({"migrations": [migration_truth(m) for m in migrations]})
    host = report_of(recordings["missed"])["hosts"][0]
    missed = {m["probe"]: m["count"] for m in host["missed_runs"] if m["reason"] == "kprobe"}
    found = _replayed(recordings["missed"])
    marks = [(m["incomplete"], sorted(r["probe"] for r in m["missed_runs"])) for m in found]
    sent = [m["channel"]["bytes"] for m in found]
    told = [m.result["ram"]["transferred"] for m in migrations]
    say(f"skipped {missed}; marked {marks}; sent {sent}, QEMU says {told}")
    if marks != [(True, ["channel"]), (False, [])]:
        raise JobError("not the first one alone is incomplete by the probe `channel`")
    if missed.get("channel", 0) <= SENDERS - INSTANCES:
        raise JobError(f"{SENDERS} senders have {INSTANCES} instances, and the migration has none")


KPROBE_EVENTS = Path("/sys/kernel/tracing/kprobe_events")


def killed(job: Job) -> None:
    """A tracer that is killed leaves its return probes in tracefs, and the next one removes them."""

    def owners() -> set[int]:
        return {int(p) for p in re.findall(r":vftrace/\w+_(\d+)_\d+ ", KPROBE_EVENTS.read_text())}

    before, reader = owners(), 0
    with contextlib.suppress(JobError), tracers(job.results, {"killed": ["--way", "kprobe"]}):
        (reader,) = owners() - before
        os.kill(reader, signal.SIGKILL)
        # The main process ends with an error then, which is the JobError.
    wait_for("the reader's end", 20, lambda: not Path(f"/proc/{reader}").exists())
    left = owners() & {reader}
    with tracers(job.results, {"next": ["--way", "kprobe"]}):
        now = owners()
    say(f"left by the killed one: {bool(left)}; by it beside the next one: {reader in now}")
    if not left or reader in now or len(now - before) != 1:
        raise JobError("expected probes of the killed tracer until the next one started")
    if owners() != before:
        raise JobError("the next one left probes behind, and was not killed")
    job.write_truth({"reader": reader})


# The functions that each of vftrace's probes cannot do without, where it has a choice.
NEEDED = {
    "ioctl": ("kvm_dev_ioctl", "kvm_vm_ioctl", "kvm_vcpu_ioctl", "kvm_device_ioctl"),
    "vfio": ("vfio_device_fops_unl_ioctl",),
    "mailbox": ("igb_read_mbx", "igb_write_mbx", "ixgbe_read_mbx", "ixgbe_write_mbx"),
}


def _best(functions: tuple[str, ...], modules: dict[str, str], *, fentry: bool) -> str | None:
    """The first of WAYS that all functions take, found by trying with BCC alone."""
    names = [name for name in functions if name in modules]
    if len(names) < len(functions):
        return None
    if fentry and takes_fentry(modules, names) == set(names):
        return "fentry"
    return "kprobe" if takes_kprobe(names) == set(names) else "tracepoint"


def doctor(job: Job) -> None:
    """`vftrace doctor` reports how each probe can be attached here, and that this machine can trace."""
    modprobe("kvm-amd", "vfio-pci", "mdev", "igb", "ixgbe")
    os.environ["BCC_KERNEL_SOURCE"] = str(SHIM)
    modules = modules_of_functions()
    best = {
        # Of the three only KVM's requests are frequent enough for vftrace to ask for fentry.
        probe: _best(functions, modules, fentry=probe == "ioctl")
        for probe, functions in NEEDED.items()
    }
    done = subprocess.run(
        [sys.executable, "-m", "vftrace", "doctor"], capture_output=True, text=True, check=False
    )
    print(done.stdout + done.stderr, flush=True)
    (job.results / "doctor.txt").write_text(done.stdout + done.stderr)
    lines = re.findall(r"^(ok|note|warn|bad) +(?:probe )?(.+?)  +(.*)$", done.stdout, re.MULTILINE)
    said = {name: (state, text) for state, name, text in lines}
    job.write_truth({"best": best, "code": done.returncode, "said": said})
    ways = {name: text.partition(":")[0] for name, (_, text) in said.items()}
    wrong = [f"{probe}: {ways.get(probe)}" for probe, way in best.items() if ways.get(probe) != way]
    wrong += [
        f"{name}: {text}"
        for name, (state, text) in said.items()
        # No VM migrates here, which is what the calls' probes wait for; the other is a limit everywhere.
        if state != "ok" and name not in ("calls", "vcpus", "32-bit VMMs")
    ]
    if done.returncode or wrong:
        raise JobError(f"exit code {done.returncode}, {'; '.join(wrong)}; tried: {best}")


JOBS: dict[str, Callable[[Job], None]] = {
    "ways": ways,
    "late": late,
    "follow": follow,
    "late-kvm": late_kvm,
    "doctor": doctor,
    "missed-runs": missed_runs,
    "killed": killed,
}
