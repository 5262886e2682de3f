# SPDX-License-Identifier: MIT
"""The fleet board: numbers and outcomes of migrations, downtimes, and the VMs with the longest downtime."""

from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from dashboards.boards import style
from dashboards.boards.style import Column, Row, in_range, instant, of, query, rate
from vftrace.model.migration import Checkpoint
from vftrace.outputs.exporter.accounts import SOURCE_PHASES

UID = "vftrace-fleet"

# Both hosts count a migration between them. This matcher counts each migration once.
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
        "Migrations of all hosts: their number, their outcomes, their downtimes, and the VMs with the longest"
        " downtime.",
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
            "Migrations that ended in the time range. The number is rounded, because Prometheus extrapolates.",
            "none",
            instant(f"round({_ended()})"),
        ),
        style.figure(
            "Failed",
            "Migrations that failed in the time range: the channel broke, the VMM of either side ended, or the guest"
            " ran"
            " on at the source after its stop.",
            "none",
            instant(f"round({_ended(FAILED)})"),
            style.GREEN_RED,
        ),
        style.figure(
            "Completed",
            "The share of the ended migrations that completed.",
            "percentunit",
            instant(f"{_ended(COMPLETED)} / ({_ended()} > 0)"),
            share,
        ).decimals(0),
        style.figure(
            "Median downtime",
            "Half of the migrations had a shorter downtime: from the last vCPU exit on the source to the first vCPU"
            " entry on the destination. It includes a migration only if one host saw both sides. Prometheus"
            " interpolates between buckets.",
            "s",
            instant(_quantile(0.5, "$__range")),
            style.DOWNTIME_STEPS,
        ),
        style.figure(
            "99 % downtime",
            "One migration in a hundred had a longer downtime. Yellow begins at QEMU's default downtime limit, 0.3 s.",
            "s",
            instant(_quantile(0.99, "$__range")),
            style.DOWNTIME_STEPS,
        ),
    ]


def _outcomes() -> style.PanelBuilder:
    panel = style.bars(
        style.lines(
            "Ended, by outcome",
            "Migrations that end per minute. A migration between two hosts counts on the host where it began. For saves"
            " to a file and loads from a file, the kind stands before the outcome.",
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
        "How the migration handled passed-through devices: it transferred their state (vfio), or unplugged them before"
        " or during the migration. plain: the VM had no such device.",
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
        "90 % of the source's phases that ended in the time range took less time than this.",
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
        "Each VM that migrates, with the phase that its source is in. Phases that are shorter than the scrape interval"
        " are not visible. For the blackout, see the checkpoints below.",
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
        "How migrations ended in the time range, as each host saw them: for each VM, the latest with each outcome and"
        " cause. The host links to vftrace's page of that host, with the report. The VM links to its board.",
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
            "Quantiles of the migrations that ended around each time. The dashed line is QEMU's default downtime"
            " limit, 0.3 s. QEMU's limit does not include the time of devices and the wait for `cont`.",
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
        "Distribution of downtime",
        "Each column is a time, each row a range of downtimes. The brighter a cell, the more migrations ended at that"
        " time with that downtime.",
        "s",
        style.buckets(
            "sum by (le) "
            f"(increase({of('migration_downtime_seconds_bucket', VCPU)}[$__rate_interval]))"
        ),
    ).span(9)


def _checkpoints() -> style.PanelBuilder:
    panel = style.gauges(
        "What sets the downtime",
        "The steps of each VM's latest blackout, on average over the VMs. Each step is the time from the checkpoint"
        " before to the named one. `held`: the loaded destination waits for QEMU's `cont` command.",
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
            "The VMs with the longest downtime in the time range, and the step that set their latest downtime. The VM"
            " links to its board.",
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
