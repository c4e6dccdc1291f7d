"""Virtual time: a queue of what happens when. Ties are broken by order of scheduling, so a run is a function of its inputs."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Kernel:
    """`now` is in virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._queue: list[tuple[float, int, Action]] = []
        self._order = count()

    def at(self, time_s: float, action: Action) -> None:
        """Do `action` at a time that must not lie in the past."""
        assert time_s >= self.now, f"{time_s} is before {self.now}"
        heapq.heappush(self._queue, (time_s, next(self._order), action))

    def after(self, delay_s: float, action: Action) -> None:
        self.at(self.now + delay_s, action)

    def run(self, until: Callable[[], bool], deadline_s: float) -> bool:
        """Step until the condition holds (True), or nothing is left or virtual time passes the deadline (False)."""
        while not until():
            if not self._queue or self._queue[0][0] > deadline_s:
                return False
            self.now, _, action = heapq.heappop(self._queue)
            self.steps += 1
            action()
        return True
