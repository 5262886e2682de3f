"""The report of several recordings as JSON: the same form as that of one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vftrace.migration.stitch import Joined
from vftrace.outputs.report_json import report_json
from vftrace.sources.merge import Loaded


def joined_json(loaded: Loaded, joined: Sequence[Joined]) -> dict[str, Any]:
    """Every boot under `hosts`, and each migration under the host whose clock its times are on."""
    reports = [
        report_json(host, boot.snapshot)
        for host, boot in zip(loaded.hosts, loaded.boots, strict=True)
    ]
    migrations = []
    for found in joined:
        host = loaded.hosts[loaded.boots.index(found.boot)]
        alone = replace(found.boot.snapshot, migrations=(found.migration,))
        migration = report_json(host, alone)["migrations"][0]
        migration["peer_host"] = found.peer.name if found.peer is not None else None
        migration["downtime"]["uncertainty_ns"] = found.uncertainty_ns
        migration["downtime"]["service_ns"] = found.service_ns
        migrations.append(migration)
    return {
        "schema": reports[0]["schema"],
        "hosts": [host for report in reports for host in report["hosts"]],
        "migrations": migrations,
    }
