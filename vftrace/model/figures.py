"""Every figure that is derived from the model, each computed here and nowhere else."""

from vftrace.model.migration import Checkpoint, CheckpointTime, Downtime

_ON_DESTINATION = tuple(Checkpoint)[tuple(Checkpoint).index(Checkpoint.DEVICES_LOADED) :]


def clock_change(downtime: Downtime) -> CheckpointTime | None:
    """The first checkpoint on the destination: its `ns` goes from one host's clock to the other's."""
    passed = (c for c in downtime.checkpoints if c.name in _ON_DESTINATION and c.ns is not None)
    return next(passed, None)
