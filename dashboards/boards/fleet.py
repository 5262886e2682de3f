"""The fleet: how many migrations there were, how they ended, how long guests stood still, and whose were worst."""

from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from dashboards.boards import style
from dashboards.boards.style import Column, Row, in_range, instant, of, query, rate
from vftrace.model.migration import Checkpoint
from vftrace.outputs.exporter.accounts import SOURCE_PHASES

UID = "vftrace-fleet"

# A migration between two hosts is counted by both; here each one once.
ONCE = 'role=~"source|stitched"'
VCPU = 'kind="vcpu"'
DEVICE = 'kind="device"'
SOURCE = 'role="source"'
COMPLETED = 'outcome="completed"'
FAILED = 'outcome="failed"'

MIGRATION_LINK = (
    "/d/vftrace-migration/?${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
    "&var-vm=${__data.fields.VM}"
)


# `instance` is the address that Prometheus scrapes, unless it was relabelled.
HOST_PAGES = (
    {"title": "This host's page", "url": "http://${__data.fields.Host}/", "targetBlank": True},
    {"title": "... over TLS", "url": "https://${__data.fields.Host}/", "targetBlank": True},
)


def board() -> models.Dashboard:
    """The board."""
    under_way = _under_way()
    return style.board_of(
        UID,
        "vftrace / Fleet",
        "Migrations of all hosts: how many, how they ended, how long guests stood still, and whose were worst.",
        [
            Row(None, _figures()),
            Row("Migrations", [_outcomes(), _strategies(), _phases(), under_way, _last_outcomes()]),
            Row("Downtime", [_quantiles(), _distribution(), _checkpoints(), _worst()]),
        ],
        annotations=style.blackout_annotations(),
        marked=[under_way],
    )


def _ended(*matchers: str) -> str:
    return f"sum({in_range('migrations_total', ONCE, *matchers)})"


def _quantile(quantile: float, window: str) -> str:
    buckets = of("migration_downtime_seconds_bucket", VCPU)
    grown = (
        f"increase({buckets}[$__range])" if window == "$__range" else f"rate({buckets}[{window}])"
    )
    return f"histogram_quantile({quantile}, sum by (le) ({grown}))"


def _figures() -> list[style.PanelBuilder]:
    share = ((None, "red"), (0.9, "yellow"), (0.99, "green"))
    return [
        style.figure(
            "Under way",
            "VMs that migrate now.",
            "none",
            query(f"count(group by (vm) ({of('migration_active')} == 1)) or vector(0)"),
            ((None, "text"), (1, "blue")),
        ),
        style.figure(
            "Ended",
            "Migrations that ended in the time shown. Prometheus extrapolates, so this is rounded.",
            "none",
            instant(f"round({_ended()})"),
        ),
        style.figure(
            "Failed",
            "Of these, the ones that failed: channel error, an end of either process, or a source that ran again"
            " after the stop.",
            "none",
            instant(f"round({_ended(FAILED)})"),
            style.GREEN_RED,
        ),
        style.figure(
            "Completed",
            "Share of the ended migrations that completed.",
            "percentunit",
            instant(f"{_ended(COMPLETED)} / ({_ended()} > 0)"),
            share,
        ).decimals(0),
        style.figure(
            "Median downtime",
            "Half of the guests stood still for less: latest vCPU exit on the source to first entry on the"
            " destination. Only where one host saw both ends; quantiles of buckets are interpolated.",
            "s",
            instant(_quantile(0.5, "$__range")),
            style.DOWNTIME_STEPS,
        ),
        style.figure(
            "99 % downtime",
            "One guest in a hundred stood still for longer. Yellow from QEMU's default limit of 0.3 s.",
            "s",
            instant(_quantile(0.99, "$__range")),
            style.DOWNTIME_STEPS,
        ),
    ]


