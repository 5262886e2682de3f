"""One VM's migration: where the time goes, how fast memory is dirtied, and what is still to come."""

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

from dashboards.boards import style
from dashboards.boards.style import Row, instant, of, query, rate
from vftrace.model.migration import Checkpoint
from vftrace.uapi import VFIO_DEVICE_STATES

UID = "vftrace-migration"

VM = 'vm=~"$vm"'
VCPU = 'kind="vcpu"'
DEVICE = 'kind="device"'
JOINED = 'vm:vftrace_migration_downtime_seconds:joined{vm=~"$vm"}'
STRATEGY_COLOURS = {
    "plain": "blue",
    "vfio": "purple",
    "unplug": "orange",
    "late-unplug": "yellow",
    "failover": "light-green",
    "mailbox": "light-blue",
    "postcopy": "light-purple",
}


VCPU_COLOURS = {
    "guest": "green",
    "idle": "light-green",
    "exit": "dark-green",
    "fault": "yellow",
    "user": "blue",
    "queue": "orange",
    "throttle": "red",
    "limit": "light-red",
    "ring-full": "dark-red",
    "stopped": style.GREY,
    "unknown": style.DARK_GREY,
}


def board() -> models.Dashboard:
    """The board."""
    return style.board_of(
        UID,
        "vftrace / One migration",
        "One VM on every host that has it: phases, blackout by checkpoint, rounds, dirty rate, forecast.",
        [
            Row(None, _figures()),
            Row("Phases", [_phases(), _devices()]),
            Row("Blackout", [_checkpoints(), _blackouts()]),
            Row("Brownout", [_speed(), _vcpus()]),
            Row("Memory", [_rates(), _rounds(), _pages(), _forecast()]),
        ],
        variables=[_vm()],
        annotations=style.blackout_annotations(VM),
        span="now-1h",
    )


def _vm() -> dashboard.QueryVariable:
    # label_values knows no names; and who ended before now must be found too.
    info = f"last_over_time({of('vm_info')}[${{__range_s}}s])"
    migrated = f"last_over_time({of('migration_active')}[${{__range_s}}s])"
    shortened = f'label_replace({info}, "short", "$1", "vm", "(.{{1,8}}).*")'
    with_names = f'label_join({shortened}, "option", "  ", "name", "short")'
    return style.chosen(
        "vm",
        "VM",
        f"query_result({with_names} and on (instance, job, vm) {migrated})",
        many=False,
    ).regex('/option="(?<text>[^"]+)".*,vm="(?<value>[^"]+)"/')


def _figures() -> list[style.PanelBuilder]:
    downtime = of("migration_last_downtime_seconds", VM, VCPU)
    worst = f"max by (checkpoint) ({of('migration_last_checkpoint_seconds', VM)})"
    converges = style.mapping({"0": ("not converging", "red"), "1": ("converging", "green")})
    return [
        style.figure(
            "Downtime",
            "The latest blackout: last vCPU exit to first vCPU entry. Of two hosts it is their joined time.",
            "s",
            query(f"max({downtime}) or max({JOINED})"),
            style.DOWNTIME_STEPS,
        ),
        style.figure(
            "Set by",
            "The checkpoint that took most of the latest blackout.",
            "s",
            instant(f"topk(1, {worst})", "{{checkpoint}}"),
        )
        .text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
        .wide_layout(False)
        .color_mode(common_models.BigValueColorMode.NONE),
        style.figure(
            "Device downtime",
            "How long its slowest passed-through device was away: from leaving RUNNING or being unplugged until"
            " its successor runs. None where the VM has no such device.",
            "s",
            query(f"max({of('migration_last_downtime_seconds', VM, DEVICE)})"),
            style.DOWNTIME_STEPS,
        ),
        style.figure(
            "Rounds",
            "Sweeps over all logged memory in the time shown, of all its migrations.",
            "none",
            instant(f"round(sum({style.in_range('dirty_rounds_total', VM)}))"),
        ).decimals(0),
        style.figure(
            "Sent",
            "Bytes on its migration channels in the time shown.",
            "bytes",
            instant(f"sum({style.in_range('migration_sent_bytes_total', VM)})"),
        ),
        style.figure(
            "Precopy",
            "Whether it comes to an end at the rates seen; as forecast last.",
            "none",
            query(f"min({of('forecast_converges', VM)})"),
        ).mappings([converges]),
    ]


def _phases() -> style.PanelBuilder:
    phase = style.numbered("migration_phase", "phase", style.PHASES, VM)
    return style.states(
        "Phases",
        "The phase that each role is in. What is shorter than the scrape interval, often the whole blackout,"
        " does not show here: look at the checkpoints and the marks of stop and resume.",
        query(f"max by (instance, role) ({phase})", "{{role}} on {{instance}}"),
        style.numbered_mapping(style.PHASE_COLOURS, style.PHASES),
    )


def _devices() -> style.PanelBuilder:
    state = style.numbered("vfio_device_state", "state", VFIO_DEVICE_STATES, VM)
    return style.states(
        "Passed-through devices",
        "The state each device is in (enum vfio_device_mig_state). Nothing for a VM without one.",
        query(f"max by (instance, device) ({state})", "{{device}}"),
        style.numbered_mapping(style.DEVICE_COLOURS, VFIO_DEVICE_STATES),
    ).no_value("no passed-through device")


