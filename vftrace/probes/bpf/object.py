# SPDX-License-Identifier: MIT
"""A BPF object: the maps and programs of one image in the kernel, and their attachments."""

import atexit
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from vftrace.probes import btf
from vftrace.probes.bpf import events, functions, maps, syscall
from vftrace.probes.bpf.image import Image
from vftrace.probes.bpf.image import Map as MapImage

SHARED = ("events", "bulk", "vms", "lost", "mailbox_seq")
"""Maps of bpf/common.h that all objects share: those of the first object."""

TRACING_PREFIXES = {"fentry__": syscall.TRACE_FENTRY, "fexit__": syscall.TRACE_FEXIT}
"""The prefixes of programs that are tied to a kernel function, whose name follows (bpf/common.h)."""

TYPED_PREFIX = "typed__"
"""The prefix of programs for one raw tracepoint, whose name follows. The verifier knows the types of its arguments, so
the program reads them directly."""

RECURSION, KPROBE = "recursion", "kprobe"
"""Why the kernel skips a run: another program (of the same name, or any on a kprobe or tracepoint) is under way on the
CPU; or the probe is hit inside another probe, or all instances of a return probe are in use."""

T = TypeVar("T")

_LOG_BYTES = 1 << 20
_LOCKDOWN = Path("/sys/kernel/security/lockdown")


class BpfError(Exception):
    """The kernel refused a map, a program or an attachment. The message is one line."""


class Missed(msgspec.Struct, frozen=True):
    """A counter of the kernel: how many runs of a program it skipped since the program was loaded or the probe made.
    `counter` names it, for as long as vftrace runs."""

    program: str
    reason: str
    counter: str
    count: int


