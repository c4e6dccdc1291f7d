"""Coming, catching up and leaving: which iteration does the swarm work on, and does this peer take part in it?

JOINING: the program has started. If no data peer answers and nobody's record is ahead, this peer is as far as anybody:
it is ONLINE at once (so a fresh run begins). Otherwise it says where it stands to the data peers, and the coordinator admits
it. SYNCING: it follows the iterations (as a member of its stage group with an empty share) while it downloads the weights of
the first of them, then applies the averages it has kept. ONLINE: its weights are those of the iteration; a stage peer serves
with them before the rest of the state is here (`commit/progress`). A peer that finds itself behind says so, and is admitted
anew. DRAINING: it takes nothing new and leaves when its counted work is committed.
"""

from __future__ import annotations

from gwtf_p2p.protocol import events as ev
from gwtf_p2p.protocol.commit.certifying import origin_of
from gwtf_p2p.protocol.commit.participant import Participant, leader_known_to
from gwtf_p2p.protocol.commit.progress import NO_WEIGHTS
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.effects import MoveTo, Publish
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.membership.others import Others
from gwtf_p2p.protocol.membership.wanted_weights import WantedWeights
from gwtf_p2p.protocol.wire.messages import Admit, Standing
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
        self.online_since: int | None = None
        self.others = Others(context, participant)
        self.wanted = WantedWeights(context, participant)

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
        self.participant.start_from(event.weights_version, event.kept, event.evaluations)
        self.ctx.epoch = event.epoch
        self.ctx.incarnation = event.incarnation or int(self.ctx.now * 1000)
        if self.ctx.view is not None:
            self.seek()

    def view_changed(self) -> None:
        """The first records decide whether to wait to be admitted; later ones may show that the swarm has gone on."""
        if self.state is PeerState.JOINING and not self.ctx.is_armed(ev.Timer.SEEK, ""):
            self.seek()
        elif self.serves or (self.state is PeerState.DRAINING and not self.drained):
            self.others.introduce()
            if self.others.furthest() > self.participant.position:
                self.others.doubt()

    def seek(self) -> None:
        """Find the iteration that the swarm works on."""
        ctx, participant = self.ctx, self.participant
        epoch, version = self.others.furthest()
        if self.others.data_peers():
            self.others.say()
            self.others.ask_who_leads()
        elif (epoch, version) <= (ctx.epoch, participant.weights) and not participant.progress.behind:
            self._online(admitted=True)
            return
        elif ctx.stage == DATA_STAGE:
            self.wanted.fetch(max(version, participant.weights), (), own=epoch <= ctx.epoch)
        ctx.start_timer(ev.Timer.SEEK, "", self._seek_s)
        self._seek_s = min(2 * self._seek_s, MOST_SEEK_S)

    def heard(self, sender: PeerId, standing: Standing) -> None:
        """If no data peer takes part, the one that is furthest begins (of several, the lowest id), and admits the others."""
        ctx, participant = self.ctx, self.participant
        if ctx.stage != DATA_STAGE or standing.stage != DATA_STAGE or self.admitted:
            return
        self.others.note(sender, standing)
        known = self.others.all_idle()
        if known is None or participant.progress.syncing or participant.weights == NO_WEIGHTS:
            return
        mine = (ctx.epoch, participant.weights)
        if all(s.position < mine or (s.position == mine and ctx.me < peer) for peer, s in known.items()):
            ctx.report("takes_the_lead", version=participant.version, others=sorted(known))
            participant.set_voters((ctx.me,) if participant.weights > 0 else None)
            if participant.progress.behind:
                self.wanted.fetch(participant.weights, (), own=True)  # to empty the gradient
            else:
                self._online(admitted=True)

    def still_seeks(self) -> None:
        """The timer fired: look again, if there is reason to."""
        not_admitted = self.ctx.stage == DATA_STAGE and not self.admitted
        if self.state is PeerState.JOINING or self.participant.progress.behind or not_admitted:
            self.seek()

    def fell_behind(self) -> None:
        self.admitted = False
        self.wanted.forget()
        self._seek_s = SEEK_S
        self.seek()

    def admit(self, sender: PeerId, message: Admit) -> None:
        """The coordinator takes this peer in, from this iteration on."""
        ctx, participant = self.ctx, self.participant
        if message.position < participant.position and not participant.progress.behind and not participant.role.joining:
            return
        has_state = participant.progress.has_state and message.iteration == participant.weights
        has_own = message.iteration in participant.role.kept or (self.serves and has_state)
        overwrites = message.rebuild is not None and ctx.stage in message.rebuild.stages and has_own
        if overwrites or not self.others.may_admit(sender, message):
            ctx.report("admit_refused", sender=sender, iteration=message.iteration, epoch=message.epoch)
            return
        serves = self.serves and message.position > participant.position
        if serves and leader_known_to(participant) not in (sender, None):
            ctx.report("admit_refused", sender=sender, iteration=message.iteration, epoch=message.epoch)
            if message.epoch > ctx.epoch:  # if others have followed, this peer has to
                reason = f"{sender} has gone back to iteration {message.iteration} of epoch {message.epoch}"
                participant.learns_of_progress(sender, message.position, reason, None)
            if not participant.progress.behind:
                self.others.doubt()  # whoever leads answers
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
        elif message.position != participant.position or participant.progress.behind or self.wanted.version is None:
            ctx.cancel_timer(ev.Timer.SEEK, "")
            self.admitted = ctx.me in message.data_peers and message.epoch > ctx.epoch
            past = Past(message.epoch, message.epoch_starts) if message.epoch > ctx.epoch else None
            origin = origin_of(participant.certifier, message)
            participant.follow(message.iteration, message.epoch, origin, past, message.own)
            participant.progress.evaluating.know(message.evaluations)
            ctx.epoch_starts = message.epoch_starts
            participant.set_voters(message.data_peers if message.iteration > 0 else None)
            if self.state is PeerState.JOINING:
                self.state = PeerState.ONLINE
            ctx.report("catching_up", iteration=message.iteration, donors=list(message.donors))
            self.wanted.forget()
            self.wanted.fetch(message.iteration, message.donors, message.own, message.rebuild)
            if message.rebuild is not None:
                ctx.report("rebuilding", version=message.iteration, stages=list(message.rebuild.stages), epoch=message.epoch)
            ctx.emit(Publish())

    def weights_downloaded(self, event: ev.WeightsDownloaded) -> None:
        """They are the ones of the iteration that this peer takes part in: it serves, and says so."""
        if event.version == self.wanted.version and self.participant.progress.weights_downloaded(event.version):
            self.wanted.found()
            self.ctx.report("serves_before_moments", version=event.version)
            self._online(admitted=self.admitted)

    def downloaded(self, event: ev.Downloaded) -> None:
        if self.wanted.version is None:
            return
        self.wanted.forget()
        self.wanted.found()
        if not self.participant.progress.kept.fits(event.version, event.state):
            self.ctx.report("state_refused", version=event.version, state=event.state)
            self._give_up(f"the weights of iteration {event.version} are not those that the stage has signed")
            return
        if self.participant.role.joining or self.participant.progress.behind:
            self.participant.follow(event.version, self.ctx.epoch)  # no data peer was there to admit this one
            self.admitted = True
        if not self.participant.progress.downloaded(event.version, event.state):
            self._give_up(f"the weights of iteration {event.version} came too late")
        elif not self.participant.progress.syncing:
            self.caught_up()

    def download_failed(self, event: ev.DownloadFailed) -> None:
        ctx, wanted = self.ctx, self.wanted.version
        if wanted is None:
            return
        is_new = self.wanted.missing(wanted)
        self.wanted.forget()
        alone = (
            ctx.stage == DATA_STAGE
            and not self.others.data_peers()
            and (self.participant.role.joining or self.participant.progress.behind)
        )
        kept = self.participant.role.kept
        own = (
            {*kept, self.participant.weights} if self.participant.weights > 0 else {*kept}
        )  # others have no first weights left
        back_to = max((version for version in own if version < wanted), default=None)
        if alone and back_to is not None:
            ctx.report("going_back", version=back_to, wanted=wanted)
            self.wanted.fetch(back_to, (), own=True)
            return
        if alone and is_new:
            lacking = {"version": wanted, "stages_without": [ctx.stage]}
            ctx.report("no_common_version", iteration=self.participant.version, reason=event.reason, **lacking)
        self._give_up(event.reason)

    def caught_up(self) -> None:
        """All averages are applied: this peer has the weights of the iteration."""
        self.ctx.report("caught_up", version=self.participant.version)
        self._online(admitted=self.admitted)
        self.others.say()
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
            self.others.say_goodbye()
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

    def _give_up(self, reason: str) -> None:
        self.ctx.report("download_failed", reason=reason)
        participant = self.participant
        if not participant.progress.behind and not participant.role.joining:
            participant.fall_behind(reason, participant.weights, is_known=not self.serves)
        self.ctx.start_timer(ev.Timer.SEEK, "", self._seek_s)
        self._seek_s = min(2 * self._seek_s, MOST_SEEK_S)

    def _online(self, admitted: bool) -> None:
        self.ctx.cancel_timer(ev.Timer.SEEK, "")
        self.participant.role.join()
        self.admitted = admitted
        self._seek_s = SEEK_S
        if self.state is PeerState.JOINING:
            self.state, self.online_since = PeerState.ONLINE, self.participant.version
        self.ctx.emit(Publish())
        self.others.introduce()
