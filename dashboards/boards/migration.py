# SPDX-License-Identifier: MIT
"""The board of one VM's migration: where the time goes, how fast the guest dirties memory, and the forecast."""

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
    # label_values has no names; and VMs that ended before now have to be listed too.
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
            "The latest blackout: from the last vCPU exit to the first vCPU entry. If each host saw one side, the"
            " joined time of both.",
            "s",
            query(f"max({downtime}) or max({JOINED})"),
            style.DOWNTIME_STEPS,
        ),
        style.figure(
            "Set by",
            "The step that took most of the latest blackout, by the checkpoint at its end.",
            "s",
            instant(f"topk(1, {worst})", "{{checkpoint}}"),
        )
        .text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
        .wide_layout(False)
        .color_mode(common_models.BigValueColorMode.NONE),
        style.figure(
            "Device downtime",
            "How long the guest could not use its slowest passed-through device: from the end of RUNNING or the unplug"
            " on the source until the device runs on the destination. Empty if the VM has no such device.",
            "s",
            query(f"max({of('migration_last_downtime_seconds', VM, DEVICE)})"),
            style.DOWNTIME_STEPS,
        ),
        style.figure(
            "Rounds",
            "Dirty syncs in the time range, of all migrations of this VM. Each begins a round.",
            "none",
            instant(f"round(sum({style.in_range('dirty_rounds_total', VM)}))"),
        ).decimals(0),
        style.figure(
            "Sent",
            "Bytes on the migration channels of this VM in the time range.",
            "bytes",
            instant(f"sum({style.in_range('migration_sent_bytes_total', VM)})"),
        ),
        style.figure(
            "Precopy",
            "Whether precopy ends by itself at the measured rates, according to the latest forecast.",
            "none",
            query(f"min({of('forecast_converges', VM)})"),
        ).mappings([converges]),
    ]


def _phases() -> style.PanelBuilder:
    phase = style.numbered("migration_phase", "phase", style.PHASES, VM)
    return style.states(
        "Phases",
        "The phase that each role is in. Phases that are shorter than the scrape interval, often the whole blackout,"
        " are"
        " not visible. See the checkpoints below, and the dashed lines at the stop and the resume.",
        query(f"max by (instance, role) ({phase})", "{{role}} on {{instance}}"),
        style.numbered_mapping(style.PHASE_COLOURS, style.PHASES),
    )


def _devices() -> style.PanelBuilder:
    state = style.numbered("vfio_device_state", "state", VFIO_DEVICE_STATES, VM)
    return style.states(
        "Passed-through devices",
        "The migration state of each device (enum vfio_device_mig_state). Empty if the VM has no such device.",
        query(f"max by (instance, device) ({state})", "{{device}}"),
        style.numbered_mapping(style.DEVICE_COLOURS, VFIO_DEVICE_STATES),
    ).no_value("no passed-through device")


def _checkpoints() -> style.PanelBuilder:
    panel = (
        style.gauges(
            "Latest blackout by checkpoint",
            "The steps of the latest blackout. Each step is the time from the checkpoint before to the named one."
            " `held`: the loaded destination waits for QEMU's `cont` command.",
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
                "The latest blackout at each time. The height is the downtime. The height changes with each new"
                " migration.",
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
        "While the VM migrates: the share of the last two seconds in which its vCPUs could run, compared with the"
        " share before"
        " the migration.",
        "percentunit",
        query(f"min({of('migration_guest_speed_ratio', VM)})", "guest speed"),
        calcs=["mean", "min"],
    )
    return style.colours_by_name(panel, {"guest speed": "green"})


def _vcpus() -> style.PanelBuilder:
    panel = style.stacked(
        style.lines(
            "vCPU time by state",
            "While the VM migrates, in vCPUs. The vCPUs can run in guest, idle and exit. throttle: auto-converge"
            " holds them."
            " limit: the dirty limit holds them. queue: they wait for a CPU. fault: they wait for a page.",
            "none",
            query(f"sum by (state) ({rate('vm_vcpu_seconds_total', VM)})", "{{state}}"),
            calcs=["mean", "max"],
        )
    )
    return style.colours_by_name(panel, VCPU_COLOURS)


def _rates() -> style.PanelBuilder:
    panel = style.lines(
        "Dirtied and sent",
        "Precopy usually ends by itself only if QEMU sends more than the guest dirties. Dirtied: the new pages of the"
        " latest round in bytes, divided by the time since the round before.",
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
            "Dirty syncs (QEMU's dirty-sync-count) since vftrace first saw this VM migrate. A flat line is a long"
            " round. Short rounds usually come before the end of precopy.",
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
            "kvm: dirtied by the guest's vCPUs. vfio and iommu: dirtied by devices, as the device or the IOMMU"
            " reports.",
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
            "While the VM migrates: the downtime of this migration if it continues, and with other strategies from"
            " now on."
            " The dashed line is the measured downtime of the latest blackout.",
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
