"""The state that is trained, read by others than the compute thread: without a copy, between two steps.

Whoever writes a checkpoint, or gives the state to a newcomer, reads the very tensors that are trained. Forwards and backwards
go on meanwhile, as they change none of them; what changes them (a step, a download) waits until all is read. A disk that hangs
must not hold training up for good: after `LONGEST_S` it goes on, and what was read until then is of no use to anybody.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from torch import Tensor

LONGEST_S = 60.0
"""The bytes go to the system's cache of the disk: for that a minute is long, even of many gigabytes."""


class Reading:
    """A state of one version, whole until `end`. Of a state that nobody changes it need not be ended."""

    def __init__(self, version: int, state: Mapping[str, Tensor], among: Readings | None = None) -> None:
        self.version, self.state = version, state
        self._among = among

    def end(self) -> bool:
        """All that is wanted has been read, from any thread; the second time does nothing. False if it was not whole."""
        return self._among is None or self._among.end(self)


class Readings:
    """Those of one peer's state."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: set[Reading] = set()
        self._spoilt: set[Reading] = set()

    def begin(self, version: int, state: Mapping[str, Tensor]) -> Reading:
        """The state as it is now; in the thread that changes it."""
        reading = Reading(version, state, self)
        with self._changed:
            self._open.add(reading)
        return reading

    def end(self, reading: Reading) -> bool:
        """See `Reading.end`."""
        with self._changed:
            self._open.discard(reading)
            self._changed.notify_all()
            return reading not in self._spoilt

    def wait(self, longest_s: float = LONGEST_S) -> None:
        """Before the state changes, in the thread that changes it: all readings end, or are spoilt."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._open, longest_s):
                self._spoilt |= self._open
                self._open.clear()
