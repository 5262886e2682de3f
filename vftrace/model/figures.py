"""Every figure that is derived from the model, each computed here and nowhere else."""

from vftrace.model.migration import CHECKPOINTS, Checkpoint, Downtime

_ON_DESTINATION = CHECKPOINTS[CHECKPOINTS.index("devices-loaded") :]


def clock_change(downtime: Downtime) -> Checkpoint | None:
    """The first checkpoint on the destination: its `ns` goes from one host's clock to the other's."""
    passed = (c for c in downtime.checkpoints if c.name in _ON_DESTINATION and c.ns is not None)
    return next(passed, None)
