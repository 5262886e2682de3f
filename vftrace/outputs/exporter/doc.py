# SPDX-License-Identifier: MIT
"""Makes docs/reference/metrics.md from the table of metrics.

python -m vftrace.outputs.exporter.doc > docs/reference/metrics.md
"""

from vftrace.outputs.exporter.accounts import MAX_ENDED_VMS
from vftrace.outputs.exporter.metrics import METRICS, PREFIX, Metric

_HEAD = f"""# Metrics

This page lists the metrics of `vftrace serve`. It is made from the table in `vftrace/outputs/exporter/metrics.py` by
`make reference`.

- `vm` is the VM's UUID, or `pid-N` for a VM without one. Only `vftrace_vm_info` has names: join it with
  `* on (instance, vm) group_left (name) vftrace_vm_info`.
- Processes with one UUID are one `vm`. Its values follow the process that runs, and dirty pages come from the source.
  If two unrelated VMs run under one UUID, the second is `UUID#PID`, and a line on standard error reports it.
- `instance`, which Prometheus adds, is the host. There is no other host label.
- VMs and migrations that ended stay for `--keep` (5 minutes), at most {MAX_ENDED_VMS:,} ended VMs. The name and the
  last outcome of a VM whose migration ended stay for an hour. A VM that has never migrated has at most 3 series, one
  that has migrated has at most 5, and one that migrates has at most 42.
- Counters without a `vm` begin at 0 with every combination of labels, so that `increase()` includes the first
  migration. Counters with a `vm` begin with its first migration.
- A blackout is shorter than a scrape interval: use the `last_` gauges and the histograms, not `vm_paused`.
- `process_cpu_seconds_total` and `process_resident_memory_bytes` are the cost of the main process.

| metric | type | unit | labels | fed by probe | meaning | alert on |
|---|---|---|---|---|---|---|
"""


def metrics_page() -> str:
    """Return the page as Markdown."""
    return _HEAD + "".join(f"{_row(metric)}\n" for metric in METRICS)


def _row(metric: Metric) -> str:
    cells = (
        f"`{PREFIX}{metric.name}`",
        metric.kind,
        metric.unit.replace("_", " "),
        ", ".join(f"`{label}`" for label in metric.labels),
        metric.probe,
        metric.help,
        metric.alert,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(metrics_page(), end="")
