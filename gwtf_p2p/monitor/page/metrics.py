"""/metrics: all runs of a monitor in Prometheus's text exposition format 0.0.4.

The alert rules and the dashboard in `peers/monitoring/` are written against these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gwtf_p2p.monitor.health import Level, findings
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.protocol.wire.records import PeerState

Values = list[tuple[Mapping[str, object], float]]


class _Families:
    """Collects families in the order in which they are first named; values of several runs come together."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._values: dict[str, Values] = {}

    def add(self, name: str, kind: str, told: str, values: Iterable[tuple[Mapping[str, object], float]]) -> None:
        self._kinds[name] = kind, told
        self._values.setdefault(name, []).extend(values)

    def text(self) -> str:
        lines: list[str] = []
        for name, (kind, told) in self._kinds.items():
            lines += (f"# HELP {name} {told}", f"# TYPE {name} {kind}")
            for labels, value in self._values[name]:
                inside = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
                lines.append(f"{name}{{{inside}}} {value:.10g}")
        return "\n".join(lines) + "\n"


def prometheus(states: Sequence[SwarmState]) -> str:
    """Of the last look at each run. Times are seconds, sizes bytes."""
    families = _Families()
    for state in states:
        _run(families, state)
        _peers(families, state)
    return families.text()


def _run(families: _Families, state: SwarmState) -> None:
    run, add = {"run": state.run.run_id}, families.add
    states, found = state.by_state(), findings(state, state.seen_at)
    stages = range(state.run.stages + 1)
    by_state: Values = [({**run, "stage": k, "state": s.value}, states[k, s]) for k in stages for s in PeerState]
    add("gwtf_peers", "gauge", "Peers by stage and state, as their records say.", by_state)
    online = state.online()
    add("gwtf_stage_online_peers", "gauge", "Peers that can be sent to.", [({**run, "stage": k}, online[k]) for k in stages])
    add("gwtf_silent_peers", "gauge", "Peers that do not answer though their records live.", [(run, len(state.silent))])
    add("gwtf_refused_records", "gauge", "Records that say what cannot be.", [(run, state.refused)])
    add("gwtf_iterations_total", "counter", "Committed iterations.", [(run, state.version)])
    add("gwtf_iterations_planned", "gauge", "Iterations of the whole run; 0: no end.", [(run, state.run.total_iterations)])
    add("gwtf_tokens_total", "counter", "Tokens trained on.", [(run, state.version * state.tokens_per_iteration)])
    add("gwtf_tokens_per_second", "gauge", "By the time of the last iteration.", [(run, state.tokens_per_second)])
    levels: Values = [({**run, "level": level.value}, sum(f.level is level for f in found)) for level in Level]
    add("gwtf_findings", "gauge", "What the monitor has to say of the run, by level.", levels)
    waited = [(run, state.seen_at - state.advanced_at)]
    add("gwtf_since_commit_seconds", "gauge", "Since the monitor saw the last commit, or began to look.", waited)
    add("gwtf_look_timestamp_seconds", "gauge", "When the monitor last looked.", [(run, state.seen_at)])
    changes: Values = [({**run, "result": what}, state.totals[what]) for what in ("came", "gone", "moved", "silent")]
    add("gwtf_peer_changes_total", "counter", "Peers seen to come, go, move and fall silent.", changes)
    optional = (
        ("gwtf_loss", "Mean loss of the last iteration.", state.losses),
        ("gwtf_held_out_loss", "Mean loss on text that is not trained on.", state.held_out),
        ("gwtf_iteration_seconds", "Seconds of the last iteration.", state.iteration_s),
    )
    for name, told, by_iteration in optional:
        if by_iteration:
            add(name, "gauge", told, [(run, by_iteration[max(by_iteration)])])


def _peers(families: _Families, state: SwarmState) -> None:
    add = families.add
    each = [({"run": state.run.run_id, "peer": r.peer, "stage": r.stage}, r) for r in state.by_stage()]
    credited: Values = [(labels, r.progress.get("microbatches", 0.0)) for labels, r in each]
    add("gwtf_microbatches_total", "counter", "Microbatches in committed gradients, as the peer tells.", credited)
    add("gwtf_peer_occupancy", "gauge", "Microbatches held.", [(labels, r.occupancy) for labels, r in each])
    add("gwtf_peer_capacity", "gauge", "Most microbatches held.", [(labels, r.capacity) for labels, r in each])
    timed: Values = [
        ({**labels, "phase": phase}, seconds)
        for labels, r in each
        for phase, seconds in (("forward", r.forward_s), ("backward", r.backward_s))
    ]
    add("gwtf_compute_seconds", "gauge", "Median seconds of a microbatch.", timed)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
