# SPDX-License-Identifier: MIT
"""The lab's jobs, by name. They run inside the emulated machine; the outside reads their docs."""

from __future__ import annotations

from collections.abc import Callable

from vftlab.job import Job

from jobs import attach, basic, clocks, igb, iommufd, mailbox, outage, steer, tiny, tracer, vfio

JOBS: dict[str, Callable[[Job], None]] = {
    **basic.JOBS,
    **attach.JOBS,
    **vfio.JOBS,
    **steer.JOBS,
    **igb.JOBS,
    **mailbox.JOBS,
    **outage.JOBS,
    **tiny.JOBS,
    **iommufd.JOBS,
    **tracer.JOBS,
    **clocks.JOBS,
}