def _outcomes() -> style.PanelBuilder:
    panel = style.bars(
        style.lines(
            "Ended, by outcome",
            "Migrations that end in a minute. A migration between two hosts is counted where it began. Saves to a"
            " file and loads from one have their kind before the outcome.",
            "suffix:/min",
            query(f"60 * sum by (outcome) ({rate('migrations_total', ONCE)})", "{{outcome}}"),
            query(f"60 * sum by (kind, outcome) ({rate('saves_total')})", "{{kind}} {{outcome}}"),
            calcs=["max"],
        )
    )
    return style.colours_by_name(panel, style.OUTCOME_COLOURS)


def _strategies() -> style.PanelBuilder:
    return style.gauges(
        "Ended, by strategy",
        "How passed-through devices were dealt with: state transferred (vfio), unplugged before or during the"
        " migration, or none there (plain).",
        "none",
        instant(
            f"sort_desc(round(sum by (strategy) ({in_range('migrations_total', ONCE)})))",
            "{{strategy}}",
        ),
        "blue",
    )


def _phases() -> style.PanelBuilder:
    buckets = in_range("migration_phase_seconds_bucket", SOURCE)
    panel = style.gauges(
        "How long phases take",
        "90 % of the source's phases that ended in the time shown took less.",
        "s",
        instant(
            f"sort_desc(histogram_quantile(0.9, sum by (phase, le) ({buckets})) >= 0)",
            "{{phase}}",
        ),
    )
    return style.colours_by_name(panel, {p: style.PHASE_COLOURS[p] for p in SOURCE_PHASES})


def _under_way() -> style.PanelBuilder:
    phase = style.numbered("migration_phase", "phase", SOURCE_PHASES, SOURCE)
    active = f"{of('migration_active', SOURCE)} == 1"
    who = f"max by (instance, job, vm) ({phase}) and on (instance, job, vm) ({active})"
    return style.states(
        "Migrations under way",
        "Each VM that migrates, in the phase its source is in. Phases shorter than the scrape interval do not"
        " show here: for the blackout look at the checkpoints below.",
        query(f"max by (name, instance) ({style.named(who)})", "{{name}} on {{instance}}"),
        style.numbered_mapping(style.PHASE_COLOURS, SOURCE_PHASES),
    ).height(12)


def _last_outcomes() -> style.PanelBuilder:
    by = "instance, job, vm"
    ended = f"1000 * max by ({by}) ({of('migration_last_ended_timestamp_seconds')})"
    outcome = f"max by ({by}, outcome, cause) ({of('migration_last_outcome')})"
    last = f"{ended} * on ({by}) group_left (outcome, cause) {outcome}"
    # A VM that failed and completed later has a row for each.
    seen = f"max_over_time(({style.named(last)})[$__range:$__rate_interval])"
    colours = {
        outcome: {"color": colour, "index": index}
        for index, (outcome, colour) in enumerate(style.OUTCOME_COLOURS.items())
    }
    columns = [
        Column("A", "Ended", {"unit": "dateTimeAsIso", "custom.width": 180}),
        Column("name", "Name"),
        Column(
            "vm",
            "VM",
            {
                "custom.width": 320,
                "links": [{"title": "This VM's migration", "url": MIGRATION_LINK}],
            },
        ),
        Column(
            "outcome",
            "Outcome",
            {
                "custom.width": 110,
                "custom.cellOptions": {"type": "color-text"},
                "mappings": [{"type": "value", "options": colours}],
            },
        ),
        Column("cause", "Cause", {"custom.width": 170}),
        Column("instance", "Host", {"custom.width": 200, "links": list(HOST_PAGES)}),
    ]
    return style.listing(
        "Last migrations",
        "How migrations ended in the time shown, as each host saw it: of each VM the latest of each kind."
        " The host leads to the page of its vftrace, with the report; the VM's UUID leads to its figures.",
        [style.rows_of(f"topk(100, {seen})", "A")],
        None,
        columns,
        sort="Ended",
    ).height(10)


