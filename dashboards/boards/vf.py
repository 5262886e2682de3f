# SPDX-License-Identifier: MIT
"""The board of virtual functions: mailbox messages, resets, refusals, downtime, and VFIO device states."""

from grafana_foundation_sdk.models import dashboard as models

from dashboards.boards import style
from dashboards.boards.style import Column, Row, in_range, instant, of, query, rate
from vftrace.uapi import VFIO_DEVICE_STATES

UID = "vftrace-vf"

VF = ('pf=~"$pf"', 'vf=~"$vf"')
NACK = 'result="NACK"'
ASKED = 'direction="from-vf"'
ANSWERED = 'direction="to-vf"'
FLOOD = 'message="not-recorded"'


def board() -> models.Dashboard:
    """The board."""
    states = _states()
    return style.board_of(
        UID,
        "vftrace / VFs and mailbox",
        "For each PF and VF: mailbox messages, refusals, resets and downtime. For each VFIO device: its states.",
        [
            Row(None, _figures()),
            Row("Mailbox", [_messages(), _answers(), _kinds(), _nacks(), _resets()]),
            Row("Virtual functions", [_listing(), _downtime()]),
            Row("VFIO devices", [states, _entered(), _ways()]),
        ],
        variables=[
            style.chosen("pf", "PF", f"label_values({of('vf_resets_total')}, pf)"),
            style.chosen("vf", "VF", f"label_values({of('vf_resets_total', VF[0])}, vf)"),
        ],
        annotations=style.blackout_annotations(),
        marked=[states],
        span="now-1h",
    )


def _figures() -> list[style.PanelBuilder]:
    messages = f"sum({in_range('vf_mailbox_messages_total', *VF)})"
    return [
        style.figure(
            "VFs",
            "Virtual functions that sent mailbox messages or that a VM has.",
            "none",
            query(f"count({of('vf_resets_total', *VF)})"),
        ),
        style.figure(
            "Messages",
            "Mailbox messages in the time range, in both directions.",
            "short",
            instant(f"round({messages})"),
        ),
        style.figure(
            "NACKs",
            "Requests that the card's driver refused. A refused API_NEGOTIATE is harmless: the versions differ.",
            "short",
            instant(f"round(sum({in_range('vf_mailbox_messages_total', *VF, NACK)})) or vector(0)"),
            ((None, "green"), (1, "yellow"), (100, "red")),
        ),
        style.figure(
            "Resets",
            "Resets of VFs, by a message or of the PCI function. The start of a VM and a migration cause some.",
            "short",
            instant(f"round(sum({in_range('vf_resets_total', *VF)}))"),
        ),
        style.figure(
            "Not recorded",
            "Messages above 1,000 per second, which vftrace counts but does not record: a guest floods its mailbox.",
            "short",
            instant(
                "round(sum(" + in_range("vf_mailbox_messages_total", *VF, FLOOD) + ")) or vector(0)"
            ),
            style.GREEN_RED,
        ),
        style.figure(
            "Longest VF downtime",
            "The longest of the VFs' latest downtimes. A downtime lasts from the unplug or the reset until the VF is"
            " ready.",
            "s",
            instant(f"max(last_over_time({of('vf_downtime_seconds', *VF)}[$__range]))"),
            ((None, "green"), (5, "yellow"), (30, "red")),
        ),
    ]


def _messages() -> style.PanelBuilder:
    return style.stacked(
        style.lines(
            "Messages of VFs, by kind",
            "Requests per second, by name. unknown: vftrace does not know the message.",
            "suffix:msg/s",
            query(
                f"sum by (message) ({rate('vf_mailbox_messages_total', *VF, ASKED)}) > 0",
                "{{message}}",
            ),
            calcs=["max"],
        )
    ).height(9)


def _answers() -> style.PanelBuilder:
    panel = style.stacked(
        style.lines(
            "Answers of PFs, by result",
            "ACK: done. NACK: refused. CTS: clear to send. none: the message is not an answer, such as PF_CONTROL.",
            "suffix:msg/s",
            query(
                f"sum by (result) ({rate('vf_mailbox_messages_total', *VF, ANSWERED)})",
                "{{result}}",
            ),
            calcs=["max"],
        )
    ).height(9)
    return style.colours_by_name(panel, style.RESULT_COLOURS)


def _kinds() -> style.PanelBuilder:
    return (
        style.gauges(
            "Requests by kind",
            "The ten most frequent kinds of requests in the time range.",
            "none",
            instant(
                "sort_desc(topk(10, round(sum by (message) ("
                + in_range("vf_mailbox_messages_total", *VF, ASKED)
                + ")) > 0))",
                "{{message}}",
            ),
            "blue",
        )
        .span(8)
        .height(9)
    )


def _nacks() -> style.PanelBuilder:
    return (
        style.lines(
            "NACKs per VF",
            "Refused requests per second. A high rate means that a guest repeats a request that the host does not"
            " allow.",
            "suffix:msg/s",
            query(
                f"sum by (pf, vf) ({rate('vf_mailbox_messages_total', *VF, NACK)}) > 0",
                "{{pf}} VF {{vf}}",
            ),
        )
        .span(8)
        .height(9)
    )


