"""Compiles, loads and attaches the probes with BCC, and reads the ring."""

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from vftrace.errors import MachineError
from vftrace.probes import btf, kernel
from vftrace.probes.plan import FENTRY, KPROBE, PROBES, Hook, Probe, Way
from vftrace.probes.text import program_text, shim_directory

EVENT_PAGES = 4096
"""Size of the ring in pages: 16 MiB, more than a second of the busiest migration measured."""

KRETPROBE_INSTANCES = 1024

INSTALL_BCC = "apt-get install python3-bpfcc   (Fedora: dnf install python3-bcc)"


@dataclass(frozen=True)
class ProbeStatus:
    """How a probe is attached (`way` None: it is not), and why not in the ways tried before."""

    probe: Probe
    way: str | None
    reason: str | None


class Probes:
    """The attached probes and the ring they write to. Use as a context manager."""

    def __init__(self, on_record: Callable[[bytes], None], way: str | None = None) -> None:
        """`on_record` gets each record's bytes; `way` forces one way to attach.

        Raises MachineError where a needed probe cannot be attached.
        """
        kernel.require_bpf()
        kernel.tracefs()
        self._on_record = on_record
        self._error: BaseException | None = None
        bcc = _import_bcc()
        os.environ["BCC_KERNEL_SOURCE"] = str(shim_directory())
        self.status = self._load(bcc, way)
        for status in self.status:
            if status.probe.needed and status.way is None:
                self.close()
                raise MachineError(
                    f"probe {status.probe.name} cannot be attached: {status.reason}",
                    fix="vftrace doctor",
                )
        self._bpf["events"].open_ring_buffer(self._on_ring)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self, timeout_ms: int) -> None:
        """Wait for a record that wakes, at most `timeout_ms`, then hand over what is in the ring."""
        if timeout_ms:
            self._bpf.ring_buffer_poll(timeout_ms)
        self._bpf.ring_buffer_consume()
        if self._error is not None:
            raise self._error

    def lost(self) -> int:
        """Records that did not fit into the ring so far."""
        return int(self._bpf["lost"][0].value)

    def watch(self, tgid: int, vcpu_tids: list[int]) -> None:
        """Watch a VMM that runs already; `vcpu_tids` are its threads inside KVM_RUN now."""
        vms, threads = self._bpf["vms"], self._bpf["threads"]
        if ctypes.c_uint32(tgid) not in vms:
            vm = vms.Leaf()
            # Its logging may be on already; counting what it sends costs nothing that matters.
            vm.logging = 1
            vms[ctypes.c_uint32(tgid)] = vm
        for tid in vcpu_tids:
            thread = threads.Leaf()
            thread.cmd = 0xAE80  # KVM_RUN
            threads[ctypes.c_uint64(tgid << 32 | tid)] = thread

    def streams(self) -> dict[int, int]:
        """The next `seq` of each watched process."""
        return {int(k.value): int(v.seq) for k, v in self._bpf["vms"].items()}

    def close(self) -> None:
        """Detach everything. What was watched does not notice."""
        self._bpf.cleanup()

    def _on_ring(self, _cpu: int, data: int, size: int) -> None:
        # ctypes swallows what a callback raises, KeyboardInterrupt too.
        try:
            self._on_record(ctypes.string_at(data, size))
        except BaseException as error:
            self._error = error

    def _load(self, bcc: Any, forced: str | None) -> tuple[ProbeStatus, ...]:
        """Compile and attach in the first way the kernel takes: the ioctl probe's, the others follow it."""
        ioctl, *others = PROBES
        reasons: list[str] = []
        for way in ioctl.ways:
            if forced not in (None, way.name):
                continue
            reason = _refused(way) or self._try_ioctl(bcc, way)
            if reason is None:
                first = ProbeStatus(ioctl, way.name, "; ".join(reasons) or None)
                return (first, *(self._attach(probe, forced) for probe in others))
            reasons.append(f"{way.name}: {reason}")
        raise MachineError(
            f"KVM's requests cannot be traced here: {'; '.join(reasons)}", fix="vftrace doctor"
        )

    def _try_ioctl(self, bcc: Any, way: Way) -> str | None:
        """Compile for this way, load the walker, attach. Returns why not, with nothing left behind."""
        with _captured_stderr() as complaint:
            try:
                # fentry programs are attached in here
                self._bpf = bcc.BPF(text=program_text(), cflags=_cflags(way))
            except Exception as error:
                return _first_line(complaint(), error)
            try:
                reason = self._hang_up(way)
                if reason is None:
                    self._bpf["walkers"][ctypes.c_int(0)] = ctypes.c_int(self._walker(bcc, way))
            except Exception as error:
                reason = _first_line(complaint(), error)
        if reason is not None:
            self._bpf.cleanup()
        return reason

    def _walker(self, bcc: Any, way: Way) -> int:
        """The program that is tail-called, of the type it must have to be called from this way."""
        if way.name == FENTRY:
            loaded = self._bpf.funcs.items()
            return int(next(f.fd for name, f in loaded if name.endswith(b"kvm_device_ioctl")))
        kind = bcc.BPF.KPROBE if way.name == KPROBE else bcc.BPF.TRACEPOINT
        return int(self._bpf.load_func("walk", kind).fd)

    def _attach(self, probe: Probe, forced: str | None) -> ProbeStatus:
        reasons: list[str] = []
        ways = [way for way in probe.ways if forced == way.name] or probe.ways
        for way in ways:
            with _captured_stderr():
                reason = _refused(way) or self._hang_up(way)
            if reason is None:
                return ProbeStatus(probe, way.name, "; ".join(reasons) or None)
            reasons.append(f"{way.name}: {reason}")
        return ProbeStatus(probe, None, "; ".join(reasons))

    def _hang_up(self, way: Way) -> str | None:
        """Attach all hooks of one way; returns why not, with none of them left attached."""
        attached: list[Hook] = []
        for hook in (*way.hooks, *way.optional):
            try:
                self._attach_hook(hook)
            except Exception as error:
                if hook in way.optional:
                    continue
                for done in attached:
                    self._detach(done)
                return f"{hook.where}: {_first_line('', error)}"
            attached.append(hook)
        return None

    def _attach_hook(self, hook: Hook) -> None:
        if ":" in hook.where:
            if not kernel.has_tracepoint(hook.where):
                raise LookupError("no such tracepoint")
            self._bpf.attach_tracepoint(tp=hook.where, fn_name=hook.function)
        elif hook.at_return:
            # Each call that sleeps holds an instance; the default is too few for blocking sends.
            self._bpf.attach_kretprobe(
                event=hook.where, fn_name=hook.function, maxactive=KRETPROBE_INSTANCES
            )
        else:
            self._bpf.attach_kprobe(event=hook.where, fn_name=hook.function)

    def _detach(self, hook: Hook) -> None:
        if ":" in hook.where:
            self._bpf.detach_tracepoint(tp=hook.where)
        elif hook.at_return:
            self._bpf.detach_kretprobe(event=hook.where, fn_name=hook.function)
        else:
            self._bpf.detach_kprobe(event=hook.where, fn_name=hook.function)


