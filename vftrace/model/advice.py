# SPDX-License-Identifier: MIT
"""Advice: a setting to change before the next migration of this VM, and the expected effect."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

import msgspec


class Rule(StrEnum):
    """The rule that gave an advice (docs/reference/advice.md)."""

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
"""The time that an effect changes: the vCPUs' downtime, the whole migration, its post-copy phase, the time that a vCPU
was held or waited for pages, the time without answers to a ping, the time without the VF."""

Setting = str | int | bool


class Effect(msgspec.Struct, frozen=True):
    """A time as it was and as it is expected to become, in ns.

    `was_ns` None: the time has no value, because the migration did not complete. `expected_ns` None: only bounds are
    known. `least_ns` and `most_ns` are the bounds; `error` names their source.
    """

    figure: Figure
    was_ns: int | None
    expected_ns: int | None
    least_ns: int
    most_ns: int
    error: str


class Advice(msgspec.Struct, frozen=True):
    """One change. `evidence` has the figures of this migration that show why.

    `parameters` are QEMU's migration parameters and capabilities, or options, with the values to set, if the change is
    such a setting.
    """

    rule: Rule
    cause: str
    evidence: tuple[str, ...]
    setting: str
    effects: tuple[Effect, ...]
    parameters: Mapping[str, Setting] = msgspec.field(default_factory=dict)