def _resets() -> style.PanelBuilder:
    return (
        style.steps_of(
            style.lines(
                "Resets per VF",
                "Resets since vftrace started on the host. Many steps mean that the guest's driver keeps failing to"
                " initialise.",
                "none",
                query(f"sum by (pf, vf) ({of('vf_resets_total', *VF)})", "{{pf}} VF {{vf}}"),
            )
        )
        .span(8)
        .height(9)
    )


def _listing() -> style.PanelBuilder:
    by = "by (instance, pf, vf)"

    def keyed(expression: str) -> str:
        # Tables are joined by one label: the three that name a VF as one.
        return f'label_join({expression}, "which", " ", "instance", "pf", "vf")'

    def latest(metric: str, *matchers: str) -> str:
        return f"sum {by} (last_over_time({of(metric, *VF, *matchers)}[$__range]))"

    messages = latest("vf_mailbox_messages_total")
    nacks = latest("vf_mailbox_messages_total", NACK)
    targets = [
        style.rows_of(keyed(latest("vf_resets_total")), "A"),
        *(
            style.rows_of(f"max by (which) ({keyed(expression)})", ref)
            for ref, expression in (
                ("B", messages),
                ("C", nacks),
                ("D", latest("vf_downtime_seconds")),
                ("E", latest("vf_up")),
            )
        ),
    ]
    colour = {"type": "color-text"}
    up = {
        "mappings": [
            {
                "type": "value",
                "options": {
                    "0": {"text": "not ready", "color": "orange", "index": 0},
                    "1": {"text": "ready", "color": "green", "index": 1},
                },
            }
        ],
        "custom.cellOptions": colour,
        "custom.width": 110,
    }
    return (
        style.listing(
            "Each VF",
            "Messages, NACKs and resets since vftrace started on the host, and the latest downtime.",
            targets,
            "which",
            [
                Column("instance", "Host", {"custom.width": 120}),
                Column("pf", "PF"),
                Column("vf", "VF", {"custom.width": 60}),
                Column("E", "State", up),
                Column("B", "Messages", {"decimals": 0, "custom.width": 110}),
                Column(
                    "C",
                    "NACKs",
                    {
                        "decimals": 0,
                        "custom.width": 90,
                        "custom.cellOptions": colour,
                        "thresholds": {
                            "mode": "absolute",
                            "steps": [
                                {"value": None, "color": "text"},
                                {"value": 1, "color": "orange"},
                            ],
                        },
                    },
                ),
                Column("A", "Resets", {"decimals": 0, "custom.width": 90}),
                Column("D", "Downtime", {"unit": "s", "custom.width": 110}),
            ],
            sort="Messages",
        )
        .span(15)
        .height(8)
        .no_value("–")
    )


def _downtime() -> style.PanelBuilder:
    return (
        style.gauges(
            "VF downtime",
            "The latest downtime of each VF: from the unplug or the reset until the VF is ready again.",
            "s",
            instant(
                f"sort_desc(topk(8, last_over_time({of('vf_downtime_seconds', *VF)}[$__range])))",
                "{{instance}} {{pf}} VF {{vf}}",
            ),
            "orange",
        )
        .span(9)
        .height(8)
    )


def _states() -> style.PanelBuilder:
    state = style.numbered("vfio_device_state", "state", VFIO_DEVICE_STATES)
    return style.states(
        "Device states",
        "The migration state of each passed-through device (enum vfio_device_mig_state). Only a reset ends ERROR. In"
        " STOP_COPY and RESUMING, the state of the device is sent and loaded.",
        query(f"max by (instance, device) ({state})", "{{device}} on {{instance}}"),
        style.numbered_mapping(style.DEVICE_COLOURS, VFIO_DEVICE_STATES),
    ).height(7)


def _entered() -> style.PanelBuilder:
    panel = style.steps_of(
        style.lines(
            "States entered",
            "How often devices entered each state since vftrace started on the host. RUNNING ends a migration, also a"
            " failed one. ERROR needs a reset.",
            "none",
            query(f"sum by (to) ({of('vfio_transitions_total')})", "{{to}}"),
            calcs=["lastNotNull"],
        )
    ).span(14)
    return style.colours_by_name(panel, style.DEVICE_COLOURS)


def _ways() -> style.PanelBuilder:
    latest = f"last_over_time({of('vfio_transitions_total')}[$__range])"
    words: list[dict[str, object]] = [
        {
            "type": "value",
            "options": {
                state: {"text": state, "color": colour, "index": index}
                for index, (state, colour) in enumerate(style.DEVICE_COLOURS.items())
            },
        }
    ]
    coloured = {"custom.cellOptions": {"type": "color-text"}, "mappings": words}
    return (
        style.listing(
            "State changes",
            "The ten most frequent changes from one state to another, since vftrace started on the hosts.",
            [style.rows_of(f"topk(10, sum by (from, to) ({latest}))", "A")],
            None,
            [
                Column("from", "From", coloured),
                Column("to", "To", coloured),
                Column("A", "Times", {"unit": "none", "decimals": 0, "custom.width": 90}),
            ],
            sort="Times",
        )
        .span(10)
        .height(8)
    )
