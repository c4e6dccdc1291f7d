"""How far one peer is: the iteration that it takes part in, the weights that it has, and the steps between them.

A peer that misses a commit (frozen, cut off) is *behind*: it serves nobody, drops what it holds, and catches up
(`membership`). A peer that catches up *follows*: it is a participant with an empty share, keeps the averages of the iterations
that are committed while it downloads the weights of the first of them, and then steps through all of them, one at a time. A
step that ends after its weights have been replaced means nothing.

The weights may come first. Then it serves, and counts in the iteration that they are of, while what the optimizer keeps with
them (the *moments*) is on its way: no gradient needs it. When that iteration is committed before the moments are here, its
average is kept like the others, and the peer serves again when it has stepped. Until then nobody can have the state from it.
It asks for no newer weights meanwhile: its line is better spent on the moments (ARCHITECTURE.md, decisions).

A commit whose norm is not finite is a step that is *skipped*: the version rises, the weights stay. After as many in a row as
the run allows, data peers begin no iteration until they are started again.

A run is *over* with its last iteration, or with the commit that says that the evaluations have brought nothing better for as
long as the run waits (`view/evaluations`).
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.epochs import Past
from gwtf_p2p.protocol.effects import Step
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.evaluations import REPORT, ends, up_to, with_newest
from gwtf_p2p.protocol.wire.certificates import Certificate
from gwtf_p2p.protocol.wire.messages import Ballot, Evaluated, Evaluations, Prepare

NO_WEIGHTS = -1
"""Version of weights that belong to no committed iteration."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the weights of an iteration come from, as far as it is known: the attempt, its gradient's norm, and the proof of its
    commit."""

    certificate: Certificate | None = None
    committed: Ballot | None = None
    gradient_norm: float = 0.0


NO_ORIGIN = Origin()


class Evaluating:
    """What one peer knows of the run's evaluations, and whether they have ended it. `here`: what this peer itself has found."""

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.known: Evaluations | None = None
        self.here: Evaluated | None = None

    def found(self, news: Evaluated, version: int) -> None:
        """It has evaluated weights, and is at this version. Those of the last iteration are evaluated when no commit follows
        any more."""
        self.here = news
        if news.version == version and self.ctx.life.is_over(version):
            self.know(with_newest(self.known, news))

    def know(self, evaluations: Evaluations | None) -> None:
        """This is what is known from now on."""
        if evaluations is not None and evaluations != self.known:
            newest = evaluations.newest
            told = {"best_version": evaluations.best_version, "best_loss": evaluations.best_loss, "waited": evaluations.waited}
            self.ctx.report(REPORT, iteration=newest.version, loss=newest.loss, patience=self.ctx.life.patience, **told)
        self.known = evaluations

    def go_back(self, version: int) -> None:
        """What later weights have lost is forgotten."""
        self.known = up_to(self.known, version)

    def have_ended(self, version: int) -> bool:
        """The evaluations have ended the run, with this version, before its last iteration."""
        return ends(self.known, self.ctx.life.patience) and not self.ctx.life.is_over(version)