def _quantiles() -> style.PanelBuilder:
    quantiles = (("median", 0.5), ("90 %", 0.9), ("99 %", 0.99))
    panel = (
        style.lines(
            "Downtime",
            "Quantiles of the migrations that ended around each moment. The dashed line is QEMU's default"
            " downtime limit, 0.3 s; it does not hold for what devices and `cont` add.",
            "s",
            *(
                query(_quantile(quantile, "$__rate_interval"), name, ref)
                for ref, (name, quantile) in zip("ABC", quantiles, strict=True)
            ),
            calcs=["max"],
        )
        .span(9)
        .draw_style(common_models.GraphDrawStyle.POINTS)
        .point_size(7)
    )
    return style.colours_by_name(style.limit_line(panel, 0.3), style.QUANTILE_COLOURS)


def _distribution() -> style.PanelBuilder:
    return style.density(
        "Downtime, all of them",
        "Each column is a moment, each cell the migrations that ended then with such a downtime: the brighter,"
        " the more.",
        "s",
        style.buckets(
            "sum by (le) "
            f"(increase({of('migration_downtime_seconds_bucket', VCPU)}[$__rate_interval]))"
        ),
    ).span(9)


def _checkpoints() -> style.PanelBuilder:
    panel = style.gauges(
        "What sets the downtime",
        "The latest blackout of each VM by checkpoint, on average: the time from the checkpoint before it to"
        " this one. `held` is waiting for somebody to say cont.",
        "s",
        instant(
            "sort_desc(avg by (checkpoint) ("
            f"last_over_time({of('migration_last_checkpoint_seconds')}[$__range])))",
            "{{checkpoint}}",
        ),
    )
    return style.colours_by_name(panel, {c: style.CHECKPOINT_COLOURS[c] for c in Checkpoint})


def _worst() -> style.PanelBuilder:
    longest = (
        f"max by (vm) (max_over_time({of('migration_last_downtime_seconds', VCPU)}[$__range]))"
    )
    device = of("migration_last_downtime_seconds", DEVICE)
    checkpoint = of("migration_last_checkpoint_seconds")
    targets = [
        style.rows_of(f"topk(15, {longest})", "A"),
        style.rows_of(f"group by (vm, name) (last_over_time({of('vm_info')}[$__range]))", "B"),
        style.rows_of(
            f"topk by (vm) (1, max by (vm, checkpoint) (last_over_time({checkpoint}[$__range])))",
            "C",
        ),
        style.rows_of(f"max by (vm) (max_over_time({device}[$__range]))", "D"),
        style.rows_of(f"sum by (vm) ({in_range('dirty_rounds_total')})", "E"),
        style.rows_of(f"sum by (vm) ({in_range('migration_sent_bytes_total')})", "F"),
    ]
    seconds = {"unit": "s", "thresholds": _steps(style.DOWNTIME_STEPS)}
    columns = [
        Column("name", "Name", {"custom.width": 230}),
        Column(
            "vm",
            "VM",
            {
                "custom.width": 320,
                "links": [{"title": "This VM's migration", "url": MIGRATION_LINK}],
            },
        ),
        Column(
            "A",
            "Longest downtime",
            seconds
            | {
                "custom.cellOptions": {"type": "gauge", "mode": "basic"},
                "min": 0,
                "fieldMinMax": True,
            },
        ),
        Column("checkpoint", "Latest set by", {"custom.width": 150}),
        Column("C", "which took", {"unit": "s", "custom.width": 110}),
        Column("D", "Device downtime", {"unit": "s", "custom.width": 140}),
        Column("E", "Rounds", {"unit": "none", "decimals": 0, "custom.width": 90}),
        Column("F", "Sent", {"unit": "bytes", "custom.width": 110}),
    ]
    return (
        style.listing(
            "Worst VMs",
            "The VMs whose longest downtime in the time shown was longest, with what set their latest one. The"
            " VM's UUID leads to its migration.",
            targets,
            "vm",
            columns,
            sort="Longest downtime",
        )
        .height(10)
        .no_value("–")
    )


def _steps(steps: style.Steps) -> dict[str, object]:
    return {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in steps]}
