"""Calls somebody when a run needs it: the user's own command, once for each alert that lasts."""

from __future__ import annotations

from gwtf_p2p.live.measure.alert_command import run_alert
from gwtf_p2p.monitor.health import Level, findings
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.protocol.ids import RunId


class Alerts:
    """Of all runs that a monitor looks at. `command` is for the shell ('': none); an alert is told after `after_s`."""

    def __init__(self, command: str, after_s: float) -> None:
        self._command, self._after_s = command, after_s
        self._since: dict[tuple[RunId, str], float] = {}
        self._told: set[tuple[RunId, str]] = set()

    def look(self, state: SwarmState) -> list[str]:
        """After every look at a run; returns the codes that are told now. The command runs beside the monitor."""
        run_id, now = state.run.run_id, state.seen_at
        found = {f.code: f.text for f in findings(state, now) if f.level is Level.ALERT}
        self._since = {key: at for key, at in self._since.items() if key[0] != run_id or key[1] in found}
        self._told &= self._since.keys()
        due = []
        for code, text in found.items():
            key = run_id, code
            if now - self._since.setdefault(key, now) >= self._after_s and key not in self._told:
                self._told.add(key)
                due.append(code)
                if self._command:
                    run_alert(self._command, {"RUN": run_id, "CODE": code, "TEXT": text})
        return due
