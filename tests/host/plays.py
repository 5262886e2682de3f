# SPDX-License-Identifier: MIT
"""Scenarios with a known truth, played by name from a command line."""

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tests.golden.record import traced
from vftrace.collect.batch import Batch
from vftrace.collect.only import OnlyVms
from vftrace.collect.recording import Recording, frames_of, head_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def auto_converge(percent: int) -> dict[str, int]:
    """QEMU's settings for a throttle that is this deep from its beginning, and stays so."""
    return {
        "cpu-throttle-initial": percent,
        "cpu-throttle-increment": 1,
        "max-cpu-throttle": percent,
        "throttle-trigger-threshold": 1,
    }


def traced_vms(name: str, target: Path, play: Callable[[Path], T]) -> T:
    """Play one traced; its recording becomes `target`, without whatever else ran on this machine."""
    truth = traced(target, play)
    recording = Recording(target)
    kept = OnlyVms([f"demo-{name}"]).keep(Batch.of(recording))
    with target.open("wb") as out, gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:
        packed.write(head_of(recording.host) + frames_of(kept.records))
    return truth


def played(
    names: Iterable[str],
    play: Callable[[str, Path], T],
    kept: Path,
    *,
    indent: int | None = None,
) -> Iterator[tuple[str, Path, T]]:
    """Play those of `names` that the command line names, else all, and `--runs` times each.

    Yields the name, the recording and the truth that `play` returned. With `--keep` both become golden files in `kept`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    os.chdir(Path(__file__).parents[2])
    for name in arguments.names or names:
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as directory:
                target = kept / f"{name}.vft.gz" if arguments.keep else Path(directory) / "r.vft.gz"
                truth = play(name, target)
                if arguments.keep:
                    text = json.dumps(msgspec.to_builtins(truth), indent=indent)
                    (kept / f"{name}.truth.json").write_text(text + "\n")
                yield name, target, truth
            time.sleep(0.2)
