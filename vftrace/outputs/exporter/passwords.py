# SPDX-License-Identifier: MIT
"""Checks passwords so that guessing slows down neither the tracer nor the right user.

bcrypt is slow on purpose. A password that was right once is recognised without it. All others are checked one at a
time, in turn by client address, and a pause of four times its length follows each check. So guessing costs at most a
fifth of one CPU, and a client at another address waits for at most one check of each address before it.
"""

import asyncio
import base64
import binascii
import time
from collections import OrderedDict, deque

import msgspec

from vftrace.outputs.exporter.webconfig import Users

MAX_WAITING = 4
"""How many checks of one address may wait; further ones are refused at once."""
MAX_ADDRESSES = 64
PAUSE = 4
"""The length of the pause after a check, as a multiple of the check's length."""


class _Check(msgspec.Struct):
    users: Users
    user: str
    password: str
    done: "asyncio.Future[bool]"


class PasswordChecks:
    """Checks passwords without blocking the event loop of its user."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[_Check]] = OrderedDict()
        self._worker: asyncio.Task[None] | None = None

    async def check(self, users: Users, address: str, user: str, password: str) -> bool | None:
        """Whether the password is the user's; None if this check is refused because too many wait."""
        if users.knows(user, password):
            return True
        mine = self._waiting.get(address, deque())
        if len(mine) >= MAX_WAITING or (not mine and len(self._waiting) >= MAX_ADDRESSES):
            return None
        loop = asyncio.get_running_loop()
        check = _Check(users, user, password, loop.create_future())
        mine.append(check)
        self._waiting[address] = mine
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await check.done

    async def _work(self) -> None:
        while self._waiting:
            address, checks = next(iter(self._waiting.items()))
            check = checks.popleft()
            if checks:
                self._waiting.move_to_end(address)
            else:
                del self._waiting[address]
            if check.done.cancelled():
                continue  # the client has gone
            began = time.monotonic()
            right = await asyncio.to_thread(check.users.accepts, check.user, check.password)
            if not check.done.cancelled():
                check.done.set_result(right)
            await asyncio.sleep(PAUSE * (time.monotonic() - began))


def credentials(header: str) -> tuple[str, str] | None:
    """Return user and password of a Basic Authorization header; None for anything else."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (user, password) if colon else None
