"""Stages whose weights nobody has, on no disk and as no copy: when they are rebuilt from their neighbours', and by whom.

CheckFree's rule (arXiv 2506.15461): a lost stage begins again with a weighted average of the layers of the stage before and of
the one after; a first or last stage has one neighbour only, and takes over its layers. That is a loss of what was learnt there,
so it is done only where the one who leads was asked for it (`RunLife.rebuilds`), nothing older is common to all stages, and
nobody has come with the weights for `REBUILD_AFTER_S`. The embedding and the head have no neighbours that are like them:
neither stage 0 is rebuilt nor, where data peers are thin, the first and the last stage. One peer rebuilds a stage and the
others fetch from it, so that all have the same to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from gwtf_p2p.protocol.commit.inquiry import Replies, available, nearest_version, stages_without
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Admit, Rebuild, Standing

REBUILD_AFTER_S = 30.0
"""What is rebuilt stays so: whoever has the true weights on a disk gets this long to come back."""

MOST_TRIES = 3
"""Of rebuilding the same: what has failed so often (layers that are not alike) will fail again."""

Lacking = tuple[int, tuple[Stage, ...]]
"""A version, and the stages that nobody has it of."""


def neighbours(stage: Stage, stages: int, lacking: Collection[Stage]) -> tuple[Stage, ...]:
    """The stages from whose weights this one can be rebuilt: those beside it that hold layers and have them."""
    beside = (Stage(stage - 1), Stage(stage + 1))
    return tuple(k for k in beside if DATA_STAGE < k <= stages and k not in lacking)


def can_be_rebuilt(lacking: Collection[Stage], stages: int, thin: bool = False) -> bool:
    """Whether each of these stages has a neighbour that is not among them, and layers alone (`thin`: `RunLife`)."""
    others = {DATA_STAGE, 1, stages} if thin else {DATA_STAGE}
    return all(stage not in others and neighbours(stage, stages, lacking) for stage in lacking)


def to_rebuild(replies: Replies, past: Past, stages: int, thin: bool = False) -> Lacking | None:
    """The version that fewest stages lack, the newest of several, of those whose gaps can be rebuilt; None where there is none.

    Version 0 is not rebuilt: it is drawn from the run's seed. Nor is a stage where nobody is, who may have it.
    """
    there = {version for standing in replies.values() for version in available(standing, past) if version > 0}
    found = {version: tuple(stages_without(version, replies, past, stages)) for version in there}
    manned = {standing.stage for standing in replies.values() if not standing.leaving}
    ranked = [
        (-len(lacking), version)
        for version, lacking in found.items()
        if can_be_rebuilt(lacking, stages, thin) and manned.issuperset(lacking)
    ]
    if not ranked:
        return None
    version = max(ranked)[1]
    return version, found[version]


class Rebuilding:
    """Of the data peer that leads. `under_way` are the stages that are being rebuilt, and how their peers were told to;
    `lacking` is what was found last."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.under_way: dict[Stage, tuple[PeerId, Admit]] = {}
        self.lacking: Lacking | None = None
        self._position = (0, 0)
        self._since = 0.0
        self._tries = 0
        self._said: object = None

    @property
    def in_s(self) -> float | None:
        """Seconds until what lacks is rebuilt; None where it will not be."""
        if self.lacking is None or not self._may_be_tried(self.lacking):
            return None
        return max(0.0, self._since + REBUILD_AFTER_S - self.ctx.now)

    def is_at(self, position: tuple[int, int]) -> None:
        """The iteration at hand, as (epoch, version). One that was committed shows that nothing is lacking any more."""
        epoch, version = self._position
        if position[0] == epoch and position[1] > version:
            self.under_way.clear()
            self.lacking, self._tries, self._said = None, 0, None
        self._position = position

    def due(self, replies: Replies, why: str) -> Lacking | None:
        """What to rebuild now, as no version is common to all stages. Else None, and it is told once what lacks, and what will
        become of it."""
        ctx = self.ctx
        rebuilds = to_rebuild(replies, ctx.past, ctx.stages, ctx.life.thin) if ctx.life.rebuilds else None
        nearest, without = nearest_version(replies, ctx.past, ctx.stages)
        lacking = rebuilds or (nearest, tuple(without))
        if lacking != self.lacking:
            if self.lacking is None or lacking[1] != self.lacking[1]:
                self._tries = 0
            self.lacking, self._since = lacking, ctx.now
        if rebuilds is not None and self._may_be_tried(rebuilds) and ctx.now >= self._since + REBUILD_AFTER_S:
            self._tries += 1
            self._since = ctx.now
            return rebuilds
        said = lacking, why, self.in_s is None
        if said != self._said:
            self._said = said
            can_be = can_be_rebuilt(lacking[1], ctx.stages, ctx.life.thin)
            told = {"version": lacking[0], "stages_without": list(lacking[1]), "rebuilt_in_s": self.in_s}
            ctx.report("no_common_version", iteration=self._position[1], reason=why, can_be_rebuilt=can_be, **told)
        return None

    def begin(self, admits: Mapping[Stage, tuple[PeerId, Admit]]) -> None:
        """These peers have been told to rebuild their stages."""
        self.under_way = dict(admits)

    def again(self, peer: PeerId, standing: Standing) -> Admit | None:
        """What this peer was told, if it has not heard it; None for others, and for one that could not do it."""
        told = self.under_way.get(standing.stage)
        if told is None or told[0] != peer:
            return None
        if standing.epoch < told[1].epoch:
            return told[1]
        del self.under_way[standing.stage]
        return None

    def waits_for(self, stage: Stage) -> bool:
        """Somebody is at it: the others of this stage fetch its weights later."""
        told = self.under_way.get(stage)
        return told is not None and not self.ctx.liveness.is_lost(told[0])

    def _may_be_tried(self, lacking: Lacking) -> bool:
        can_be = can_be_rebuilt(lacking[1], self.ctx.stages, self.ctx.life.thin)
        return can_be and self.ctx.life.rebuilds and self._tries < MOST_TRIES


def admits_of(
    stages: tuple[Stage, ...], replies: Replies, having: Collection[PeerId], admit: Admit
) -> dict[Stage, tuple[PeerId, Admit]]:
    """Who rebuilds each stage (of its peers the lowest id), and what it is told; `having` have the weights of theirs."""
    found: dict[Stage, tuple[PeerId, Admit]] = {}
    for stage in stages:
        own = sorted(peer for peer, standing in replies.items() if standing.stage == stage and not standing.leaving)
        if not own:
            continue
        below, above = (
            tuple(sorted(peer for peer in having if replies[peer].stage == k)) if k > DATA_STAGE else ()
            for k in (stage - 1, stage + 1)
        )
        found[stage] = own[0], replace(admit, rebuild=Rebuild(stages, below, above))
    return found
