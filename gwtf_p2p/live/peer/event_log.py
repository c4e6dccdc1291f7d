"""The event log of a live peer: what its machine was made of, every event and what came back; enough to tell the story again.

What a line says is `protocol/replay/log`; `gwtf replay` runs it through the machine once more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.replay.log import LogWriter, Opening

logger = logging.getLogger(__name__)


class EventLog:
    """Appends to one file; lines are flushed as they come, so a crash loses nothing but the line that was being written.

    A disk that is full ends the log, which is said, and not the peer: a log with a gap could not be replayed.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._is_over = path, False
        self._end_torn_line(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._writer = LogWriter()

    def begin(self, opening: Opening) -> None:
        """A machine has been composed."""
        self._append(self._writer.opening(opening))

    def write(self, event: ev.Event, now: float, effects: Sequence[ef.Effect], raised: str = "") -> None:
        """To be called before the effects are carried out, as they may feed further events."""
        self._append(self._writer.happened(event, now, effects, raised))

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()

    def _append(self, line: str) -> None:
        if self._is_over:
            return
        try:
            self._file.write(line)
        except OSError as error:
            self._is_over = True
            logger.error("%s: the event log ends here: %s", self._path, error.strerror or error)

    @staticmethod
    def _end_torn_line(path: Path) -> None:
        """What a crash has left of a line is of no use, and would spoil the next one."""
        if not path.is_file():
            return
        with path.open("rb+") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
