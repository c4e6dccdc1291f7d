"""One peer's part in closing an iteration: average in the stage group, then one optimizer step, exactly once.

The coordinator sends each participant of each stage group a `Prepare`: the shares to average. A participant first
makes its gradient equal its share (`own_share`), and refuses when something is missing. Then the group averages. Only when all
participants of all groups have `Prepared`, with equal digests in each group, is the attempt committed; participants then step
to weights version iteration + 1. A share of n microbatches has weight n (the sum of n gradients over the total is the mean over
all). That no two attempts of one iteration are ever committed rests on what each participant has promised (`promise`).

A participant that has missed a commit, or learns from others that it must have, falls behind and has to follow (`progress`).
"""

from __future__ import annotations

from gwtf_p2p.protocol.commit.certifying import Certifier, Own, is_prepared
from gwtf_p2p.protocol.commit.own_share import OwnShare
from gwtf_p2p.protocol.commit.progress import NO_ORIGIN, NO_WEIGHTS, Origin, Progress
from gwtf_p2p.protocol.commit.promise import Promise
from gwtf_p2p.protocol.commit.role import Role
from gwtf_p2p.protocol.commit.witnesses import Witnesses
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.effects import Publish, Send, Step
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.wire.certificates import Certificate
from gwtf_p2p.protocol.wire.messages import Ballot, Commit, Evaluations, NotPrepared, Prepare, Standing, commit_of


