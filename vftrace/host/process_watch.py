# SPDX-License-Identifier: MIT
"""Finds the processes that have ended, without a look at each process.

A pidfd becomes readable when the last thread of its process has ended (Linux kernel/fork.c, pidfd_poll), and stays
with its process when the pid is used again.
"""

import os
import resource
import select

from vftrace.host import processes


class ProcessWatch:
    """Watches processes, each by its pidfd, or by its start time in /proc if this process may open no more files."""

    def __init__(self) -> None:
        _raise_file_limit()
        self._epoll = select.epoll()
        self._pidfds: dict[int, int] = {}
        self._by_fd: dict[int, int] = {}
        self._start_times: dict[int, int | None] = {}

    def watch(self, pid: int) -> None:
        """Begin to watch a process; a process that has ended already counts as ended."""
        self.forget(pid)
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            self._start_times[pid] = processes.start_time(pid)
            return
        self._pidfds[pid] = fd
        self._by_fd[fd] = pid
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, pid: int) -> None:
        """Stop watching a process."""
        self._start_times.pop(pid, None)
        fd = self._pidfds.pop(pid, None)
        if fd is not None:
            del self._by_fd[fd]
            os.close(fd)

    def ended(self) -> set[int]:
        """Return the watched processes that have ended; they stay watched."""
        found = {self._by_fd[fd] for fd, _ in self._epoll.poll(0) if fd in self._by_fd}
        return found | {
            pid
            for pid, start in self._start_times.items()
            if start is None or processes.start_time(pid) != start
        }

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the watched processes."""
        return (*self._pidfds, *self._start_times)

    def close(self) -> None:
        """Close all files."""
        for pid in list(self._pidfds):
            self.forget(pid)
        self._epoll.close()


def _raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit: the soft limit is 1024 almost everywhere."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