class Object:
    """An image in the kernel. `cleanup` ends it."""

    KPROBE, TRACEPOINT = syscall.KPROBE, syscall.TRACEPOINT
    RAW_TRACEPOINT, TRACING = syscall.RAW_TRACEPOINT, syscall.TRACING

    def __init__(
        self,
        image: Image,
        first: "Object | None" = None,
        *,
        cached: bool = False,
        modules: Sequence[str] = (),
    ) -> None:
        """Make the maps, load and attach the programs that are tied to a kernel function.

        `first`: the object whose shared maps are used. `cached`: whether the image was kept from an earlier start.
        `modules`: the modules that may have functions which are not in the kernel itself. Raises BpfError, after
        removing everything.
        """
        self.cached = cached
        self.image = image
        self._own: dict[str, int] = {}
        self._fds: dict[str, int] = {name: first._fds[name] for name in SHARED} if first else {}
        self._maps: dict[str, maps.Map] = {}
        self._programs: dict[str, int] = {}
        self._links: dict[str, int] = {}
        self._attached: dict[tuple[str, str], events.Attached] = {}
        self._modules = modules
        atexit.register(self.cleanup)
        try:
            self._make_maps()
            self._attach_tracing()
        except BaseException:
            self.cleanup()
            raise

    def __getitem__(self, name: str) -> maps.Map:
        """Return a map. Raises KeyError if it does not exist."""
        if name not in self._maps:
            self._maps[name] = maps.Map(self._fds[name], self.image.maps[name])
        return self._maps[name]

    def raw(self, name: str) -> maps.RawMap:
        """Return a map whose keys and values are bytes. Raises KeyError if it does not exist."""
        made = self.image.maps[name]
        return maps.RawMap(self._fds[name], made.key_size, made.value_size)

    def size(self, name: str) -> int:
        """Return the number of entries of a map, or the bytes of a ring buffer. Raises KeyError if it does not
        exist."""
        return self.image.maps[name].max_entries

    def load(self, name: str, kind: int) -> int:
        """Load a program as that type if it is not loaded yet; returns its fd. Raises BpfError."""
        return self._load(name, kind, (0, 0, 0))

    def load_together(self, kinds: Mapping[str, int]) -> None:
        """Load programs by name as these types, on all CPUs, because the verifier takes long for each. A program that
        the kernel refuses is not loaded; `load` gives the reason."""
        wanted = [(name, kind, (0, 0, 0)) for name, kind in kinds.items()]
        self._load_all([load for load in wanted if load[0] not in self._programs])

    def attach_tracepoint(self, place: str, name: str) -> None:
        """Run a program at `category:event`. Raises BpfError."""
        program = self.load(name, self.TRACEPOINT)
        try:
            self._attached[place, name] = events.tracepoint(program, place)
        except OSError as error:
            raise _refused(f"cannot attach {name}", error) from error

    def attach_raw_tracepoint(self, place: str, name: str) -> None:
        """Run a program at `category:event`, with the tracepoint's own arguments. It costs half as much as
        `attach_tracepoint`, which first makes a record of them. Raises BpfError."""
        program = self.load(name, self.RAW_TRACEPOINT)
        event = None if name.startswith(TYPED_PREFIX) else place.partition(":")[2]
        try:
            self._attached[place, name] = events.raw_tracepoint(program, event)
        except OSError as error:
            raise _refused(f"cannot attach {name}", error) from error

    def attach_kprobe(self, function: str, name: str) -> None:
        """Run a program at the entry of a kernel function. Raises BpfError."""
        program = self.load(name, self.KPROBE)
        try:
            self._attached[function, name] = events.kprobe(program, function)
        except OSError as error:
            raise _refused(
                f"cannot attach {name}: not a function that can be traced", error
            ) from error

    def attach_kretprobe(
        self, function: str, name: str, instances: int, *, must: bool = True
    ) -> None:
        """Run a program at the return of a kernel function. Raises BpfError. Arguments as in `events.kretprobe`."""
        program = self.load(name, self.KPROBE)
        try:
            attached = events.kretprobe(program, function, instances, must=must)
        except PermissionError as error:
            raise _refused(f"cannot attach {name}: tracefs is not writable", error) from error
        except OSError as error:
            raise _refused(
                f"cannot attach {name}: not a function that can be traced", error
            ) from error
        self._attached[function, name] = attached

    def detach(self, place: str, name: str) -> None:
        """Detach a program from a tracepoint or a function, if it is attached there. Raises OSError."""
        attached = self._attached.pop((place, name), None)
        if attached is not None:
            attached.close()

    def runs(self, names: Iterable[str]) -> dict[str, int]:
        """Return how often each of these programs ran while runs were counted, without those that are not attached.
        Raises OSError."""
        attached = {name for _, name in self._attached} | self._links.keys()
        return {name: syscall.runs(self._programs[name]) for name in names if name in attached}

    def missed_runs(self) -> Iterator[Missed]:
        """Yield the kernel's counters of skipped runs, where it has them."""
        for name, fd in list(self._programs.items()):
            with contextlib.suppress(OSError):
                found = syscall.missed_runs(fd)
                if found is not None:
                    yield Missed(name, RECURSION, str(found[0]), found[1])
        # Another thread may detach meanwhile.
        attached = list(self._attached.items())
        probes: dict[str, str] = {}
        for (_, name), at in attached:
            shown = _link_shows(at)
            if shown is not None:
                yield Missed(name, KPROBE, f"link {shown[0]}", shown[1])
            elif at.probe is not None:
                probes[at.probe] = name
        hits = events.missed_hits() if probes else {}
        for probe, name in probes.items():
            own = probe.partition("/")[2]
            if own in hits:
                yield Missed(name, KPROBE, own, hits[own])

    def cleanup(self) -> None:
        """Detach and close everything; may be called again."""
        atexit.unregister(self.cleanup)
        for place, name in list(self._attached):
            try:
                self.detach(place, name)
            except OSError:
                continue  # the module was unloaded with its functions
        for fds in (self._links, self._programs, self._own):
            for fd in fds.values():
                os.close(fd)
            fds.clear()

    def _make_maps(self) -> None:
        missing = [name for name in self.image.maps if name not in self._fds]
        refused: list[BpfError] = []

        def make(name: str) -> None:
            try:
                self._own[name] = _make(name, self.image.maps[name])
            except BpfError as error:
                refused.append(error)

        _on_all_cpus(make, missing)
        if refused:
            raise refused[0]
        self._fds.update(self._own)

    def _attach_tracing(self) -> None:
        wanted = {
            name: (name.removeprefix(prefix), kind)
            for name in self.image.functions
            for prefix, kind in TRACING_PREFIXES.items()
            if name.startswith(prefix)
        }
        fds: dict[str | None, int] = {None: 0}
        try:
            places = {name: self._place(function, fds) for name, (function, _) in wanted.items()}
            attach = {name: (kind, *places[name]) for name, (_, kind) in wanted.items()}
            self._load_all([(name, syscall.TRACING, attach[name]) for name in wanted])
            for name in wanted:
                # Raises the reason if it is not loaded.
                program = self._load(name, syscall.TRACING, attach[name])
                try:
                    self._links[name] = syscall.attach_tracing(program)
                except OSError as error:
                    raise _refused(f"cannot attach {name}", error) from error
        finally:
            for fd in fds.values():
                if fd:
                    os.close(fd)

    def _place(self, function: str, fds: dict[str | None, int]) -> tuple[int, int]:
        """Return a function's BTF id, and the fd of the BTF that has it; the fd is kept in `fds` by module."""
        try:
            number, module = btf.function(function, self._modules)
            if module is not None and module not in fds:
                fds[module] = syscall.module_btf(module)
        except (OSError, LookupError) as error:
            raise BpfError(f"{function}: {error}") from error
        return number, fds[module]

    def _load_all(self, wanted: Sequence[tuple[str, int, tuple[int, int, int]]]) -> None:
        def load(each: tuple[str, int, tuple[int, int, int]]) -> None:
            with contextlib.suppress(BpfError):
                self._load(*each, explain=False)

        _on_all_cpus(load, wanted)

    def _load(
        self, name: str, kind: int, attach: tuple[int, int, int], *, explain: bool = True
    ) -> int:
        if name in self._programs:
            return self._programs[name]
        if name not in self.image.programs:
            raise BpfError(f"there is no program {name}")
        label = name.removeprefix("fentry__").removeprefix("fexit__")
        if name.startswith(TYPED_PREFIX):
            label = name.removeprefix(TYPED_PREFIX)
            try:
                kind, attach = self.TRACING, (syscall.TRACE_RAW_TP, btf.tracepoint(label), 0)
            except LookupError as error:
                raise BpfError(str(error)) from error
        try:
            fd = self._load_linked(name, kind, attach, label)
        except OSError as error:
            asks = explain and error.errno in _VERIFIER
            said = self._verifier_reason(name, kind, attach) if asks else ""
            raise _refused(f"the kernel refuses {name}", error, said) from error
        self._programs[name] = fd
        return fd

    def _load_linked(
        self,
        name: str,
        kind: int,
        attach: tuple[int, int, int],
        label: str,
        log: "ctypes.Array[ctypes.c_char] | None" = None,
    ) -> int:
        """Load a program with its callbacks; returns its fd. Raises OSError."""
        function, starts = self.image.linked(name)
        code = function.with_maps(self._fds)
        described = functions.described(starts) if len(starts) > 1 else None
        return syscall.load_program(kind, code, self.image.license, label, attach, log, described)

    def _verifier_reason(self, name: str, kind: int, attach: tuple[int, int, int]) -> str:
        """Return the verifier's last lines about a refused program, from a second load with a log."""
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            os.close(self._load_linked(name, kind, attach, "", log))
        except OSError:
            return reason_in(log.value.decode(errors="replace"))
        return ""


