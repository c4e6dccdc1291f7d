"""The event log of a live peer: what its machine was made of, every event and what came back; enough to tell the story again.

What a line says is `protocol/replay/log`; `gwtf replay` runs it through the machine once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gwtf_p2p.protocol import effects as ef
from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.replay.log import LogWriter, Opening


class EventLog:
    """Appends to one file; lines are flushed as they come, so a crash loses nothing but the line that was being written."""

    def __init__(self, path: Path) -> None:
        self._end_torn_line(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._writer = LogWriter()

    def begin(self, opening: Opening) -> None:
        """A machine has been composed."""
        self._file.write(self._writer.opening(opening))

    def write(self, event: ev.Event, now: float, effects: Sequence[ef.Effect], raised: str = "") -> None:
        """To be called before the effects are carried out, as they may feed further events."""
        self._file.write(self._writer.happened(event, now, effects, raised))

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _end_torn_line(path: Path) -> None:
        """What a crash has left of a line is of no use, and would spoil the next one."""
        if not path.exists():
            return
        with path.open("rb+") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
