# SPDX-License-Identifier: MIT
"""The result of `vftrace.open`: the report's objects and the events of recordings, for Python programs."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from vftrace.analysis.hosts.join import join_hosts
from vftrace.archive import past
from vftrace.collect.merge import load
from vftrace.collect.recording import STANDARD, Recording
from vftrace.collect.replay import events_of
from vftrace.errors import UsageError
from vftrace.events import Event
from vftrace.model.migration import Migration
from vftrace.model.report import HostReport, MigrationReport, Report
from vftrace.outputs.report.json import migration_json


class Recordings:
    """One or several recordings. They are read on first use, and the report is made once.

    Times are CLOCK_BOOTTIME nanoseconds of their host, durations nanoseconds; None is not known.
    """

    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        """Raises UsageError without a path, VftraceError for a file that is not a recording."""
        if not paths:
            raise UsageError("no recording is named")
        self.paths = tuple(Path(path) for path in paths)
        for path in self.paths:
            if path == STANDARD:
                raise UsageError("standard input can be read only once: name a file")
            if path.is_file():
                Recording(path)

    @cached_property
    def report(self) -> Report:
        """The whole report, from which `vftrace report` makes every output."""
        files = [path for path in self.paths if not path.is_dir()]
        report = load(files) if files else Report.of_hosts(())
        directories = [path for path in self.paths if path.is_dir()]
        if directories:
            listed = past.gather(directories)
            report = report.with_hosts_of(past.load_files(found.path for found in listed.found))
        return join_hosts(report)

    @property
    def hosts(self) -> tuple[HostReport, ...]:
        """Each host between two boots: its identity, clock samples, virtual functions and losses."""
        return self.report.hosts

    @property
    def migrations(self) -> tuple[Migration, ...]:
        """The migrations; a migration that two hosts saw is one. `reports` also has the hosts."""
        return tuple(found.migration for found in self.report.migrations)

    @property
    def reports(self) -> tuple[MigrationReport, ...]:
        """The migrations with the hosts that saw them and the uncertainty of their figures."""
        return self.report.migrations

    @property
    def damage(self) -> tuple[str, ...]:
        """One line for each incomplete file; the report has its records up to that place."""
        return self.report.damage

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the migrations as `vftrace report --format json` prints them: this form is stable, and only grows."""
        return [migration_json(found) for found in self.reports]

    def events(self) -> Iterator[Event]:
        """Yield the events in order of their times, file by file, as objects of `vftrace.events`."""
        for path in self.paths:
            files = sorted({f.path for f in past.gather([path]).found}) if path.is_dir() else [path]
            for file in files:
                yield from events_of(Recording(file))
