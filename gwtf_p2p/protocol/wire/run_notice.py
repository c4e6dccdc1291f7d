"""The list of the runs that a DHT has, for whoever looks for one to join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, MaxLen, MinLen

from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.recipe import MOST_ITERATIONS
from gwtf_p2p.protocol.wire.records import RUN_ID, WIRE_VERSION, RunRecord, decode

RUNS_KEY = "_gwtf.runs"
"""Where the DHT has the list of its runs. No run's own keys begin like this."""


@dataclass(frozen=True, slots=True)
class RunNotice:
    """One line of the list of runs that a DHT has: what a newcomer chooses by. Every data peer publishes its run's."""

    run_id: Annotated[RunId, MinLen(1), MaxLen(64), RUN_ID]
    model: Annotated[str, MaxLen(64)]
    stages: Annotated[int, Ge(1), Le(4096)]
    total_iterations: Annotated[int, Ge(0), Le(MOST_ITERATIONS)] = 0
    wire_version: int = WIRE_VERSION


def notice_of(run: RunRecord) -> RunNotice:
    """The run's line in the list of runs."""
    return RunNotice(run.run_id, str(run.model_config.get("model_type", "?"))[:64], run.stages, run.total_iterations)


def decode_notice(data: bytes) -> RunNotice:
    """Raises RemoteProtocolError when the bytes are no line of that list, OtherWireVersion when of another version."""
    return decode(RunNotice, data)