class KeptSteps:
    """The steps whose averages are kept until this peer's state is here, in their order, and of what state most of the stage
    have averaged for each of them, as far as a commit has said so."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.states: dict[int, str] = {}
        self._served: tuple[Prepare, float] | None = None

    def keep(self, step: Step, state: str, served: Prepare | None) -> None:
        """`state`: the digest of what most of the stage have averaged for, '' where that is not known; `served`: the attempt,
        where this peer served in its iteration."""
        self.steps.append(step)
        self.states[step.iteration] = state
        self._served = (served, step.gradient_norm) if served is not None else None

    def take_served(self) -> tuple[Prepare, float] | None:
        """The attempt that was committed since the last call though this peer, which served, cannot step; and its norm."""
        taken, self._served = self._served, None
        return taken

    def fits(self, version: int, state: str) -> bool:
        """A state of this version and digest is the one that most of the stage have."""
        return not state or self.states.get(version, "") in ("", state)

    def begin_at(self, version: int) -> None:
        """A state of this version is here: steps before it are in it."""
        self.steps = [step for step in self.steps if step.iteration >= version]

    def clear(self) -> None:
        """They are of no use."""
        self.steps.clear()
        self.states.clear()


class Progress:
    """`version`: the iteration that this peer takes part in. `weights`: what its weights are at, equal unless it follows.
    `committed`: the attempt that `version` began from, `gradient_norm` and `certificate` that commit's. `skipped`: the steps
    before it that were skipped, in a row, as far as this peer has seen; `skipped_for`: whose gradients were not finite at the
    last of them. `evaluating`: what the commits up to `version` have told of evaluations. `lacks_moments`: those of `weights`
    are not here yet. `kept`: the averages of iterations that are committed since. `state`: the digest of a state that was put
    in place, until a step changes it, '' where it is not known.
    """

    def __init__(self, context: Context) -> None:
        self.ctx = context
        self.version = 0
        self.weights = 0
        self.committed: Ballot | None = None
        self.gradient_norm = 0.0
        self.certificate: Certificate | None = None
        self.skipped = 0
        self.skipped_for: tuple[PeerId, ...] = ()
        self.evaluating = Evaluating(context)
        self.behind = False
        self.lacks_moments = False
        self.state = ""
        self._has_fallen_behind = False
        self._has_let_go = False
        self._awaited_step: int | None = None
        self.kept = KeptSteps()
        self.unchecked = False

    @property
    def position(self) -> tuple[int, int]:
        """See `Standing.position`."""
        return self.ctx.epoch, self.version

    @property
    def syncing(self) -> bool:
        """It follows the swarm but lacks the weights."""
        return not self.behind and self.weights != self.version

    @property
    def out_of_step(self) -> bool:
        """This peer must not serve."""
        return self.behind or self.weights != self.version

    @property
    def has_state(self) -> bool:
        """All of the state is here: it can step, and others can have it."""
        return not self.out_of_step and not self.lacks_moments

    @property
    def is_paused(self) -> bool:
        """Too many steps in a row were skipped: data peers begin nothing."""
        return 0 < self.ctx.life.max_skipped_steps <= self.skipped

    @property
    def begins_nothing(self) -> bool:
        """The run is over, or paused."""
        return self.is_over(self.version) or self.is_paused

    def is_over(self, version: int) -> bool:
        """Whether the run ends with these weights."""
        ended = self.evaluating.have_ended(self.version)
        return self.ctx.life.is_over(version) or (ended and version >= self.version)

    def start_from(self, version: int, evaluations: Evaluations | None) -> None:
        """The program has started with weights of this version."""
        self.version = self.weights = version
        self.evaluating.know(evaluations)

    # ---- steps

    def step(self, step: Step) -> None:
        """Apply the average of this attempt to the weights."""
        self._awaited_step = step.iteration
        self.ctx.emit(step)

    def stepped(self, iteration: int) -> bool:
        """The weights are one version further; False for weights that have been replaced since."""
        if iteration != self._awaited_step:
            return False
        self._awaited_step, self.state = None, ""
        self.weights = iteration + 1
        return True

    def step_pending(self) -> None:
        """The next of the averages that were kept, if there is one."""
        if self.kept.steps:
            self.step(self.kept.steps.pop(0))

    def weights_downloaded(self, version: int) -> bool:
        """Whether they can be computed with: not when their iteration is committed already."""
        if self.behind or version != self.version or self.weights == version:
            return False
        self.weights, self.lacks_moments = version, True
        return True

    def downloaded(self, version: int, state: str = "") -> bool:
        """False when the state is of no use: averages between it and the iteration followed are missing."""
        self.kept.begin_at(version)
        first = self.kept.steps[0].iteration if self.kept.steps else self.version
        if version != first:
            return False
        self.weights, self.lacks_moments, self.state = version, False, state
        self.unchecked = version not in self.kept.states
        self.step_pending()
        return True

    def enter(self, prepare: Prepare, gradient_norm: float, certificate: Certificate | None) -> None:
        """The iteration of this attempt is committed, by it."""
        self.version, self.committed, self.gradient_norm = prepare.iteration + 1, prepare.ballot, gradient_norm
        self.certificate, self.unchecked = certificate, False
        self.skipped = self.skipped + 1 if gradient_norm < 0 else 0
        self.skipped_for = prepare.skipped_for
        self.evaluating.know(prepare.evaluations or self.evaluating.known)

    # ---- behind

    def let_go(self) -> None:
        """No step that is under way is of use any more, nor is what this peer holds."""
        self._awaited_step = None
        self.kept.clear()
        self._has_let_go = True

    def fall_behind(self, weights: int, is_known: bool) -> None:
        """The swarm has gone on; what this peer has are weights of that version. `is_known`: to whom it has to be told."""
        self.weights = NO_WEIGHTS if self.lacks_moments else weights
        self.lacks_moments = False
        self.behind, self._has_fallen_behind = True, not is_known

    def follow(self, iteration: int, epoch: int, origin: Origin = NO_ORIGIN, past: Past | None = None) -> None:
        """Take part from this iteration on, without its weights. `origin`: of these. `past`: of an epoch that is new here."""
        self.evaluating.go_back(iteration)
        is_other = past is not None and not past.shares(self.ctx.epoch, self.weights)
        if self.weights == iteration or self.lacks_moments or is_other:
            self.weights = NO_WEIGHTS  # they may be right, but the gradient is not empty
        self.lacks_moments = False
        self.version, self.ctx.epoch = iteration, epoch
        self.committed, self.certificate, self.gradient_norm = origin.committed, origin.certificate, origin.gradient_norm
        self.behind = self._has_fallen_behind = False

    def has_let_go(self) -> bool:
        """True once after all that this peer holds has come to belong to iterations that it has no part in."""
        has_let_go, self._has_let_go = self._has_let_go, False
        return has_let_go

    def has_fallen_behind(self) -> bool:
        """True once after this peer has fallen behind."""
        fell, self._has_fallen_behind = self._has_fallen_behind, False
        return fell
