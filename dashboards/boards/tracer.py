"""vftrace itself: whether it sees everything, loses nothing, and what it costs."""

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
        "Whether vftrace sees everything on every host, what it lost, and what it costs.",
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
            "Hosts whose vftrace answers.",
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
            "Probes that the kernel refused, on all hosts together. `vftrace doctor` on the host says why.",
            "none",
            query(f"count({of('probe_attached', REFUSED)} == 0) or vector(0)"),
            ((None, "green"), (1, "yellow")),
        ),
        style.figure(
            "Lost",
            "Records that did not fit into the ring buffer, in the time shown.",
            "short",
            instant(f"sum({in_range('events_lost_total')})"),
            style.GREEN_RED,
        ).decimals(0),
        style.figure(
            "Incomplete migrations",
            "Migrations that ended in the time shown and of which records are missing.",
            "none",
            instant(f"round(sum({in_range('migrations_incomplete_total')}))"),
            style.GREEN_RED,
        ),
        style.figure(
            "Events",
            "Records read per second, of all hosts.",
            "suffix:/s",
            query(f"sum({rate('events_total')})"),
        ).decimals(0),
    ]


def _probes() -> style.PanelBuilder:
    return (
        style.listing(
            "Probes",
            "On how many hosts each probe is attached, and how: fentry is cheapest, then kprobe, then tracepoint;"
            " waiting: for what it watches, such as the vfio module; none: refused.",
            [style.rows_of(f"count by (probe, method) ({of('probe_attached')})", "A")],
            None,
            [
                Column("probe", "Probe"),
                Column(
                    "method",
                    "Way",
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
            "How many probes of a host wait or were refused. On a host without VFIO devices some always wait.",
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
                "Records read per second. `collector` is the reader's own: at 0 it hangs.",
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
                "Records per second that did not fit into the ring buffer. What they touch is marked incomplete.",
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
                "Errors in vftrace itself that were contained, by what was being worked on. Please report them,"
                " with the file that the log names.",
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


def _tables() -> style.PanelBuilder:
    full = f"sum by (instance, table) ({of('kernel_table_full_total')})"
    return (
        style.lines(
            "Kernel tables full",
            "Entries for which a table of the kernel side had no room, since vftrace started there: the VMs that needed"
            " them are marked incomplete, and with `vms` they are not traced at all.",
            "none",
            # A host without a full table has a line too, at 0.
            query(
                f"{full} or 0 * sum by (instance) ({of('build_info')})", "{{instance}} {{table}}"
            ),
        )
        .span(12)
        .height(6)
        .fill_opacity(0)
    )


def _vms_lost() -> style.PanelBuilder:
    return (
        style.listing(
            "Lost by VM",
            "Of which VMs something is missing, most first: `records` and `uncounted` make their migrations incomplete,"
            " `bitmap_parts` make numbers of pages unknown. No other VM is concerned.",
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
            "Of one CPU, for each of the two processes; what probes cost the guests and QEMU is not in it"
            " (docs/results/overhead.md).",
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
            "Resident memory of each of the two processes.",
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
            "How long Prometheus waits for the metrics of a host.",
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
            "How old the oldest record is that the reader process has taken and that is not decoded yet. Late is not"
            " lossy: records wait in the reader.",
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
            "Whether vftrace answered Prometheus.",
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
            "What runs where. Versions that differ within a fleet are worth a look.",
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
            "The kernel's own bound on how wrong a host's clock is: a downtime across two hosts is not known better.",
            "s",
            query(of("clock_error_seconds"), "{{instance}}"),
        )
        .span(8)
        .height(8)
        .fill_opacity(0)
    )