_VERIFIER = (errno.EACCES, errno.EINVAL)
"""The verifier's errors for a forbidden operation in a program. E2BIG needs no log."""


def _on_all_cpus(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Work on all items in threads: the kernel takes long for each, and does not hold Python's lock meanwhile."""
    left = iter(items)

    def run() -> None:
        for item in left:
            work(item)

    threads = [
        threading.Thread(target=run) for _ in range(min(os.cpu_count() or 1, len(items)) - 1)
    ]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()


def reason_in(log: str) -> str:
    """Return the last line of a verifier's log that is not about its statistics; empty without one."""
    lines = [line.strip() for line in log.splitlines()]
    told = [line for line in lines if line and not line.startswith(("processed ", "verification "))]
    return told[-1] if told else ""


def _link_shows(attached: events.Attached) -> tuple[int, int] | None:
    """The link's id, and how often its kprobe was hit and did not run; None if the kernel does not show it."""
    if not attached.linked:
        return None
    try:
        return syscall.missed_hits(attached.fd)
    except OSError:
        return None


def _make(name: str, image: MapImage) -> int:
    try:
        return maps.create(name, image)
    except OSError as error:
        raise _refused(f"the kernel refuses the map {name}", error) from error


def _refused(what: str, error: OSError, more: str = "") -> BpfError:
    """Return an error of one line: the attempt, errno's text, and the reason if it is known."""
    words = [f"{what} ({error.strerror})"]
    if more:
        words.append(more)
    if error.errno in (errno.EPERM, errno.EINVAL, errno.EACCES) and _locked_down():
        words.append("the kernel is locked down (confidentiality): BPF may not read its memory")
    return BpfError(": ".join(words))


def _locked_down() -> bool:
    try:
        return "[confidentiality]" in _LOCKDOWN.read_text()
    except OSError:
        return False
