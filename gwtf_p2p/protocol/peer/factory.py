"""A peer's state machine from its settings: the one place where context, timings, liveness, router and machine meet.

The live swarm and the simulator compose their peers here, so that what is compared differs in nothing but given values.
Settings are plain data. With the events that a machine was fed they are all that its effects depend on: an event log begins
with them, and `gwtf replay` composes the same machine once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.protocol.averages.rows import MOST_ALL_WITH_ALL
from gwtf_p2p.protocol.core.context import Context, SignedBy, Verify, nobodys
from gwtf_p2p.protocol.core.deadlines import Timings
from gwtf_p2p.protocol.core.failure_detector import Liveness
from gwtf_p2p.protocol.core.life import RunLife
from gwtf_p2p.protocol.core.router import Router
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer, DataPeerConfig
from gwtf_p2p.protocol.peer.stage_peer import StagePeer, StagePeerConfig
from gwtf_p2p.protocol.routers.factory import make_router
from gwtf_p2p.protocol.routers.swarm_failures import FixedTimings, ForgetfulLiveness
from gwtf_p2p.protocol.settings import RouterSettings
from gwtf_p2p.protocol.trust.entry import Entry
from gwtf_p2p.protocol.wire.run_parts import AuditTerms
from gwtf_p2p.protocol.wire.signed import EntryTerms


@dataclass(frozen=True, slots=True)
class RouterChoice:
    """A router by name (`routers/factory.KINDS`), its settings, and the run's seed."""

    name: str
    settings: RouterSettings
    seed: int


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """One of `data_peer` and `stage_peer` is given, as `stage` says. `router` None: whoever composes brings one.

    `exact`, `done_bytes`, `memory_limit_bytes`, `life`, `audit`, `microbatches`, `all_with_all` as in `Context`. `terms`: who
    may take part, as the run record says.
    """

    me: PeerId
    stage: Stage
    stages: int
    router: RouterChoice | None
    exact: bool = True
    done_bytes: int = 0
    memory_limit_bytes: int = 0
    data_peer: DataPeerConfig | None = None
    stage_peer: StagePeerConfig | None = None
    life: RunLife = field(default_factory=RunLife)
    terms: EntryTerms = field(default_factory=EntryTerms)
    audit: AuditTerms = field(default_factory=AuditTerms)
    microbatches: int = 0
    all_with_all: int = MOST_ALL_WITH_ALL

    def __post_init__(self) -> None:
        if not 0 <= self.stage <= self.stages:
            raise ValueError(f"stage: expected a number from 0 to {self.stages}, got {self.stage}")
        if (self.data_peer is None) == (self.stage == DATA_STAGE) or (self.stage_peer is None) == (self.stage > DATA_STAGE):
            raise ValueError(f"data_peer, stage_peer: expected the one that goes with stage {self.stage}")

    @property
    def official_failures(self) -> bool:
        """Failures are taken as the official SWARM code takes them (`swarm_failures`)."""
        return self.router is not None and self.router.settings.official_failures


def compose(
    settings: PeerSettings, router: Router | None = None, verify: Verify | None = None, signed_by: SignedBy = nobodys
) -> StagePeer | DataPeer:
    """The machine of a peer whose program has just started. `router` takes the place of the one that the settings name.
    `verify`, `signed_by`: how signatures are looked at, where peers sign (`Context`)."""
    timings = FixedTimings() if settings.official_failures else Timings()
    liveness = (ForgetfulLiveness if settings.official_failures else Liveness)(settings.me, timings)
    if router is None:
        assert settings.router is not None, "either the settings name a router, or there is one"
        router = make_router(settings.router.name, settings.router.settings, settings.router.seed, settings.me)
    context = Context(
        me=settings.me,
        stage=settings.stage,
        stages=settings.stages,
        router=router,
        timings=timings,
        liveness=liveness,
        exact=settings.exact,
        done_bytes=settings.done_bytes,
        memory_limit_bytes=settings.memory_limit_bytes,
        life=settings.life,
        audit=settings.audit,
        microbatches=settings.microbatches,
        all_with_all=settings.all_with_all,
        verify=verify,
        signed_by=signed_by,
    )
    if settings.data_peer is not None:
        machine: StagePeer | DataPeer = DataPeer(context, settings.data_peer)
    else:
        assert settings.stage_peer is not None, "checked by the settings"
        machine = StagePeer(context, settings.stage_peer)
    machine.gate.entry = Entry(settings.terms)
    return machine
