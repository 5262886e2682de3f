# SPDX-License-Identifier: MIT
"""Makes a migration without figures if vftrace failed on it: the VM and the times, which need no computation."""

from vftrace.analysis.incoming import IncomingMigration
from vftrace.analysis.outgoing import OutgoingMigration
from vftrace.analysis.process import Process
from vftrace.model.migration import Cause, Migration, Outcome, Role, bare_migration
from vftrace.uapi import PAGE_SIZE


def unbuilt_migration(
    key: str,
    process: Process,
    part: OutgoingMigration | IncomingMigration,
    peer: Process | None,
    trace_ended_ns: int | None,
    internal_error: str,
) -> Migration:
    """Return the migration without figures; `peer` is the destination of a source's `part`, if it has one."""
    if isinstance(part, OutgoingMigration):
        number, started = part.number, part.started_at_ns
        ends = (part.over_at_ns, part.process_ended_at_ns)
        role = Role.SOURCE if peer is None else Role.STITCHED
    else:
        number, started = 0, part.first_act_ns
        ends = (part.running_at_ns, part.ended_at_ns)
        role = Role.DESTINATION
    ended = min((end for end in ends if end is not None), default=trace_ended_ns)
    over = ended is not None
    return bare_migration(
        key=key,
        attempt=number,
        pid=process.pid,
        peer_pid=None if peer is None else peer.pid,
        uuid=process.uuid,
        name=process.identity.name if process.identity else None,
        role=role,
        outcome=Outcome.UNKNOWN if over else None,
        cause=Cause.INTERNAL_ERROR if over else None,
        started_at_ns=started,
        ended_at_ns=None if ended is None else max(ended, started),
        page_size=PAGE_SIZE,
        internal_error=internal_error,
    )
