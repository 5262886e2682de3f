"""docs/reference/metrics.md, made from the table of metrics.

python -m vftrace.outputs.exporter.doc > docs/reference/metrics.md
"""

from vftrace.outputs.exporter.accounts import MAX_ENDED_VMS
from vftrace.outputs.exporter.metrics import METRICS, PREFIX, Metric

_HEAD = f"""# Metrics

What `vftrace serve` exposes. Made from the table in `vftrace/outputs/exporter/metrics.py` by
`python -m vftrace.outputs.exporter.doc > docs/reference/metrics.md`; a test checks that it is up to date.

- `vm` is the VM's UUID, or `pid-N` where it has none. Names stand on `vftrace_vm_info` only: join them with
  `* on (instance, vm) group_left (name) vftrace_vm_info`.
- Processes with one UUID are one `vm`; its values follow the one that runs, what is dirtied comes from the
  source. When two VMs that have nothing to do with each other run under one UUID, the second is
  `UUID#PID`, and a line on standard error reports it.
- There is no host label: that is `instance`, which Prometheus adds.
- VMs and migrations that ended stay for `--keep` (5 minutes), at most {MAX_ENDED_VMS:,} ended VMs. The name
  and the last outcome of a VM whose migration ended stay for an hour. A VM that has never migrated has at most 3
  series, one that has at most 5, one that migrates at most 42.
- Counters without a `vm` begin at 0 with every combination of labels, so that `increase()` sees the first
  migration too. Those with a `vm` begin with its first migration.
- A blackout is shorter than a scrape interval: use the `last_` gauges and the histograms, not `vm_paused`.
- The process's own cost is in `process_cpu_seconds_total` and `process_resident_memory_bytes`.

| metric | type | unit | labels | fed by probe | meaning | alert on |
|---|---|---|---|---|---|---|
"""


def metrics_page() -> str:
    """The page as Markdown."""
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
