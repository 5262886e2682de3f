# SPDX-License-Identifier: MIT
"""Opens regular files of a directory that others may write to, but no pipe, socket, device or link."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path


class NotRegularError(OSError):
    """The file is not a regular file."""


def open_regular(path: Path, flags: int = os.O_RDONLY) -> FileIO:
    """Open a regular file; links are not followed, and a pipe does not wait for its other end.

    Raises NotRegularError for any other kind of file, OSError if it cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        # A link, a directory opened for writing, a socket, or a pipe without a reader.
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise NotRegularError(error.errno, error.strerror, str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegularError(errno.EINVAL, "not a regular file", str(path))
    return FileIO(fd, "rb" if flags & os.O_ACCMODE == os.O_RDONLY else "ab")
