# SPDX-License-Identifier: MIT
"""Rules about the virtual functions of a migration."""

from vftrace.analysis.hosts.outage import LINK, MAPPING
from vftrace.model.advice import Advice, Effect, Rule
from vftrace.model.migration import Role, Strategy
from vftrace.model.report import MigrationReport, Outage
from vftrace.units import format_ns

MAPPING_NS = 200_000_000
LINK_NS = 500_000_000
"""The shortest mapping that gives an advice: the rest of a plug takes longer."""

LEAST_PART = 0.25
"""The least share of the time without answers that gives an advice."""


def map_dma(found: MigrationReport) -> Advice | None:
    """The destination mapped and pinned all memory for its VF, while its main loop did not run (QEMU hw/vfio/common.c,
    vfio_listener_region_add). No advice if a ping shows that no client noticed."""
    times = [
        (vf.address or f"VF {vf.vf} of {vf.pf}", vf.phases[0].start_at_ns - vf.mapping_at_ns)
        for vf in found.migration.vfs
        if vf.role is Role.DESTINATION and vf.mapping_at_ns is not None and vf.phases
    ]
    name, ns = max(times, key=lambda each: each[1], default=("", 0))
    if ns < MAPPING_NS:
        return None
    outage = found.outage
    if outage is not None:
        ns = _span_ns(outage, MAPPING)
        if not _large(outage, ns, MAPPING_NS):
            return None
    return Advice(
        Rule.MAP_DMA,
        "the destination pinned all of the guest's memory when the VF was plugged",
        (
            f"the VMM mapped memory for {name} for {format_ns(ns)}, and served no other device meanwhile",
        ),
        "back the guest's memory with huge pages and allocate it when the destination starts (memory-backend-file on"
        " hugetlbfs, prealloc=on), so that the plug has no pages to allocate and clear",
        () if outage is None else (_shorter(outage, ns),),
    )


def vf_link(found: MigrationReport) -> Advice | None:
    """The VF was set up before its link was up, and the guest did not answer meanwhile."""
    outage = found.outage
    ns = 0 if outage is None else _span_ns(outage, LINK)
    if outage is None or not _large(outage, ns, LINK_NS):
        return None
    if found.migration.strategy is Strategy.FAILOVER:
        setting = (
            "let the guest use the standby until the VF's link is up: the VF's driver has to report the carrier when"
            " the link is up, not when the VF is set up"
        )
    else:
        setting = "give the guest an emulated NIC that serves it meanwhile (virtio-net failover=on, or a bond)"
    return Advice(
        Rule.VF_LINK,
        "the destination's VF was set up before its link was up",
        (f"{format_ns(ns)} of {format_ns(outage.ns)} without answers passed until the VF's link",),
        setting,
        (_shorter(outage, ns),),
    )


def _span_ns(outage: Outage, name: str) -> int:
    return sum(span.ns for span in outage.spans if span.name == name)


def _large(outage: Outage, ns: int, least_ns: int) -> bool:
    return ns >= least_ns and ns >= LEAST_PART * outage.ns


def _shorter(outage: Outage, ns: int) -> Effect:
    """The effect on the service outage: bounds only, because no model knows how much of the time disappears."""
    error = "no model: at best all of this time disappears, at worst something else takes as long"
    return Effect("service", outage.ns, None, max(0, outage.ns - ns), outage.ns, error)
