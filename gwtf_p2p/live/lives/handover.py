"""A socket from each life of a supervised peer to its supervisor, from which the next life is forked with what came of it.

    handover = Handover()                    # the supervisor, once
    ...                                      # it forks a life, in which:
    handover.leave(KeptWork(...))            # from now on the next life may begin with that
    handover.left(KeptWork)                  # what an earlier life has left, or None

One value of each type is kept, the newest. With it go open files: they stay open for as long as the value is kept, so that a
program which ends with its last connection (p2pd) does not. Both ends are forks of one process, and what goes between them is
what pickle makes of it.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 17
"""Of one value."""

MOST_FILES = 4

T = TypeVar("T")


LOADS = ("gwtf_p2p.", "transformers.")
"""Packages of which more is loaded as it is needed, such as the family of the run's model."""


@dataclass(frozen=True, slots=True)
class LoadedModules:
    """What a life has loaded when it took part."""

    names: tuple[str, ...]

    @classmethod
    def here(cls) -> LoadedModules:
        """Those of this process."""
        return cls(tuple(sorted(name for name in sys.modules if name.startswith(LOADS))))


class Handover:
    """Of one supervised peer. `leave` is for a life, `receive` and `forget` are for its supervisor."""

    def __init__(self) -> None:
        self._receives, self._sends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._receives, self._sends):
            end.setblocking(False)
        self._left: dict[type, tuple[object, tuple[int, ...]]] = {}

    def fileno(self) -> int:
        """For `select`: something has been left."""
        return self._receives.fileno()

    def leave(self, value: object, files: Sequence[int] = ()) -> None:
        """To the next life, in the place of what was left of this type before. It waits for nobody, and a value that cannot be
        left, as too many have been and the supervisor is busy, is only told: the next life does without it."""
        data = pickle.dumps(value)
        try:
            if len(data) > MOST_BYTES:
                raise OSError(f"{len(data)} bytes are more than {MOST_BYTES}")
            socket.send_fds(self._sends, [data], files)
        except OSError as error:
            logger.info("nothing of %s is left to the next life: %s", type(value).__name__, error)

    def left(self, kind: type[T]) -> T | None:
        """What an earlier life has left."""
        value, _ = self._left.get(kind, (None, ()))
        return value if isinstance(value, kind) else None

    def files(self, kind: type[object]) -> tuple[int, ...]:
        """Those that came with it; they are closed by whoever replaces or forgets it."""
        return self._left.get(kind, (None, ()))[1]

    def receive(self) -> None:
        """Take all that has been left since."""
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self._receives, MOST_BYTES, MOST_FILES)
            except BlockingIOError:
                return
            value = pickle.loads(data)
            self._drop(type(value))
            self._left[type(value)] = value, tuple(files)

    def forget(self) -> None:
        """The next life begins as the first one did."""
        for kind in list(self._left):
            self._drop(kind)

    def close(self) -> None:
        """Nothing is left any more, and nobody leaves anything."""
        self.forget()
        self._receives.close()
        self._sends.close()

    def _drop(self, kind: type[object]) -> None:
        _, files = self._left.pop(kind, (None, ()))
        for file in files:
            with suppress(OSError):
                os.close(file)
