"""What a peer publishes about itself: its record, made from its state machine and its measured links.

Both interpreters publish through here, so a record in the simulator and one in the live swarm say the same things.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.negotiation.offers import Advert
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.wire.records import Account, LinkMeasurement, PathType, StageRecord, Timing

TOP_LINKS = 32
"""Links in one record at most: with 60 bytes of peer id each they leave a third of the record for the rest."""

MOST_TOLD = 64
"""Stages in one record that its peer may change to: of those that fit into its memory, the first ones."""


PASSED_OVER = 3
"""Iterations that others have done while this peer was online and had no work: until then compute times that were timed at its
start are told."""


@dataclass(frozen=True, slots=True)
class OwnMeasurements:
    """What the machine does not know of itself: its run, its links and its line (bandwidths in bytes/s), what it has sent
    twice, which of its checkpoints are copied, the release that is installed, what its user calls it, and whether it exchanges
    records with others."""

    run_id: RunId
    model_hash: str = ""
    signing_key: str = ""
    links: Sequence[LinkMeasurement] = ()
    path: PathType = PathType.PUBLIC
    maddrs: tuple[str, ...] = ()
    circuit_bytes: int = 0
    circuit_s: int = 0
    line_bytes_per_s: float = 0.0
    shard: int = -1
    copied: tuple[int, ...] = ()
    release: str = ""
    resent_bytes: int = 0
    progress: Mapping[str, float] = field(default_factory=dict)
    route_seconds: Mapping[str, float] = field(default_factory=dict)
    public_name: str = ""
    exchanges: bool = False


def stage_record(machine: StagePeer | DataPeer, around: OwnMeasurements, sequence_number: int) -> StageRecord:
    """The record of this peer now. A figure that is not measured is left out, never guessed."""
    ctx = machine.ctx
    if isinstance(machine, DataPeer):
        capacity, occupancy, works = machine.config.microbatches, ctx.occupancy, (Work.LOSS, Work.EMBED)
    else:
        capacity, occupancy, works = machine.capacity, machine.occupancy, (Work.FORWARD, Work.BACKWARD)
    forward, backward = (_timing(machine, work) for work in works)
    flows_iteration, flows = ctx.planner.flows if ctx.planner is not None else (-1, ())
    advert = ctx.talker.advert if ctx.talker is not None else Advert({}, {})
    return StageRecord(
        peer=ctx.me,
        run_id=around.run_id,
        stage=ctx.stage,
        state=machine.membership.published_state,
        capacity=capacity,
        occupancy=occupancy,
        forward=forward,
        backward=backward,
        finish=_timing(machine, Work.FINISH) if isinstance(machine, DataPeer) else None,
        weights_version=machine.participant.version,
        epoch=ctx.epoch,
        path=around.path,
        maddrs=around.maddrs,
        circuit_bytes=around.circuit_bytes,
        circuit_s=around.circuit_s,
        links=tuple(sorted(around.links, key=lambda link: (link.round_trip_s, link.to))[:TOP_LINKS]),
        line_bytes_per_s=around.line_bytes_per_s,
        kept_bytes=ctx.kept_bytes,
        memory_limit_bytes=ctx.memory_limit_bytes,
        recomputes=isinstance(machine, StagePeer) and machine.recomputes,
        moves_to=machine.moves_to[:MOST_TOLD] if isinstance(machine, StagePeer) else (),
        flows_held=dict(Counter(microbatch.data_peer for microbatch in ctx.held)),
        flows=flows,
        flows_iteration=flows_iteration,
        spare_flows=max(0, capacity - occupancy),
        cost_to_sink_us=advert.offers,
        takeover_us=advert.prices,
        model_hash=around.model_hash,
        signing_key=around.signing_key,
        shard=around.shard,
        precision=ctx.audit.precision,
        copied=around.copied,
        account=_account(machine, around),
        completion=machine.ending.completion,
        release=around.release,
        progress=around.progress,
        route_seconds=around.route_seconds,
        public_name=around.public_name,
        exchanges=around.exchanges,
        averages_in_rows=True,
        lacks_moments=machine.participant.progress.lacks_moments,
        lost=ctx.liveness.lost_peers.told() if isinstance(machine, DataPeer) else {},
        sequence_number=sequence_number,
    )


def _account(machine: StagePeer | DataPeer, around: OwnMeasurements) -> Account | None:
    """None while there is nothing to account for."""
    timings = machine.ctx.timings
    recovery_s = timings.median_s(("recovery",))
    if not machine.accounts.computed_s:
        return None
    return Account(
        computed_s=round(machine.accounts.computed_s, 3),
        useful_s=round(machine.accounts.useful_s, 3),
        recoveries=dict(machine.ctx.recoveries),
        recovery=None if recovery_s is None else Timing(recovery_s, timings.count(("recovery",)), 0.0),
        resent_bytes=around.resent_bytes,
    )


def _timing(machine: StagePeer | DataPeer, work: Work) -> Timing | None:
    """What a start has timed is told for a while: if that was too slow nobody gives this peer work, and it would stand for
    good. Without a figure it is taken for one of its stage's."""
    key, count = ("compute", work.value), machine.ctx.timings.count(("compute", work.value))
    began = machine.membership.online_since
    if count == 0 and began is not None and machine.participant.version >= began + PASSED_OVER:
        return None
    median = machine.ctx.timings.steady_s(key)
    return None if median is None else Timing(median, count, 0.0)
