"""Taking peers in, and back: whoever has come, or has fallen behind, joins the next attempt and gets the weights.

If nobody has the weights that a newcomer's stage needs (all its peers were lost), and that stays so for a while, the swarm
goes back to the newest version that every stage still has; where there is none, a stage may be rebuilt (`rebuilding`). That
begins a new *epoch*: weights of the same version in
different epochs differ, so epochs are compared before versions, and a peer of an older one has to catch up.

A newcomer that is admitted and does not follow cannot check the proof of the last commit yet: most peers of a stage may have
come since, or their records be late. Where its stage has others that serve it is not counted on again and again, or no attempt
would ever be without it: it is asked less and less often, and the next commit has a proof that it can check.
"""

from __future__ import annotations

from dataclasses import replace

from gwtf_p2p.protocol.commit.inquiry import Outcome, Replies, available, common_version, stages_without
from gwtf_p2p.protocol.commit.participant import Participant
from gwtf_p2p.protocol.commit.rebuilding import Rebuilding, admits_of
from gwtf_p2p.protocol.commit.roster import Roster
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.effects import Send
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.view.evaluations import up_to
from gwtf_p2p.protocol.wire.messages import Admit, Rebuild, Standing, commit_of

GO_BACK_AFTER_S = 5.0
"""How long a stage may lack the weights of this iteration before the swarm gives up what it has done since it had them: the
last one who has them may be coming back."""


MOST_ADMITS = 3
"""Of one peer into one iteration, at once."""

ADMIT_AGAIN_S = 1.0
MOST_ADMIT_DOUBLINGS = 4
"""Between two after that, and how often that time is doubled."""


