"""The one place that opens a source, with the recording it is written to."""

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
    """A source whose records are written to a file first, if there is one; a source itself.

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
        """Raises VftraceError where `output` cannot be written, or exists (unless `force`); the source is closed
        then. `only`: which VMs' records are written; all are returned. `lose` gets one line when the disk no longer
        takes records, and tracing goes on without them; without it, `read` and `close` raise VftraceError then.
        """
        self.source = source
        self.not_recorded = 0
        """Records that the disk did not take."""
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
        """The traced host; probes come and go with what they watch."""
        return self.source.host

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._closed or self.source.ended

    def now_ns(self) -> int:
        """The time on the clock of the events."""
        return self.source.now_ns()

    def read(self) -> Batch:
        """Wait a moment, then return what came, which is in the recording by then."""
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
        """The disk is full, or gone."""
        if self._lose is None:
            raise error
        if self.not_recorded == 0:
            self._lose(f"{error}; tracing continues, and records are left out of the recording")
        self.not_recorded += max(records, 1)


class LiveSession(Session[RemoteSource]):
    """This host, traced by a reader process."""

    @property
    def reader(self) -> ReaderUse:
        """What the reader process has used, and how late this one is; any thread may ask."""
        return self.source.reader

    def close(self) -> Batch:
        """As `Session.close`; raises VftraceError if the reader has not sent all: what came is written by then."""
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
        """Start it. The reader process gets `way` and `profiles`, `Session` the others; errors as of both.

        `finish` gives up all capabilities of its thread when the recording is open, and becomes `user` if one is named,
        unless it is to `keep_privileges`; threads that run already have to do so themselves.
        """
        privileges.require_user(user)
        if output is not None:
            # Before the probes are attached, which takes seconds.
            check_output(output, force=force)
        self._output, self._force, self._only, self._lose = output, force, only, lose
        self._user, self._keep_privileges = user, keep_privileges
        self._reader: ReaderProcess | None = ReaderProcess(way, profiles, user=user)

    def finish(self) -> LiveSession:
        """Return the session as soon as the reader has attached."""
        assert self._reader is not None
        reader, self._reader = self._reader, None
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
        """End the reader if nobody has waited for it."""
        if self._reader is not None:
            self._reader.end()
