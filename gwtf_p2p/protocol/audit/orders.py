"""A data peer's audits: its microbatches' hops are drawn, testified to, done again, and decided on, before the iteration is
committed. Averaging need not wait for them: the data peer says that it has averaged when no case is open.

One case for each hop that is drawn. The worker is asked what it had and made; then a peer of the stage is ordered to do it
again. Does it agree, the case is closed. Does it not, a second peer decides, if there is one; the two findings then say who is
alone (`judge.loser`). What cannot be found out, because peers are lost or tensors are not there any more, is told and left.

Some lies leave no proof: a worker that does not testify, or a neighbour's word against the worker's. Whoever does not testify
to this data peer is not dealt with by it (`on_silent`). Two auditors that find the same word against word make a *dispute*
between the two; whoever has disputes with two others is not dealt with either. So no one peer has another one left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gwtf_p2p.protocol.audit.convictions import Convictions, is_found, is_testified
from gwtf_p2p.protocol.audit.draw import in_order, is_drawn
from gwtf_p2p.protocol.audit.judge import loser
from gwtf_p2p.protocol.audit.texts import draw_text
from gwtf_p2p.protocol.core.context import Context
from gwtf_p2p.protocol.core.lifecycle import Held
from gwtf_p2p.protocol.effects import Send, Sign
from gwtf_p2p.protocol.events import Timer
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.wire.audit_messages import AuditOrder, AuditResult, Conviction, Finding, Hop, Testify, Testimony

ANSWER_PRIOR_S, LEAST_ANSWER_S = 10.0, 5.0
"""How long to wait for a testimony or a finding while nothing is measured, and at least."""

MOST_TRIES = 3
"""Questions for a testimony, and auditors for one opinion."""

MOST_DISPUTES = 256

MOST_EVASIONS = 3
"""How often a peer that has not started again may lack the very work that is drawn."""


@dataclass(slots=True)
class Case:
    """One hop. `asked` are the auditors so far, `disputed` the neighbours that they have named."""

    hop: Hop
    proof: str
    tries: int = 0
    testimony: Testimony | None = None
    auditor: PeerId | None = None
    asked: list[PeerId] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    disputed: list[PeerId] = field(default_factory=list)
    since: float = 0.0
    asked_at: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.hop.microbatch}/{self.hop.stage}"


class Orders:
    """Of one data peer. `on_passed`: what a peer had done of a stage is right."""

    def __init__(
        self,
        context: Context,
        convictions: Convictions,
        on_silent: Callable[[PeerId, str], None],
        on_passed: Callable[[Stage, PeerId], None],
    ) -> None:
        self.ctx, self.convictions = context, convictions
        self.on_silent, self.on_passed = on_silent, on_passed
        self._drawing: dict[str, tuple[MicrobatchId, tuple[PeerId, ...]]] = {}
        self._cases: dict[tuple[MicrobatchId, int], Case] = {}
        self._disputes: dict[PeerId, set[PeerId]] = {}
        self._evasions: Counter[PeerId] = Counter()

    @property
    def are_settled(self) -> bool:
        """No case is open: this data peer has nothing against the commit of what its group has averaged."""
        return not self._drawing and not self._cases

    def forget(self) -> None:
        """Another iteration."""
        for case in self._cases.values():
            self.ctx.cancel_timer(Timer.AUDIT, case.name)
        self._drawing.clear()
        self._cases.clear()

    # ---- drawing

    def back(self, held: Held) -> None:
        """A microbatch is back: which of its hops are done again?"""
        if self.ctx.audit.share <= 0:
            return
        name = f"draw {held.id}"
        self._drawing[name] = (held.id, held.done_by)
        self.ctx.emit(Sign(name, draw_text(self.ctx.epoch, held.id)))

    def signed(self, name: str, signature: str) -> None:
        """The draw is made."""
        ctx = self.ctx
        drawn = self._drawing.pop(name, None)
        if drawn is None:
            return
        microbatch, done_by = drawn
        path = (ctx.me, *done_by, ctx.me)
        for k in range(1, len(path) - 1):
            if is_drawn(signature, Stage(k), ctx.audit.share):
                before, worker, after = path[k - 1 : k + 2]
                hop = Hop(microbatch, Stage(k), worker, before, after, ctx.epoch)
                case = self._cases[microbatch, k] = Case(hop, signature, since=ctx.now)
                gone = self._gone(hop)
                if gone is not None:
                    self._close(case, "audit_failed", reason=f"{gone} is lost")  # or left out since it has done this
                elif self._others(case):
                    self._ask_worker(case)
                else:
                    self._close(case, "audit_failed", reason="nobody else holds the stage")

    def _gone(self, hop: Hop) -> PeerId | None:
        """Whose word about this hop will not come, or would not be heard."""
        ctx = self.ctx
        peers = (hop.worker, hop.before, hop.after)
        return next((p for p in peers if ctx.liveness.is_lost(p) or ctx.bars.is_barred(p, ctx.now)), None)

    def _others(self, case: Case) -> list[PeerId]:
        """Who can be asked, in the drawn order."""
        ctx, hop, view = self.ctx, case.hop, self.ctx.view
        able = view.peers_of_stage(hop.stage) if view is not None else ()
        out = {hop.worker, *case.asked, *ctx.liveness.excluded}
        return in_order(case.proof, hop.stage, [peer for peer in able if peer not in out])

    # ---- the worker's word

    def _ask_worker(self, case: Case) -> None:
        case.asked_at = self.ctx.now
        self.ctx.emit(Send(case.hop.worker, Testify(case.hop, case.proof)))
        self._wait(case)

    def testified(self, sender: PeerId, testimony: Testimony) -> None:
        """From the worker."""
        case = self._case_of(testimony.hop)
        if case is None or case.testimony is not None or sender != case.hop.worker or not is_testified(self.ctx, testimony):
            return
        case.testimony, case.tries = testimony, 0
        self._ask_auditor(case)

    def missing(self, sender: PeerId, microbatches: Iterable[MicrobatchId]) -> None:
        """A worker says that it does not have what it is credited with: it is done again in any case."""
        evaded = [c for c in self._cases.values() if c.hop.worker == sender and c.hop.microbatch in {*microbatches}]
        for case in evaded:
            self._close(case, "audit_failed", reason="the worker does not have it any more")
        self._evasions[sender] += len(evaded)
        if self._evasions[sender] > MOST_EVASIONS:
            del self._evasions[sender]
            self.on_silent(sender, "it never has what is looked at")

    # ---- the auditors'

    def _ask_auditor(self, case: Case) -> None:
        others = self._others(case)
        if not others or case.tries >= MOST_TRIES:
            reason = "nobody else can do it" if not others else "nobody has done it"
            self._close(case, "audit_undecided" if case.findings or case.disputed else "audit_failed", reason=reason)
            return
        assert case.testimony is not None, "it has been asked for first"
        case.tries += 1
        case.auditor = others[0]
        case.asked.append(others[0])
        self.ctx.emit(Send(others[0], AuditOrder(case.hop, case.proof, case.testimony)))
        self._wait(case)

    def result(self, sender: PeerId, result: AuditResult) -> None:
        """From an auditor."""
        ctx, case = self.ctx, self._case_of(result.hop)
        if case is None or sender != case.auditor:
            return
        case.auditor, finding = None, result.finding
        if finding is not None:
            if finding.auditor == sender and finding.testimony == case.testimony and is_found(ctx, finding):
                self._found(case, finding)
                return
        elif result.disputed in (case.hop.before, case.hop.after):
            assert result.disputed is not None
            case.disputed.append(result.disputed)
            if case.disputed.count(result.disputed) > 1:
                self._close(case, "audit_disputed", neighbour=result.disputed)
                self._dispute(case.hop.worker, result.disputed)
                return
        ctx.report("audit_not_done", **_named(case), auditor=sender, reason=result.reason)
        self._ask_auditor(case)

    def _found(self, case: Case, finding: Finding) -> None:
        ctx = self.ctx
        ctx.timings.observe(("audit",), ctx.now - case.since)
        case.findings.append(finding)
        case.tries = 0
        if len(case.findings) == 1:
            if finding.agrees:
                self.on_passed(Stage(case.hop.stage), case.hop.worker)
                self._close(case, "audit_passed", **_found_by(finding))
                return
            ctx.report("audit_differs", **_named(case), **_found_by(finding))
            self._ask_auditor(case)
            return
        first, second = case.findings
        lost = loser(first, second)
        self._close(case, "audit_decided", loser=lost or "", auditors=[first.auditor, second.auditor])
        if lost is not None:
            if lost != case.hop.worker:
                self.on_passed(Stage(case.hop.stage), case.hop.worker)
            self.convictions.spread(Conviction(case.proof, first, second))

    def _dispute(self, worker: PeerId, neighbour: PeerId) -> None:
        """Word against word, as two auditors have found. What this peer has sent itself, it knows."""
        if neighbour == self.ctx.me:
            self.on_silent(worker, "it says to have had what this peer has not sent")
            return
        for one, other in ((worker, neighbour), (neighbour, worker)):
            if len(self._disputes) >= MOST_DISPUTES:
                self._disputes.pop(next(iter(self._disputes)))
            others = self._disputes.setdefault(one, set())
            others.add(other)
            if len(others) > 1:
                del self._disputes[one]
                for left in self._disputes.values():
                    left.discard(one)
                self.on_silent(one, f"it has disputes with {' and '.join(sorted(others))}")

    # ---- waiting

    def late(self, name: str) -> None:
        """A testimony or a finding has not come in time."""
        case = next((case for case in self._cases.values() if case.name == name), None)
        if case is None:
            return
        if case.testimony is not None:
            if case.auditor is not None:
                self.ctx.suspect(case.auditor, "an audit is late")
                case.auditor = None
            self._ask_auditor(case)
            return
        ctx, worker, gone = self.ctx, case.hop.worker, self._gone(case.hop)
        if gone is not None:
            self._close(case, "audit_failed", reason=f"{gone} is lost")
            return
        # One that has said nothing at all may be frozen, or cut off: then it will be lost, and that is nothing to blame it for.
        case.tries += ctx.liveness.silent_s(worker, ctx.now) < ctx.now - case.asked_at
        if case.tries < MOST_TRIES:
            ctx.suspect(worker, "a testimony is late")
            self._ask_worker(case)
            return
        self._close(case, "audit_failed", reason="the worker does not testify")
        self.on_silent(worker, "it does not testify to its work")

    def peer_lost(self, peer: PeerId) -> None:
        """What it was to do, another one does; of its own work, nothing is left to be looked at."""
        self._evasions.pop(peer, None)
        self.convictions.forget(peer)
        for case in list(self._cases.values()):
            if peer in (case.hop.worker, case.hop.before, case.hop.after):
                self._close(case, "audit_failed", reason=f"{peer} is lost")
            elif case.auditor == peer:
                case.auditor = None
                self._ask_auditor(case)

    def _wait(self, case: Case) -> None:
        deadline_s = max(self.ctx.timings.deadline_s(("audit",), ANSWER_PRIOR_S), LEAST_ANSWER_S)
        self.ctx.start_timer(Timer.AUDIT, case.name, deadline_s)

    def _case_of(self, hop: Hop) -> Case | None:
        case = self._cases.get((hop.microbatch, hop.stage))
        return case if case is not None and case.hop == hop else None

    def _close(self, case: Case, report: str, **fields: object) -> None:
        ctx, hop = self.ctx, case.hop
        ctx.cancel_timer(Timer.AUDIT, case.name)
        self._cases.pop((hop.microbatch, hop.stage), None)
        ctx.report(report, **_named(case), seconds=ctx.now - case.since, **fields)


def _named(case: Case) -> dict[str, object]:
    hop = case.hop
    return {"microbatch": str(hop.microbatch), "stage": hop.stage, "worker": hop.worker}


def _found_by(finding: Finding) -> dict[str, object]:
    return {"auditor": finding.auditor, "output": finding.output, "gradient": finding.gradient}
