# SPDX-License-Identifier: MIT
"""The board of vftrace itself: what it sees, what it lost, and what it costs."""

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.models import dashboard as models

from dashboards.boards import style
from dashboards.boards.style import Column, Row, in_range, instant, of, query, rate

UID = "vftrace-self"

REFUSED = 'method="none"'
SCRAPED = '{job=~"$job", instance=~"$instance"}'
PROBE_COLOURS = {
    "ioctl": "blue",
    "channel": "green",
    "vfio": "purple",
    "vfio-data": "light-purple",
    "mailbox": "orange",
    "process": "light-blue",
    "collector": style.GREY,
    "unknown": "red",
}


def board() -> models.Dashboard:
    """The board."""
    return style.board_of(
        UID,
        "vftrace / vftrace itself",
        "Whether vftrace sees everything on each host, what it lost, and what it costs.",
        [
            Row(None, _figures()),
            Row(
                "What it sees",
                [
                    _probes(),
                    _events(),
                    _missing(),
                    _lost(),
                    _internal_errors(),
                    _tables(),
                    _missed_runs(),
                    _vms_lost(),
                ],
            ),
            Row("What it costs", [_cpu(), _memory(), _scrape(), _lateness()]),
            Row("Hosts", [_up(), _versions(), _clock()]),
        ],
    )


def _figures() -> list[style.PanelBuilder]:
    return [
        style.figure(
            "Hosts",
            "Hosts whose vftrace answers scrapes.",
            "none",
            query(f"sum(up{SCRAPED})"),
        ),
        style.figure(
            "Silent hosts",
            "Hosts that Prometheus cannot scrape.",
            "none",
            query(f"sum(1 - up{SCRAPED})"),
            style.GREEN_RED,
        ),
        style.figure(
            "Probes refused",
            "Probes that the kernel refused, on all hosts together. `vftrace doctor` on the host prints the reason.",
            "none",
            query(f"count({of('probe_attached', REFUSED)} == 0) or vector(0)"),
            ((None, "green"), (1, "yellow")),
        ),
        style.figure(
            "Lost",
            "Records that did not fit into a ring buffer, in the time range.",
            "short",
            instant(f"sum({in_range('events_lost_total')})"),
            style.GREEN_RED,
        ).decimals(0),
        style.figure(
            "Incomplete migrations",
            "Migrations that ended in the time range and whose records are not complete.",
            "none",
            instant(f"round(sum({in_range('migrations_incomplete_total')}))"),
            style.GREEN_RED,
        ),
        style.figure(
            "Events",
            "Records that vftrace reads per second, on all hosts together.",
            "suffix:/s",
            query(f"sum({rate('events_total')})"),
        ).decimals(0),
    ]


def _probes() -> style.PanelBuilder:
    return (
        style.listing(
            "Probes",
            "The number of hosts for each probe and each method by which it is attached. fentry costs least, then"
            " kprobe,"
            " then tracepoint. waiting: the module that the probe watches, such as vfio, is not loaded. none: the"
            " kernel"
            " refused the probe.",
            [style.rows_of(f"count by (probe, method) ({of('probe_attached')})", "A")],
            None,
            [
                Column("probe", "Probe"),
                Column(
                    "method",
                    "Method",
                    {
                        "custom.cellOptions": {"type": "color-text"},
                        "mappings": [
                            {
                                "type": "value",
                                "options": {
                                    "fentry": {"color": "green", "index": 0},
                                    "kprobe": {"color": "blue", "index": 1},
                                    "tracepoint": {"color": "light-blue", "index": 2},
                                    "waiting": {"color": style.GREY, "index": 3},
                                    "none": {"color": "red", "index": 4},
                                },
                            }
                        ],
                    },
                ),
                Column("A", "Hosts", {"unit": "none", "decimals": 0}),
            ],
            sort="Hosts",
        )
        .span(8)
        .height(9)
    )


def _missing() -> style.PanelBuilder:
    attached = of("probe_attached")
    words = {"0": ("all attached", "green")}
    words |= {str(n): (f"{n} not attached", "yellow" if n < 4 else "orange") for n in range(1, 10)}
    return (
        style.states(
            "Probes not attached",
            "How many probes of a host wait for a module or were refused. On a host without VFIO devices, some"
            " probes always wait.",
            query(
                f"count by (instance) ({attached} == 0) or 0 * count by (instance) ({attached})",
                "{{instance}}",
            ),
            style.mapping(words),
        )
        .span(8)
        .height(9)
    )


def _events() -> style.PanelBuilder:
    panel = (
        style.stacked(
            style.lines(
                "Events by probe",
                "Records that vftrace reads per second. `collector` is the reader process itself: at 0 the reader"
                " hangs.",
                "suffix:/s",
                query(f"sum by (probe) ({rate('events_total')})", "{{probe}}"),
                calcs=["mean", "max"],
            )
        )
        .span(16)
        .height(9)
    )
    return style.colours_by_name(panel, PROBE_COLOURS)


def _lost() -> style.PanelBuilder:
    return (
        style.bars(
            style.lines(
                "Events lost",
                "Records per second that did not fit into a ring buffer. vftrace marks the affected migrations as"
                " incomplete.",
                "suffix:/s",
                query(f"sum by (instance) ({rate('events_lost_total')})", "{{instance}}"),
                calcs=["max"],
            )
        )
        .span(8)
        .height(9)
        .axis_soft_max(1)
    )


