# SPDX-License-Identifier: MIT
"""Attaches BPF functions to their hooks, and gives the reason where that fails."""

import contextlib
from typing import Any

from vftrace.probes import kernel
from vftrace.probes.bpf.object import Object
from vftrace.probes.registry import Hook, Way

KRETPROBE_INSTANCES = 1024


def programs(*ways: Way) -> dict[str, int]:
    """Return the programs that these ways attach, with their types."""
    hooks = [hook for way in ways for hook in (*way.hooks, *way.optional)]
    return {hook.function: _kind(hook) for hook in hooks}


def _kind(hook: Hook) -> int:
    if ":" not in hook.where:
        return Object.KPROBE
    return Object.RAW_TRACEPOINT if hook.raw else Object.TRACEPOINT


def attach_all(bpf: Any, way: Way) -> str | None:
    """Attach all hooks of one way. Returns the reason if that fails; then no hook stays attached."""
    attached: list[Hook] = []
    bpf.load_together(programs(way))
    for hook in (*way.hooks, *way.optional):
        try:
            _attach(bpf, hook)
        except Exception as error:
            if hook in way.optional:
                continue
            for done in attached:
                _detach(bpf, done)
            return f"{hook.where}: {first_line(error)}"
        attached.append(hook)
    return None


def detach_all(bpf: Any, way: Way) -> None:
    """Detach the hooks of one way, also where a module was unloaded with its functions."""
    for hook in (*way.hooks, *way.optional):
        _detach(bpf, hook)


def _attach(bpf: Any, hook: Hook) -> None:
    if ":" in hook.where:
        if not kernel.has_tracepoint(hook.where):
            raise LookupError("no such tracepoint")
        attach = bpf.attach_raw_tracepoint if hook.raw else bpf.attach_tracepoint
        attach(hook.where, hook.function)
    elif hook.at_return:
        # Each sleeping call holds an instance; the default number is too small for blocking sends.
        bpf.attach_kretprobe(hook.where, hook.function, KRETPROBE_INSTANCES, must=hook.sleeps)
    else:
        bpf.attach_kprobe(hook.where, hook.function)


def _detach(bpf: Any, hook: Hook) -> None:
    # The probe may have been removed with its module.
    with contextlib.suppress(OSError):
        bpf.detach(hook.where, hook.function)


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text, else its type."""
    text = str(error)
    return text.splitlines()[0] if text else type(error).__name__
