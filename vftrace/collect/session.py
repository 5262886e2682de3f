# SPDX-License-Identifier: MIT
"""Opens a source, with the recording to which its records are written; no other module does."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from vftrace.collect.batch import Batch, Source
from vftrace.collect.recording import RecordingWriter, check_output
from vftrace.collect.remote import ReaderProcess, RemoteSource
from vftrace.errors import VftraceError
from vftrace.host import privileges
from vftrace.model.host import HostInfo, ReaderUse

if TYPE_CHECKING:
    from vftrace.collect.only import OnlyVms

S = TypeVar("S", bound=Source)


class Session(Generic[S]):
    """A source that first writes the records of another source to a file, if there is one.

    Use it as a context manager, or call `close`, which may be called again.
    """

    def __init__(
        self,
        source: S,
        output: Path | None = None,
        *,
        force: bool = False,
        only: "OnlyVms | None" = None,
        lose: Callable[[str], None] | None = None,
    ) -> None:
        """Raises VftraceError if `output` cannot be written, or exists (unless `force`), after closing the source.

        `only`: the VMs whose records are written; `read` returns all records. `lose` gets one line if the disk refuses
        records, and tracing continues without them in the file. Without `lose`, `read` and `close` raise VftraceError.
        """
        self.source = source
        self.not_recorded = 0
        """How many records could not be written."""
        self._lose = lose
        self._only = only
        self._closed = False
        self._writer: RecordingWriter | None = None
        if output is not None:
            try:
                self._writer = RecordingWriter(output, source.host, force=force)
            except BaseException:
                source.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def host(self) -> HostInfo:
        """The traced host; its probes are attached and detached with the modules that they need."""
        return self.source.host

    @property
    def ended(self) -> bool:
        """Whether the source has no more records."""
        return self._closed or self.source.ended

    def now_ns(self) -> int:
        """The time on the clock of the events."""
        return self.source.now_ns()

    def read(self) -> Batch:
        """Wait a moment, then return the records that arrived, after writing them to the recording."""
        return self._write(self.source.read())

    def close(self) -> Batch:
        """End the source and the recording; returns the last records."""
        if self._closed:
            return Batch()
        self._closed = True
        try:
            return self._write(self.source.close())
        finally:
            if self._writer is not None:
                self._close(self._writer)

    def _close(self, writer: RecordingWriter) -> None:
        try:
            writer.close()
        except VftraceError as error:
            self._refused(error, 0)

    def _write(self, batch: Batch) -> Batch:
        if self._writer is not None and batch.records:
            kept = batch if self._only is None else self._only.keep(batch)
            try:
                self._writer.write(kept.records)
            except VftraceError as error:
                self._refused(error, len(kept.records))
        return batch

    def _refused(self, error: VftraceError, records: int) -> None:
        """Note that the disk refused records, because it is full or removed."""
        if self._lose is None:
            raise error
        if self.not_recorded == 0:
            self._lose(f"{error}; tracing continues, and records are left out of the recording")
        self.not_recorded += max(records, 1)


class LiveSession(Session[RemoteSource]):
    """A session that traces this host by a reader process."""

    @property
    def reader(self) -> ReaderUse:
        """What the reader process has used, and how late this process is; any thread may call this."""
        return self.source.reader

    def close(self) -> Batch:
        """As `Session.close`; raises VftraceError if the reader has not sent all records, after writing those that
        arrived."""
        batch = super().close()
        failure, self.source.failure = self.source.failure, None
        if failure is not None:
            raise failure
        return batch


class Opening:
    """A reader process that attaches while this process does other things: `finish` or `cancel` it."""

    def __init__(
        self,
        way: str | None = None,
        profiles: Sequence[str] = (),
        output: Path | None = None,
        *,
        force: bool = False,
        only: "OnlyVms | None" = None,
        lose: Callable[[str], None] | None = None,
        user: str | None = None,
        keep_privileges: bool = False,
    ) -> None:
        """Start the reader process with `way` and `profiles`; `Session` gets the other arguments. Raises the errors of
        both.

        Once the recording is open, `finish` drops all capabilities of its thread and changes to `user` if one is named,
        unless `keep_privileges` is set. Threads that run already have to do so themselves.
        """
        privileges.require_user(user)
        if output is not None:
            # Check this before the probes are attached, which takes seconds.
            check_output(output, force=force)
        self._output, self._force, self._only, self._lose = output, force, only, lose
        self._user, self._keep_privileges = user, keep_privileges
        # As in cli.py: until it is ready, both processes import modules.
        gc.disable()
        self._reader: ReaderProcess | None = ReaderProcess(way, profiles, user=user)

    def finish(self) -> LiveSession:
        """Return the session as soon as the reader has attached."""
        assert self._reader is not None
        reader, self._reader = self._reader, None
        gc.freeze()
        gc.enable()
        session = LiveSession(
            reader.wait(), self._output, force=self._force, only=self._only, lose=self._lose
        )
        try:
            if not self._keep_privileges:
                privileges.keep_only((), self._user)
        except BaseException:
            session.close()
            raise
        return session

    def cancel(self) -> None:
        """End the reader if `finish` was not called."""
        gc.enable()
        if self._reader is not None:
            self._reader.end()
