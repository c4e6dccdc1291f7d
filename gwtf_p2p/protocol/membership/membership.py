"""Coming, catching up and leaving: which iteration does the swarm work on, and does this peer take part in it?

JOINING: the program has started. If no data peer answers and nobody's record is ahead, this peer is as far as anybody:
it is ONLINE at once (so a fresh run begins). Otherwise it says where it stands to the data peers, and the coordinator admits
it. SYNCING: it follows the iterations (as a member of its stage group with an empty share) while it downloads the weights of
the first of them, then applies the averages it has kept. ONLINE: its weights are those of the iteration. A peer that finds
itself behind says so, and is admitted anew. DRAINING: it takes nothing new and leaves when its counted work is committed.
"""

from __future__ import annotations

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.commit.progress import NO_WEIGHTS
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Download, MoveTo, Publish, Send
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Admit, Inquire, Standing
from gwtf_p2p.protocol.wire.records import PeerState

SEEK_S = 1.0
MOST_SEEK_S = 8.0
"""Between two attempts to find the swarm: each twice as long as the one before, as nothing else changes meanwhile."""


class Membership:
    """Of one peer. `admitted`: the coordinator (or the absence of one) lets this peer take part."""

    def __init__(self, context: Context, participant: Participant) -> None:
        self.ctx, self.participant = context, participant
        self.state = PeerState.JOINING
        self.admitted = False
        self.drained = False
        self.moving_to: Stage | None = None
        self._why_moving = ""
        self._seek_s = SEEK_S
        self._introduced = False
        self._downloading: int | None = None
        self._said_missing = -1
        self._others: dict[PeerId, Standing] = {}

    @property
    def published_state(self) -> PeerState:
        """What the record says: a peer whose weights are old does not serve."""
        if self.state is PeerState.ONLINE and self.participant.out_of_step:
            return PeerState.SYNCING
        return self.state

    @property
    def serves(self) -> bool:
        return self.state is PeerState.ONLINE and not self.participant.out_of_step

    def started(self, event: ev.Started) -> None:
        self.participant.start_from(event.weights_version, event.kept)
        self.ctx.epoch = event.epoch
        self.ctx.incarnation = event.incarnation or int(self.ctx.now * 1000)
        if self.ctx.view is not None:
            self.seek()

    def view_changed(self) -> None:
        """The first records decide whether to wait for a admission; later ones may show that the swarm has gone on."""
        if self.state is PeerState.JOINING and not self.ctx.is_armed(ev.Timer.SEEK, ""):
            self.seek()
        elif self.serves or (self.state is PeerState.DRAINING and not self.drained):
            self._introduce()
            if self._furthest() > self.participant.position:
                self.doubt()

    def data_peers(self) -> list[PeerId]:
        """Other data peers that may know more. One that is still joining may: it is back with later weights."""
        ctx = self.ctx
        known = set(self.participant.data_peers or ()) | set(ctx.view.data_peers if ctx.view else ())
        mine = (ctx.epoch, self.participant.weights)
        for record in ctx.view.records.values() if ctx.view else ():
            if record.stage == DATA_STAGE and (record.epoch, record.weights_version) > mine:
                known.add(record.peer)
        return sorted(p for p in known if p != ctx.me and not ctx.liveness.is_lost(p))

    def doubt(self) -> None:
        """Somebody seems to be further: say where this peer stands, and who knows better will answer."""
        if not self.ctx.is_armed(ev.Timer.DOUBT, "") and not self.participant.share.stepping:
            self.ctx.start_timer(ev.Timer.DOUBT, "", SEEK_S)
            self.say()

    def say(self) -> None:
        """Where this peer stands, to all data peers."""
        for peer in self.data_peers():
            self.ctx.emit(Send(peer, self.participant.standing()))

    def seek(self) -> None:
        """Find the iteration that the swarm works on."""
        ctx, participant = self.ctx, self.participant
        epoch, version = self._furthest()
        if self.data_peers():
            self.say()
            self._ask_who_leads()
        elif (epoch, version) <= (ctx.epoch, participant.weights) and not participant.progress.behind:
            self._online(admitted=True)
            return
        elif ctx.stage == DATA_STAGE:
            self._download(max(version, participant.weights), (), own=epoch <= ctx.epoch)
        ctx.start_timer(ev.Timer.SEEK, "", self._seek_s)
        self._seek_s = min(2 * self._seek_s, MOST_SEEK_S)

    def _ask_who_leads(self) -> None:
        """A data peer may find that none of the others takes part either."""
        if self.ctx.stage == DATA_STAGE:
            for peer in self.data_peers():
                self.ctx.emit(Send(peer, Inquire(self.participant.version)))

    def heard(self, sender: PeerId, standing: Standing) -> None:
        """If no data peer takes part, the one that is furthest begins (of several, the lowest id), and admits the others."""
        ctx, participant = self.ctx, self.participant
        if ctx.stage != DATA_STAGE or standing.stage != DATA_STAGE or self.admitted:
            return
        self._others[sender] = standing
        others = {peer: self._others.get(peer) for peer in self.data_peers()}
        known = {peer: s for peer, s in others.items() if s is not None and not s.active}
        if len(known) < len(others) or participant.progress.syncing or participant.weights == NO_WEIGHTS:
            return
        mine = (ctx.epoch, participant.weights)
        if all(s.position < mine or (s.position == mine and ctx.me < peer) for peer, s in known.items()):
            ctx.report("takes_the_lead", version=participant.version, others=sorted(known))
            participant.set_voters((ctx.me,) if participant.weights > 0 else None)
            if participant.progress.behind:
                self._download(participant.weights, (), own=True)  # to empty the gradient
            else:
                self._online(admitted=True)

    def still_seeks(self) -> None:
        """The timer fired: look again, if there is reason to."""
        not_admitted = self.ctx.stage == DATA_STAGE and not self.admitted
        if self.state is PeerState.JOINING or self.participant.progress.behind or not_admitted:
            self.seek()

    def fell_behind(self) -> None:
        self.admitted = False
        self._downloading = None
        self._seek_s = SEEK_S
        self.seek()

    def admit(self, sender: PeerId, message: Admit) -> None:
        """The coordinator takes this peer in, from this iteration on."""
        ctx, participant = self.ctx, self.participant
        if message.position < participant.position and not participant.progress.behind and not participant.role.joining:
            return
        in_step = (
            message.position == participant.position
            and participant.weights == participant.version
            and not participant.progress.behind
        )
        if in_step:
            if not self.admitted:
                participant.set_voters(message.data_peers if message.iteration > 0 else None)
            self._online(admitted=True)
        elif message.position != participant.position or participant.progress.behind or self._downloading is None:
            ctx.cancel_timer(ev.Timer.SEEK, "")
            self.admitted = ctx.me in message.data_peers and message.epoch > ctx.epoch
            participant.follow(message.iteration, message.epoch)
            ctx.epoch_starts = message.epoch_starts
            participant.set_voters(message.data_peers if message.iteration > 0 else None)
            if self.state is PeerState.JOINING:
                self.state = PeerState.ONLINE
            ctx.report("catching_up", iteration=message.iteration, donors=list(message.donors))
            self._downloading = None
            self._download(message.iteration, message.donors, message.own)
            ctx.emit(Publish())

    def downloaded(self, event: ev.Downloaded) -> None:
        if self._downloading is None:
            return
        self._downloading = None
        if self.participant.role.joining or self.participant.progress.behind:
            self.participant.follow(event.version, self.ctx.epoch)  # no data peer was there to admission this one
            self.admitted = True
        if not self.participant.progress.downloaded(event.version):
            self._give_up(f"the weights of iteration {event.version} came too late")
        elif not self.participant.progress.syncing:
            self.caught_up()

    def download_failed(self, event: ev.DownloadFailed) -> None:
        ctx, wanted = self.ctx, self._downloading
        if wanted is None:
            return
        self._report_missing(wanted)
        self._downloading = None
        alone = (
            ctx.stage == DATA_STAGE
            and not self.data_peers()
            and (self.participant.role.joining or self.participant.progress.behind)
        )
        if alone and 0 <= self.participant.weights < wanted:
            ctx.report("going_back", version=self.participant.weights, wanted=wanted)
            self._download(self.participant.weights, (), own=True)
        else:
            self._give_up(event.reason)

    def caught_up(self) -> None:
        """All averages are applied: this peer has the weights of the iteration."""
        self.ctx.report("caught_up", version=self.participant.version)
        self._online(admitted=self.admitted)
        self.say()
        if self.ctx.stage == DATA_STAGE and not self.admitted:
            self.ctx.start_timer(ev.Timer.SEEK, "", self._seek_s)

    def drain(self) -> None:
        if self.state is not PeerState.DRAINING:
            self.state = PeerState.DRAINING
            self.ctx.report("draining", held=len(self.ctx.held))
            self.ctx.emit(Publish())

    def drained_when(self, nothing_left: bool) -> None:
        """Leave once: the peers that are told do not wait for this one any more."""
        if self.state is PeerState.DRAINING and nothing_left and not self.drained:
            self.drained = True
            self.participant.role.leave()
            if self.moving_to is None:
                self.ctx.report("drained", version=self.participant.version)
            self._say_goodbye()
            self.ctx.emit(Publish())
            if self.moving_to is not None:
                self.ctx.emit(MoveTo(self.moving_to, self._why_moving))

    def move(self, to: Stage, reason: str) -> None:
        """Drain, then begin anew in another stage."""
        self.moving_to, self._why_moving = to, reason
        self.ctx.report("moving", stage=self.ctx.stage, to_stage=to, reason=reason)
        self.drain()

    def stay(self, reason: str) -> None:
        """This stage needs its peer after all."""
        self.moving_to, self.state = None, PeerState.ONLINE
        self.ctx.report("stays", stage=self.ctx.stage, reason=reason)
        self.ctx.emit(Publish())

    def _say_goodbye(self) -> None:
        """To all who may have dealt with this peer: the neighbouring stages, its own, and the data peers."""
        ctx = self.ctx
        near = {DATA_STAGE, ctx.stage - 1, ctx.stage, ctx.stage + 1} | ({ctx.stages} if ctx.stage == DATA_STAGE else set())
        records = ctx.view.records if ctx.view is not None else {}
        others = {peer for peer, record in records.items() if record.stage in near} | set(self.data_peers())
        for peer in sorted(others - {ctx.me} - ctx.liveness.lost):
            ctx.emit(Send(peer, self.participant.standing()))

    def _give_up(self, reason: str) -> None:
        self.ctx.report("download_failed", reason=reason)
        participant = self.participant
        if not participant.progress.behind and not participant.role.joining:
            participant.fall_behind(reason, participant.weights, is_known=True)
        self.ctx.start_timer(ev.Timer.SEEK, "", self._seek_s)
        self._seek_s = min(2 * self._seek_s, MOST_SEEK_S)

    def _download(self, version: int, donors: tuple[PeerId, ...], own: bool) -> None:
        if self._downloading != version:
            self._downloading = version
            self.ctx.emit(Download(version, donors, own, self.ctx.epoch))

    def _online(self, admitted: bool) -> None:
        self.ctx.cancel_timer(ev.Timer.SEEK, "")
        self.participant.role.join()
        self.admitted = admitted
        self._seek_s = SEEK_S
        if self.state is PeerState.JOINING:
            self.state = PeerState.ONLINE
        self.ctx.emit(Publish())
        self._introduce()

    def _introduce(self) -> None:
        """Once: a coordinator knows whom it has heard of."""
        if not self._introduced and self.data_peers():
            self._introduced = True
            self.say()

    def _furthest(self) -> tuple[int, int]:
        """The latest position (epoch, iteration) that another peer's record shows."""
        view, ctx = self.ctx.view, self.ctx
        for epoch, version, peer in view.furthest if view is not None else ():
            if peer != ctx.me and not ctx.liveness.is_lost(peer):
                return epoch, version
        return 0, 0

    def _report_missing(self, version: int) -> None:
        if self._said_missing != version:
            self._said_missing = version
            self.ctx.report("version_missing", stage=self.ctx.stage, version=version, have=self.participant.weights)
