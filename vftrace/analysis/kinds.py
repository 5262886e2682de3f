# SPDX-License-Identifier: MIT
"""Distinguishes moves from saves and loads by the other end of the channel (docs/reference/phases.md)."""

from collections.abc import Iterable

from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.model.migration import Kind, Save

TUNNELS = ("libvirtd", "virtqemud")
"""Programs that pass a pipe's bytes on to another host: libvirt's tunnelled migration
(src/qemu/qemu_migration.c, qemuMigrationSrcPerformTunnel)."""

_WRITEV = 3
"""VFT_WRITEV: QEMU uses it to write to pipes and files, and never for a socket (io/channel-file.c)."""

LOAD_CHANNELS = ("file", "pipe", "snapshot", "unknown")
"""The channels that a VM is loaded from; a damaged record may have any other value."""


def saved_to(
    process: Process, outgoing: OutgoingMigration, fds: set[int], *, paired: bool
) -> Save | None:
    """Return where an attempt saves its VM; None if it moves it.

    A file is a save. So is a pipe, unless a destination belongs to it or a known tunnel reads it.
    """
    if paired or not fds:
        return None
    kind = process.kind_of(fds)
    if kind == "unknown" and all(outgoing.channels[fd].op == _WRITEV for fd in fds):
        return Save("unknown", None, None)
    if kind not in ("file", "pipe"):
        return None
    found = [process.descriptors[fd] for fd in sorted(fds) if fd in process.descriptors]
    path = next((d.path for d in found if d.path is not None), None)
    program = next((d.program for d in found if d.program is not None), None)
    return None if program in TUNNELS else Save(kind, path, program)


def saves(process: Process, outgoing: OutgoingMigration) -> bool:
    """Whether an attempt is known to be a save, so that no destination belongs to it. A pipe whose other end is
    not known may be a tunnel."""
    fds = outgoing.channel_fds(process.peers)
    save = saved_to(process, outgoing, fds, paired=False)
    return save is not None and (save.channel == "file" or save.program is not None)


def loaded_from(
    process: Process, incoming: IncomingMigration, everyone: Iterable[Process]
) -> Save | None:
    """Return what a destination loads its VM from, if that is not another process.

    Its command line and its fds show that, and the guest's clock: a value that a save on this host read before the
    destination started comes from that save.
    """
    identity = process.identity
    if identity is not None and identity.load_channel in LOAD_CHANNELS:
        if identity.load_program in TUNNELS:
            return None
        return Save(identity.load_channel, identity.load_path, identity.load_program)
    clock, created = incoming.guest_clock_ns, process.created_at_ns
    if not clock or created is None:
        return None
    for other in everyone:
        if other is process or other.ended_at_ns is None or other.ended_at_ns > created:
            continue
        for outgoing in other.outgoing:
            reads = (outgoing.saved, outgoing.stop, other.last_stop)
            if any(read is not None and read.clock == clock for read in reads):
                return saved_to(other, outgoing, outgoing.channel_fds(other.peers), paired=False)
    return None


def kind_of(save: Save | None, load: Save | None) -> Kind:
    """The kind of a migration with these ends."""
    return Kind.SAVE if save is not None else Kind.LOAD if load is not None else Kind.MOVE
