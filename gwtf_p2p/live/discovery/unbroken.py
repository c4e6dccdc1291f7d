"""Calls of hivemind's that come to their end, also where whoever asked is told to stop.

A traversal of hivemind's DHT that is cancelled forgets tasks of its own: each worker's wait for an event that nobody sets any
more. Python finds them later, one by one, as "Task was destroyed but it is pending!". So what asks is cancelled, and the call
is not; what is left of a leaving peer's calls ends with the event loop, in which all tasks are cancelled together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Unbroken:
    """Of one DHT node."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[Any]] = set()

    async def __call__(self, call: Coroutine[Any, Any, T]) -> T:
        """Its result. Raises what it raises."""
        task = asyncio.get_running_loop().create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def ended(self, deadline_s: float) -> None:
        """Return when all have come to their end, or after so long."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=deadline_s)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # it may be that nobody waits for it any more