class Admission:
    """Of a data peer, used when it leads. `waiting` have said where they stand."""

    def __init__(self, context: Context, participant: Participant, roster: Roster) -> None:
        self.ctx, self.participant, self.roster = context, participant, roster
        self.waiting: dict[PeerId, Standing] = {}
        self.patience_is_over = False
        self.rebuilding = Rebuilding(context)
        self._said: set[tuple[int, PeerId]] = set()
        self._weighed: dict[PeerId, tuple[tuple[int, int], frozenset[int]]] = {}
        self._came_at: dict[PeerId, float] = {}
        self._admits: dict[PeerId, tuple[int, float]] = {}
        self._admits_to = participant.position

    def must_be_weighed(self) -> bool:
        """True once for each newcomer that has later weights of this epoch than this peer: are those of every stage there?

        If so, this peer is behind.
        """
        found = False
        for peer, standing in sorted(self.waiting.items()):
            later = self._later(standing)
            if later and self._weighed.get(peer) != (self.participant.position, later):
                self._weighed[peer] = (self.participant.position, later)
                self._came_at.setdefault(peer, self.ctx.now)
                found = True
        return found

    def _later(self, standing: Standing) -> frozenset[int]:
        return frozenset(v for v in available(standing, self.ctx.past) if v > self.participant.version)

    def _comes_too_soon(self, peer: PeerId, standing: Standing) -> bool:
        """It would throw away later weights: not before those of the other stages have had time to come too."""
        too_soon = bool(self._later(standing)) and self.ctx.now - self._came_at.get(peer, self.ctx.now) < GO_BACK_AFTER_S
        if not too_soon:
            self._came_at.pop(peer, None)
        return too_soon

    def admit_all(self) -> None:
        """Into the next attempt; the participants of one under way are settled."""
        ctx, version = self.ctx, self.participant.version
        for peer, standing in sorted(self.waiting.items()):
            told = self.rebuilding.again(peer, standing)
            if told is not None:
                ctx.emit(Send(peer, told))
            if self.rebuilding.waits_for(standing.stage):
                continue
            in_step = standing.position == self.participant.position and not standing.syncing
            own = version in available(standing, ctx.past)
            others = {peer} | self.roster.from_another
            donors = tuple(donor for donor in self.roster.serving(standing.stage) if donor not in others)
            if (not donors and not own) or self._comes_too_soon(peer, standing):
                self._strand(peer, standing)
                continue
            if standing.joining and donors and self._does_not_follow(peer):
                continue
            del self.waiting[peer]
            self.roster.admit(peer, standing.stage, in_step)
            admit = Admit(version, donors, self.roster.voters(), ctx.epoch, own, ctx.past.epoch_starts)
            progress = self.participant.progress
            origin = {"certificate": progress.certificate, "committed": progress.committed}
            ctx.emit(Send(peer, replace(admit, **origin, evaluations=progress.evaluating.known)))  # type: ignore[arg-type]

    def _does_not_follow(self, peer: PeerId) -> bool:
        """It was admitted to this iteration before, and shortly; False counts as an admission."""
        if self._admits_to != self.participant.position:
            self._admits_to = self.participant.position
            self._admits.clear()
        times, last = self._admits.get(peer, (0, 0.0))
        doublings = min(times - MOST_ADMITS, MOST_ADMIT_DOUBLINGS)
        if times >= MOST_ADMITS and self.ctx.now - last < ADMIT_AGAIN_S * 2**doublings:
            return True
        self._admits[peer] = (times + 1, self.ctx.now)
        return False

    def _strand(self, peer: PeerId, standing: Standing) -> None:
        """Nobody has what this peer lacks, or it has what nobody else has."""
        ctx, version = self.ctx, self.participant.version
        if (version, peer) not in self._said:
            self._said.add((version, peer))
            ctx.report("version_missing", stage=standing.stage, version=version, have=standing.version, peer=peer)
        if not ctx.is_armed(Timer.BACK, ""):
            ctx.start_timer(Timer.BACK, "", GO_BACK_AFTER_S)

    def go_back(self, replies: Replies, why: str) -> bool:
        """To the newest version that all stages have, or that a lost stage is rebuilt at; False when there is none."""
        ctx = self.ctx
        common = common_version(replies, ctx.past, ctx.stages)
        lacking = (common, ()) if common is not None else self.rebuilding.due(replies, why)
        if lacking is None:
            return False
        to, lost = lacking
        past = ctx.past.gone_back_to(to, bool(lost))
        ctx.report("going_back", version=to, iteration=self.participant.version, epoch=past.epoch, reason=why)
        data_peers = tuple(sorted(p for p, s in replies.items() if s.stage == DATA_STAGE and not s.leaving))
        having = {peer for peer, standing in replies.items() if to in available(standing, ctx.past)}
        admit = Admit(to, (), data_peers, past.epoch, False, past.epoch_starts, rebuild=Rebuild(lost) if lost else None)
        admit = replace(admit, evaluations=up_to(self.participant.progress.evaluating.known, to))
        for peer, standing in sorted(replies.items()):
            if standing.stage not in lost:
                donors = tuple(sorted(p for p in having - {peer} if replies[p].stage == standing.stage))
                ctx.emit(Send(peer, replace(admit, donors=donors, own=peer in having)))
        self.rebuilding.begin(admits_of(lost, replies, having, admit))
        for peer, told in self.rebuilding.under_way.values():
            ctx.emit(Send(peer, told))
        return True

    def goes_back(self, replies: Replies, outcome: Outcome) -> bool:
        """Go back if what some have committed cannot be gone on from, or the weights of a stage are lost and waited for long
        enough."""
        ctx, version = self.ctx, self.participant.version
        lost = stages_without(version, replies, ctx.past, ctx.stages) if self.patience_is_over else []
        self.patience_is_over = False
        why = outcome.reason if outcome.go_back else f"nobody has version {version} of stages {lost}"
        return (outcome.go_back or bool(lost)) and self.go_back(replies, why)

    def is_due(self, peer: PeerId, standing: Standing) -> bool:
        """A data peer with the weights that is not expected here, or that is and has not been told so."""
        told = standing.active or self.participant.data_peers is None
        return standing.stage == DATA_STAGE and not standing.syncing and not (told and peer in self.roster.data_peers())

    def lose_patience(self) -> None:
        """The weights that somebody lacks have been waited for long enough."""
        self.patience_is_over = True

    def show_the_way(self, sender: PeerId, standing: Standing | None) -> None:
        """To a peer that is at an earlier iteration: the commit that it missed, or where to catch up."""
        ctx, participant = self.ctx, self.participant
        missed = standing.prepare if standing is not None and standing.prepared else None
        if missed is not None and missed.iteration == participant.version - 1 and missed.ballot == participant.committed:
            progress = participant.progress
            ctx.emit(Send(sender, commit_of(missed, progress.gradient_norm, progress.certificate)))
            return
        ctx.emit(Send(sender, participant.standing()))
