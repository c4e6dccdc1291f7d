"""A scenario with its time stretched or shrunk: the same proportions in other seconds.

A live run needs real time. With `time_scale` 0.25 everything that takes a second in the scenario (computing, latency, bytes on
a line) takes a quarter of one. The simulator is given the same shrunk scenario, so that what does not shrink (the protocol's
own periods and least deadlines, records every 10 s) weighs as much in both. Reports divide by the scale again.
"""

from __future__ import annotations

from dataclasses import replace

from gwtf_p2p.simulation.lines.links import LinkSpec
from gwtf_p2p.simulation.scenario.scenario import LinksSpec, LinkTable, PeerGroup, Scenario


def scaled(scenario: Scenario, time_scale: float) -> Scenario:
    """All seconds times `time_scale`, all bytes per second divided by it."""
    if time_scale == 1.0:
        return scenario
    links = scenario.links
    table = {
        pair: LinkSpec(s.latency_s * time_scale, s.bandwidth_bytes_per_s / time_scale) for pair, s in links.table.links.items()
    }
    lines = tuple(line / time_scale for line in links.line_bytes_per_s)
    groups = tuple(_group(group, time_scale) for group in scenario.groups)
    return replace(
        scenario, links=LinksSpec(LinkTable(links.table.regions, table), links.bandwidth_scale, lines), groups=groups
    )


def _group(group: PeerGroup, time_scale: float) -> PeerGroup:
    forward_s = tuple(seconds * time_scale for seconds in group.forward_s)
    return replace(group, forward_s=forward_s, backward_s=tuple(seconds * time_scale for seconds in group.backward_s))
