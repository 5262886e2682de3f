"""The report of several recordings as JSON: the same form as that of one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vftrace.analysis.hosts.join import Joined
from vftrace.analysis.hosts.outage import GapAccount
from vftrace.collect.merge import Loaded
from vftrace.outputs.report.json import SCHEMA, report_json


def joined_json(loaded: Loaded, joined: Sequence[Joined]) -> dict[str, Any]:
    """Every boot under `hosts`, and each migration under the host whose clock its times are on."""
    placed = placed_migrations(loaded, joined)
    return {
        "schema": SCHEMA,
        "hosts": hosts_json(loaded),
        "migrations": [migration for _, migration in placed],
    }


def hosts_json(loaded: Loaded) -> list[dict[str, Any]]:
    """One entry for each boot, in order."""
    return [
        report_json(host, replace(boot.snapshot, migrations=()))["hosts"][0]
        for host, boot in zip(loaded.hosts, loaded.boots, strict=True)
    ]


def placed_migrations(
    loaded: Loaded, joined: Sequence[Joined]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each migration with the entry of the host whose clock its times are on."""
    hosts = hosts_json(loaded)
    # By its id: a boot whose clock was given another bound is not equal any more.
    ids = [boot.boot_id for boot in loaded.boots]
    placed = []
    for found in joined:
        index = ids.index(found.boot.boot_id)
        alone = replace(found.boot.snapshot, migrations=(found.migration,))
        migration = report_json(loaded.hosts[index], alone)["migrations"][0]
        migration["peer_host"] = found.peer.name if found.peer is not None else None
        migration["downtime"]["uncertainty_ns"] = found.uncertainty_ns
        migration["downtime"]["service_ns"] = found.service_ns
        migration["downtime"]["gap"] = None if found.gap is None else _gap_json(found.gap)
        placed.append((hosts[index], migration))
    return placed


def _gap_json(gap: GapAccount) -> dict[str, Any]:
    """Times are on the clock of the migration's; `seen_on` is null for what the hosts did not see."""
    return {
        "start_at_ns": gap.start_at_ns,
        "ns": gap.ns,
        "least_ns": gap.least_ns,
        "most_ns": gap.most_ns,
        "uncertainty_ns": gap.uncertainty_ns,
        "explained_ns": gap.explained_ns,
        "spans": [
            {
                "name": span.name,
                "seen_on": span.side,
                "start_at_ns": span.start_at_ns,
                "end_at_ns": span.end_at_ns,
            }
            for span in gap.spans
        ],
    }