def _internal_errors() -> style.PanelBuilder:
    return (
        style.bars(
            style.lines(
                "Internal errors",
                "Errors in vftrace's own code, by the part that raised them. vftrace continued without that part."
                " Please"
                " report them, with the file that the log names.",
                "short",
                query(
                    f"sum by (instance, where) ({rate('internal_errors_total')})",
                    "{{instance}} {{where}}",
                ),
                calcs=["max"],
            )
        )
        .span(8)
        .height(9)
        .axis_soft_max(1)
    )


def _with_zero(metric: str, label: str) -> prometheus.Dataquery:
    """A counter by label, with a line at 0 for a host that has none."""
    counted = f"sum by (instance, {label}) ({of(metric)})"
    hosts = f"sum by (instance) ({of('build_info')})"
    return query(f"{counted} or 0 * {hosts}", f"{{{{instance}}}} {{{{{label}}}}}")


def _tables() -> style.PanelBuilder:
    return (
        style.lines(
            "Kernel tables full",
            "Entries for which a kernel table of vftrace had no room, since vftrace started. vftrace marks the VMs"
            " that needed"
            " an entry as incomplete; if the table is `vms`, vftrace does not trace them at all.",
            "none",
            _with_zero("kernel_table_full_total", "table"),
            query(of("untraced_vms_total"), "{{instance}} VMs of user {{uid}}"),
        )
        .span(6)
        .height(6)
        .fill_opacity(0)
    )


def _missed_runs() -> style.PanelBuilder:
    return (
        style.lines(
            "Missed runs",
            "Runs of probes that the kernel skipped, since vftrace started there, as another program was under way on"
            " that CPU. Migrations under way then are marked incomplete, except for `calls`, `vcpus` and `process`.",
            "none",
            _with_zero("probe_missed_runs_total", "probe"),
        )
        .span(6)
        .height(6)
        .fill_opacity(0)
    )


def _vms_lost() -> style.PanelBuilder:
    return (
        style.listing(
            "Lost by VM",
            "VMs that lost records. `records` and `uncounted` make the VM's migrations incomplete, `bitmap_parts`"
            " make its"
            " numbers of pages unknown. Other VMs are not affected.",
            [
                style.rows_of(
                    f"topk(20, sum by (instance, vm, kind) ({of('vm_events_lost_total')}) > 0)", "A"
                )
            ],
            None,
            [
                Column("instance", "Host"),
                Column("vm", "VM"),
                Column("kind", "What"),
                Column("A", "Lost", {"unit": "short", "decimals": 0}),
            ],
            sort="Lost",
        )
        .span(12)
        .height(6)
    )


def _cpu() -> style.PanelBuilder:
    return (
        style.lines(
            "CPU",
            "The share of one CPU that each of the two processes uses. The time that probes add to QEMU and to"
            " guests is"
            " not included (docs/results/overhead.md).",
            "percentunit",
            query(f"rate(process_cpu_seconds_total{SCRAPED}[$__rate_interval])", "{{instance}}"),
            query(rate("reader_cpu_seconds_total"), "{{instance}} reader"),
        )
        .span(6)
        .fill_opacity(0)
    )


def _memory() -> style.PanelBuilder:
    return (
        style.lines(
            "Memory",
            "The resident memory of each of the two processes.",
            "bytes",
            query(f"process_resident_memory_bytes{SCRAPED}", "{{instance}}"),
            query(of("reader_resident_memory_bytes"), "{{instance}} reader"),
        )
        .span(6)
        .fill_opacity(0)
    )


def _scrape() -> style.PanelBuilder:
    return (
        style.lines(
            "Scrape",
            "How long a scrape of each host takes.",
            "s",
            query(f"scrape_duration_seconds{SCRAPED}", "{{instance}}"),
        )
        .span(6)
        .fill_opacity(0)
    )


def _lateness() -> style.PanelBuilder:
    return (
        style.lines(
            "Lateness",
            "The age of the oldest record that the reader has read and the main process has not decoded. Late"
            " records are"
            " not lost: they wait in the reader.",
            "s",
            query(of("reader_lateness_seconds"), "{{instance}}"),
        )
        .span(6)
        .fill_opacity(0)
    )


def _up() -> style.PanelBuilder:
    return (
        style.states(
            "Answers",
            "Whether vftrace answered the scrapes of Prometheus.",
            query(f"max by (instance) (up{SCRAPED})", "{{instance}}"),
            style.mapping({"0": ("silent", "red"), "1": ("up", "green")}),
        )
        .span(8)
        .height(8)
    )


def _versions() -> style.PanelBuilder:
    return (
        style.listing(
            "Versions",
            "The number of hosts for each version. Check hosts whose version differs from the others.",
            [style.rows_of(f"count by (version, kernel, python) ({of('build_info')})", "A")],
            None,
            [
                Column("version", "vftrace", {"custom.width": 90}),
                Column("kernel", "Kernel"),
                Column("python", "Python", {"custom.width": 90}),
                Column("A", "Hosts", {"unit": "none", "decimals": 0, "custom.width": 70}),
            ],
            sort="Hosts",
        )
        .span(8)
        .height(8)
    )


def _clock() -> style.PanelBuilder:
    return (
        style.lines(
            "Clock error",
            "How wrong each host's clock may be, according to its kernel. The error of a downtime across two hosts"
            " is the sum of"
            " both.",
            "s",
            query(of("clock_error_seconds"), "{{instance}}"),
        )
        .span(8)
        .height(8)
        .fill_opacity(0)
    )