class Participant:
    """What one peer decides on messages of a commit. `role` is what it is told of itself, `progress` how far it is, `share` its
    part in the attempt at hand, `promise` which attempts it may take part in. `data_peers` began the iteration; None before
    the first commit."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.role = Role()
        self.progress = Progress(context)
        self.share = OwnShare(context)
        self.promise = Promise(self.progress, self.share)
        self.data_peers: tuple[PeerId, ...] | None = None
        self.witnesses = Witnesses(context)
        self.certifier = Certifier(context)
        self._applied: Certificate | None = None
        self._early: tuple[PeerId, Prepare] | None = None

    @property
    def version(self) -> int:
        """The iteration that this peer takes part in."""
        return self.progress.version

    @property
    def weights(self) -> int:
        """What its weights are at."""
        return self.progress.weights

    @property
    def position(self) -> tuple[int, int]:
        """See `Standing.position`."""
        return self.progress.position

    @property
    def committed(self) -> Ballot | None:
        """The attempt that this iteration began from."""
        return self.progress.committed

    @property
    def out_of_step(self) -> bool:
        """This peer must not serve."""
        return self.progress.out_of_step

    @property
    def preparing(self) -> Prepare | None:
        """The attempt that it takes part in."""
        return self.share.preparing

    # ---- what this peer is told of itself

    def start_from(self, version: int, kept: tuple[int, ...], evaluations: Evaluations | None = None) -> None:
        """The program has started with weights of this version; `kept` are the versions that it could restore."""
        self.progress.start_from(version, evaluations)
        self.role.keep(kept)

    def set_voters(self, data_peers: tuple[PeerId, ...] | None) -> None:
        """The data peers that began the iteration; None before the first commit, when all that are online do."""
        self.data_peers = data_peers

    # ---- what the coordinator asks

    def standing(self) -> Standing:
        """Where this peer stands, to be told to others."""
        role, progress, share = self.role, self.progress, self.share
        digest, squared_norm, state = share.average if share.said else ("", 0.0, "")
        return Standing(
            stage=self.ctx.stage,
            version=progress.weights if progress.behind else progress.version,
            committed=progress.committed,
            promised=self.promise.promised,
            prepare=share.preparing.without_receipts if share.preparing is not None else None,
            prepared=share.said,
            digest=digest,
            joining=role.joining or progress.behind,
            syncing=not progress.has_state,
            active=role.active,
            taking_part=role.taking_part and not progress.out_of_step,
            coordinator=role.coordinator() if role.active and not progress.out_of_step else None,
            leaving=role.leaving,
            epoch=self.ctx.epoch,
            kept=role.kept,
            squared_norm=squared_norm,
            gradient_norm=progress.gradient_norm,
            state=state,
            certificate=progress.certificate,
        )

    def prepare(self, sender: PeerId, message: Prepare) -> None:
        """Take part in an attempt, or say why not."""
        ctx, share = self.ctx, self.share
        next_one = (message.epoch, message.iteration) == (ctx.epoch, self.version + 1)
        if next_one and (share.stepping or share.prepared) and not self.progress.behind:
            self._early = (sender, message)  # the commit of the iteration before is on its way
            if not share.stepping:
                ctx.emit(Send(sender, self.standing()))
            return
        excluded = self.promise.excludes(sender, message.attempt)
        if (
            message.coordinator != sender
            or ctx.me not in message.participants
            or self.progress.behind
            or excluded
            or share.stepping
            or message.stage != ctx.stage
        ):
            ctx.emit(Send(sender, self.standing()))
            return
        if (message.epoch, message.iteration) != self.position:
            ctx.emit(Send(sender, self.standing()))
            return
        if share.preparing is not None and share.preparing.ballot == message.ballot:
            if share.prepared:
                share.say_prepared()
            return
        if message.base is not None and self._comes_from_another(sender, message.base):
            return
        share.drop()
        self.promise.give(message.ballot)
        missing = share.missing(message)
        if missing:
            failure = NotPrepared(message.iteration, message.attempt, ctx.stage, "missing", None, tuple(missing))
            ctx.emit(Send(sender, failure))
            return
        share.begin(message)

    # ---- the commit

    def _comes_from_another(self, sender: PeerId, ballot: Ballot, of_most: bool = False) -> bool:
        """Weights of this iteration come from another attempt than this peer's own, says the sender. Then this peer has no part
        in what it asks for; if others say so too (`of_most`: most of all), it is out of step, and what it keeps of this version
        is not right either."""
        if self.committed in (None, ballot):
            return False
        enough = self.witnesses.are_most if of_most else self.witnesses.are_from
        if enough(sender, ballot, self.position):
            self.role.keep(tuple(version for version in self.role.kept if version < self.version))
            self.fall_behind(f"weights of iteration {self.version} come from another average", NO_WEIGHTS)
        return True

    def learns_of_progress(
        self, sender: PeerId, to: tuple[int, int], reason: str, certificate: Certificate | None, leads: bool = False
    ) -> None:
        """The swarm is at a later position, says the sender: with a proof of it, or if others say so too, this peer is out of
        step. `certificate` None: the sender has none, as it has started again since. `leads`: it leads, as far as is known, and
        could have this peer go back without any proof: what is signed in each stage is enough. Who steps, or waits for that
        very commit, sees others that have stepped a moment earlier."""
        if certificate is not None and certificate.position <= self.position:
            return
        if certificate is not None and is_prepared(certificate, self.share):
            return
        if certificate is not None and self.certifier.shows(certificate):
            self.fall_behind(reason, self.weights)
        elif self.share.stepping or (certificate is not None and not self.certifier.is_signed(certificate)):
            return
        elif (leads and certificate is not None) or self.witnesses.are_further(sender, to, self.position):
            self.fall_behind(reason, self.weights)

    def commit(self, sender: PeerId, message: Commit) -> None:
        """Step, or find out that the swarm has gone on without this peer."""
        progress, share = self.progress, self.share
        if self.progress.behind or message.iteration < self.version - 1:
            return
        if message.iteration == self.version - 1:
            self._comes_from_another(sender, message.ballot)
            return
        preparing = share.preparing
        ready = message.iteration == self.version and share.prepared and preparing is not None
        if not ready or preparing is None or preparing.ballot != message.ballot:
            if self.certifier.unproven == (sender, message):
                self.certifier.forget()  # another attempt has taken its place
            to = (self.ctx.epoch, message.iteration + 1)
            if message.certificate is not None or not self.certifier.is_on:
                reason = f"iteration {message.iteration} was committed without this peer"
                self.learns_of_progress(sender, to, reason, message.certificate, leader_known_to(self) in (sender, None))
            return
        if share.stepping or not self.certifier.proves(sender, message, Own(preparing, share.average)):
            return
        if self.certifier.differs(share.average[2] or progress.state, message.certificate) and progress.unchecked:
            reason = f"weights of iteration {self.version} differ from those of most of its stage"
            self.fall_behind(reason, NO_WEIGHTS)
            return
        step = _step_of(preparing, message)
        if not progress.has_state:
            state = self.certifier.state_of_most(message.certificate)
            progress.kept.keep(step, state, None if progress.syncing else preparing)
            self._next_iteration(preparing, step.gradient_norm, message.certificate)
        else:
            share.apply(step.gradient_norm)
            self._applied = message.certificate
            progress.step(step)

    def stepped(self, iteration: int) -> bool:
        """The weights are one version further; True when that ends the iteration that this peer takes part in."""
        if not self.progress.stepped(iteration):
            return False
        if not self.share.stepping:
            self.progress.step_pending()
            return False
        preparing = self.share.preparing
        assert preparing is not None and iteration == self.version
        self._next_iteration(preparing, self.share.applied_norm, self._applied)
        return True

    def _next_iteration(self, preparing: Prepare, gradient_norm: float, certificate: Certificate | None) -> None:
        """Forget the iteration and begin the next."""
        self.progress.enter(preparing, gradient_norm, certificate)
        self._applied = None
        self.certifier.forget()
        self.data_peers = preparing.data_peers
        self.share.forget(self.version)
        self.promise.release()
        self.witnesses.forget()
        self.ctx.emit(Publish())
        early, self._early = self._early, None
        if early is not None:
            self.prepare(*early)

    # ---- falling behind and catching up

    def heard(self, sender: PeerId, standing: Standing) -> None:
        """Somebody at a later iteration shows that this peer has missed a commit."""
        if standing.joining or self.role.joining or self.progress.behind:
            return
        if standing.position == self.position and standing.committed is not None:
            # Who leads is never asked to average from another attempt: it goes by what most of all say of themselves.
            self._comes_from_another(sender, standing.committed, of_most=not self.witnesses.doubts(standing.committed))
        if standing.position <= self.position:
            return
        preparing = self.preparing
        next_one = standing.position == (self.ctx.epoch, self.version + 1)
        unproven = self.certifier.unproven
        if next_one and unproven and preparing is not None and self.certifier.stands_by(sender, standing, preparing):
            self.commit(*unproven)
        elif next_one and self.share.prepared and preparing is not None and standing.committed == preparing.ballot:
            self.commit(sender, commit_of(preparing, standing.gradient_norm, standing.certificate))
        elif next_one and self.certifier.waits_for(standing, preparing):
            return  # of the very attempt that this peer has prepared: it steps when that is proven, and is not out of step
        elif not self.share.stepping and self.certifier.believes(standing, with_witness=True):
            where = f"iteration {standing.version}" + (f" of epoch {standing.epoch}" if standing.epoch else "")
            leads = standing.stage == DATA_STAGE and leader_known_to(self) in (sender, None)
            self.learns_of_progress(sender, standing.position, f"{sender} is at {where}", standing.certificate, leads)

    def fall_behind(self, reason: str, weights: int, is_known: bool = False) -> None:
        """This peer's weights are old, or belong to no version: it must not serve until it has caught up. `is_known`: to whom
        it has to be told (`Progress.has_fallen_behind`)."""
        if self.progress.behind:
            return
        self._let_go()
        self.progress.fall_behind(weights, is_known)
        self.ctx.report("out_of_step", version=self.version, reason=reason)
        self.ctx.emit(Publish())

    def follow(
        self, iteration: int, epoch: int, origin: Origin = NO_ORIGIN, past: Past | None = None, own: bool = False
    ) -> None:
        """Take part from this iteration on, with an empty share until the weights are here. `past`: of an epoch that is new
        here; what this peer has of versions that the swarm has gone back from is nothing of it, and not told as such. `own`: it
        has this version, as whoever leads knows."""
        self._let_go()
        if past is not None:
            kept, here = self.role.kept, self.ctx.epoch
            self.role.keep(tuple(v for v in kept if past.shares(here, v) or (own and v == iteration)))
        self.progress.follow(iteration, epoch, origin, past)
        self.role.join()

    def _let_go(self) -> None:
        """Nothing that is under way here is of use any more, a step neither."""
        self.share.drop()
        self.share.forget()
        self.promise.release()
        self.witnesses.forget()
        self._early = None
        self.certifier.forget()
        self.progress.let_go()


def _step_of(prepare: Prepare, commit: Commit) -> Step:
    """What a commit has done to the weights of this peer's stage. A step that is skipped has contributions of nobody, and
    whoever is left out has none to any."""
    norm = commit_of(prepare, commit.gradient_norm).gradient_norm
    receipts = tuple(receipt.without(prepare.left_out) for receipt in prepare.receipts)
    return Step(commit.iteration, commit.attempt, norm, receipts if norm >= 0 else ())


def leader_known_to(participant: Participant) -> PeerId | None:
    """Who leads the iteration that this one takes part in, as far as it knows; None before the first commit."""
    live = (peer for peer in participant.data_peers or () if not participant.ctx.liveness.is_lost(peer))
    return min(live, default=None)
