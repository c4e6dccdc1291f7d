"""The event log: every event that a state machine got, with its `now`, as JSON lines; enough to tell a live story again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.wire.codec import to_plain


class EventLog:
    """Appends to one file; lines are flushed as they come, so a crash loses nothing."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, event: ev.Event, now: float) -> None:
        self._file.write(json.dumps({"now": now, "event": type(event).__name__, **self._fields(event)}) + "\n")

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _fields(event: ev.Event) -> dict[str, Any]:
        """A view is named by its peers and versions alone, a plan by its flows: they would be most of the log otherwise."""
        if isinstance(event, ev.ViewChanged):
            records = event.view.records.values()
            return {"view": [[r.peer, r.stage, r.state.value, r.weights_version, r.sequence_number] for r in records]}
        if isinstance(event, ev.Planned):
            return {"reason": getattr(event.result, "reason", ""), "flows": to_plain(getattr(event.result, "flows", ()))}
        plain: dict[str, Any] = to_plain(event)
        message = getattr(event, "message", None)
        if message is not None:
            plain["message"] = {"kind": type(message).__name__, **plain["message"]}
        return plain
