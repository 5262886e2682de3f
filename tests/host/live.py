# SPDX-License-Identifier: MIT
"""Records what this machine does while a test plays."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vftrace.collect.live import LiveSource


@contextmanager
def recorded(source: LiveSource, *, settle_s: float = 0.0) -> Iterator[list[bytes]]:
    """A list that holds everything recorded, once the block is left; tracing continues for `settle_s` after it."""
    records: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            records.extend(source.read().records)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield records
    finally:
        time.sleep(settle_s)
        stop.set()
        thread.join()
        records += source.close().records
