"""Attaches BPF functions to their hooks, and gives the reason where that fails."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from vftrace.probes import kernel
from vftrace.probes.registry import Hook, Way

KRETPROBE_INSTANCES = 1024


def attach_all(bpf: Any, way: Way) -> str | None:
    """Attach all hooks of one way. Returns the reason if that fails; then no hook stays attached."""
    attached: list[Hook] = []
    for hook in (*way.hooks, *way.optional):
        try:
            _attach(bpf, hook)
        except Exception as error:  # BCC raises Exception itself
            if hook in way.optional:
                continue
            for done in attached:
                _detach(bpf, done)
            return f"{hook.where}: {first_line('', error)}"
        attached.append(hook)
    return None


def detach_all(bpf: Any, way: Way) -> None:
    """Detach the hooks of one way, also where a module was unloaded with its functions."""
    for hook in (*way.hooks, *way.optional):
        with contextlib.suppress(Exception):  # BCC raises Exception itself
            _detach(bpf, hook)


def _attach(bpf: Any, hook: Hook) -> None:
    if ":" in hook.where:
        if not kernel.has_tracepoint(hook.where):
            raise LookupError("no such tracepoint")
        bpf.attach_tracepoint(tp=hook.where, fn_name=hook.function)
    elif hook.at_return:
        # Each call that sleeps holds an instance; the default is too few for blocking sends.
        bpf.attach_kretprobe(event=hook.where, fn_name=hook.function, maxactive=KRETPROBE_INSTANCES)
    else:
        bpf.attach_kprobe(event=hook.where, fn_name=hook.function)


def _detach(bpf: Any, hook: Hook) -> None:
    if ":" in hook.where:
        bpf.detach_tracepoint(tp=hook.where)
    elif hook.at_return:
        bpf.detach_kretprobe(event=hook.where, fn_name=hook.function)
    else:
        bpf.detach_kprobe(event=hook.where, fn_name=hook.function)


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture what clang and libbpf write to file descriptor 2."""
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


def first_line(complaint: str, error: Exception) -> str:
    """The first error line of a compiler's output, else the first line of the exception."""
    lines = [line.strip() for line in complaint.splitlines() if "error" in line]
    text = lines[0] if lines else str(error)
    return text.splitlines()[0] if text else type(error).__name__