def _refused(way: Way) -> str | None:
    """Why this kernel cannot take this way, where that can be told without compiling anything."""
    if way.name == FENTRY:
        return kernel.refuses_fentry()
    if way.name == KPROBE and not kernel.has_kprobes():
        return "this kernel is built without kprobes"
    return None


def _import_bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise MachineError(
            "BCC's Python bindings are not installed for this Python", fix=INSTALL_BCC
        ) from error
    if not hasattr(bcc, "BPF"):
        raise MachineError(
            "the bcc that Python finds is PyPI's package of that name, not the BPF compiler",
            fix=f"pip uninstall bcc; {INSTALL_BCC}",
        )
    return bcc


def _cflags(way: Way) -> list[str]:
    flags = [
        f"-DEVENT_PAGES={EVENT_PAGES}",
        f"-DWAY_{way.name.upper()}",
        "-Wno-everything",
    ]
    if way.name == FENTRY and kernel.module_of("kvm_vm_ioctl") == "kvm":
        flags.append("-DKVM_MODULE")
    dead = kernel.tracepoint_field_offset("sched:sched_process_exit", "group_dead")
    if dead is not None:
        return [*flags, f"-DGROUP_DEAD_OFFSET={dead}"]
    signal = btf.member_offset("task_struct", "signal")
    live = btf.member_offset("signal_struct", "live")
    if signal is not None and live is not None:
        flags += [f"-DTASK_SIGNAL_OFFSET={signal}", f"-DSIGNAL_LIVE_OFFSET={live}"]
    return flags


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """clang and libbpf write to file descriptor 2; keep that off the user's screen."""
    with tempfile.TemporaryFile() as sink:
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)

        def text() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        try:
            yield text
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _first_line(complaint: str, error: Exception) -> str:
    lines = [line.strip() for line in complaint.splitlines() if "error" in line]
    text = lines[0] if lines else str(error)
    return text.splitlines()[0] if text else type(error).__name__