def _checkpoints() -> style.PanelBuilder:
    panel = (
        style.gauges(
            "Latest blackout by checkpoint",
            "The time from the checkpoint before it to this one, of the latest blackout. `held` is waiting for"
            " somebody to say cont.",
            "s",
            instant(
                f"sort_desc(max by (checkpoint) ({of('migration_last_checkpoint_seconds', VM)}))",
                "{{checkpoint}}",
            ),
        )
        .span(9)
        .height(9)
    )
    return style.colours_by_name(panel, {c: style.CHECKPOINT_COLOURS[c] for c in Checkpoint})


def _blackouts() -> style.PanelBuilder:
    panel = style.steps_of(
        style.stacked(
            style.lines(
                "Blackouts, stacked by checkpoint",
                "The latest blackout at each moment; its height is the downtime. A step is a new migration.",
                "s",
                query(
                    f"max by (checkpoint) ({of('migration_last_checkpoint_seconds', VM)})",
                    "{{checkpoint}}",
                ),
                calcs=["lastNotNull", "max"],
            )
        )
    )
    colours: dict[str, str] = {
        checkpoint: style.CHECKPOINT_COLOURS[checkpoint] for checkpoint in Checkpoint
    }
    return style.colours_by_name(panel, colours).span(15).height(9)


def _speed() -> style.PanelBuilder:
    panel = style.lines(
        "Guest speed",
        "While it migrates: the part of the last two seconds in which the guest could run, as a part of that before.",
        "percentunit",
        query(f"min({of('migration_guest_speed_ratio', VM)})", "guest speed"),
        calcs=["mean", "min"],
    )
    return style.colours_by_name(panel, {"guest speed": "green"})


def _vcpus() -> style.PanelBuilder:
    panel = style.stacked(
        style.lines(
            "Where the time of its vCPUs goes",
            "While it migrates, in vCPUs. The guest gets on in guest, idle and exit. throttle is auto-converge, limit"
            " the dirty limit, queue a wait for a CPU, fault a page fault with its wait for the page.",
            "none",
            query(f"sum by (state) ({rate('vm_vcpu_seconds_total', VM)})", "{{state}}"),
            calcs=["mean", "max"],
        )
    )
    return style.colours_by_name(panel, VCPU_COLOURS)


def _rates() -> style.PanelBuilder:
    panel = style.lines(
        "Dirtied against sent",
        "Precopy ends when more is sent than is dirtied. Dirtied: new pages of the latest round by the time since"
        " the round before.",
        "binBps",
        query(f"max({of('dirty_rate_bytes_per_second', VM)})", "dirtied", "A"),
        query(f"sum({rate('migration_sent_bytes_total', VM)})", "sent", "B"),
        calcs=["mean", "max"],
    ).show_points(common_models.VisibilityMode.AUTO)
    return style.colours_by_name(panel, {"dirtied": "orange", "sent": "blue"})


def _rounds() -> style.PanelBuilder:
    panel = style.steps_of(
        style.lines(
            "Rounds over time",
            "Sweeps over all logged memory since this VM was first seen to migrate here (QEMU calls them"
            " dirty-sync-count). A flat line is a long round; steps close together are the end.",
            "none",
            query(f"sum({of('dirty_rounds_total', VM)})", "rounds"),
            calcs=["lastNotNull"],
        )
    )
    return style.colours_by_name(panel, {"rounds": "blue"})


def _pages() -> style.PanelBuilder:
    panel = style.stacked(
        style.lines(
            "New pages, by who dirtied them",
            "kvm: the guest's vCPUs. vfio and iommu: devices, as they or the IOMMU report.",
            "pps",
            query(f"sum by (source) ({rate('dirty_pages_total', VM)})", "{{source}}"),
            calcs=["mean", "max"],
        )
    )
    panel.unit("suffix:pages/s")
    return style.colours_by_name(panel, {"kvm": "orange", "vfio": "purple", "iommu": "light-blue"})


def _forecast() -> style.PanelBuilder:
    panel = (
        style.lines(
            "Forecast of the downtime",
            "While it migrates: the downtime it will come to, and what other ways would cost from here. The dashed line"
            " is what the latest blackout really took.",
            "s",
            query(
                f"max by (strategy) ({of('forecast_downtime_seconds', VM)})", "{{strategy}}", "A"
            ),
            query(f"max({of('migration_last_downtime_seconds', VM, VCPU)})", "measured", "B"),
            calcs=["lastNotNull", "max"],
        )
        .show_points(common_models.VisibilityMode.ALWAYS)
        .point_size(6)
        .fill_opacity(0)
    )
    panel.override_by_name(
        "measured",
        style.values(
            color=style.fixed("text"),
            custom__lineStyle={"fill": "dash", "dash": [8, 8]},
            custom__fillOpacity=0,
            custom__showPoints="never",
            custom__lineInterpolation="stepAfter",
        ),
    )
    return style.colours_by_name(style.logarithmic(panel), STRATEGY_COLOURS)
