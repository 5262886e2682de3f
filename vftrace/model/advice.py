"""Advice: what to change so that the next migration of this VM goes better, and what to expect of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Rule(StrEnum):
    """Which rule gave an advice (docs/reference/advice.md)."""

    BANDWIDTH = "bandwidth"
    DOWNTIME_LIMIT = "downtime-limit"
    POSTCOPY = "postcopy"
    AUTO_CONVERGE = "auto-converge"
    POSTCOPY_BANDWIDTH = "postcopy-bandwidth"
    MULTIFD = "multifd"
    PRE_SWITCHOVER = "pre-switchover"
    HELD = "held"
    SLOW_FLUSH = "slow-flush"
    CPU_WAIT = "cpu-wait"
    KVM_SETUP = "kvm-setup"
    MAP_DMA = "map-dma"
    VF_LINK = "vf-link"


Figure = Literal["downtime", "total", "postcopy", "held", "service", "device"]
"""What an effect is on: the vCPUs' downtime, the whole migration, its post-copy phase, the time that a vCPU was held or
waited for pages, the time without answers to a ping, the time without the VF."""

Setting = str | int | bool


@dataclass(frozen=True, slots=True)
class Effect:
    """A figure as it was and as it is expected to be, in ns.

    `was_ns` None: it never came to that, the migration did not complete. `expected_ns` None: only bounds are known.
    `least_ns` and `most_ns` bound it; `error` says where the bounds are from.
    """

    figure: Figure
    was_ns: int | None
    expected_ns: int | None
    least_ns: int
    most_ns: int
    error: str


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing to change. `evidence` is what was seen of this migration.

    `parameters` are QEMU's migration parameters and capabilities, or options, with the values to set, where the change
    is such a setting.
    """

    rule: Rule
    cause: str
    evidence: tuple[str, ...]
    setting: str
    effects: tuple[Effect, ...]
    parameters: Mapping[str, Setting] = field(default_factory=dict)
