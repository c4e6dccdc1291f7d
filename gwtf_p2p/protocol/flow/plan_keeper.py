"""Plans: what a planner makes of a problem, in ids instead of indices, and the keeper that changes them no more than it must.

A plan is a set of flows for all data peers together; each data peer uses its own share. `Planner` follows a problem that
changes with every record. It keeps a plan while it is within `WORTH_CHANGING` of what planning anew would bring, repairs it
when some of its flows have become impossible (the others stay), and plans anew only when repair is clearly dearer or carries
fewer flows. So small changes of measured times move nothing, and peers that saw the same views hold the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gwtf_p2p.protocol.errors import LocalProtocolError
from gwtf_p2p.protocol.flow.column_generation import lower_bound_us
from gwtf_p2p.protocol.flow.local_search import costs_of, in_order, spare_of
from gwtf_p2p.protocol.flow.min_cost import FAR, IntArray
from gwtf_p2p.protocol.flow.multi_commodity import Effort, JointFlows, JointStatus, solve_joint
from gwtf_p2p.protocol.flow.problem import DataPeer, Problem, StagePeer
from gwtf_p2p.protocol.ids import PeerId

WORTH_CHANGING = 0.03
"""A plan is replaced when that saves more than this part of its cost: below lies the noise of measured times."""


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """A route that carries one microbatch at a time: `stage_peers[k - 1]` is its peer of stage k."""

    data_peer: PeerId
    stage_peers: tuple[PeerId, ...]
    cost_us: int

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Data peer, stage peers, and the data peer again."""
        return (self.data_peer, *self.stage_peers, self.data_peer)


@dataclass(frozen=True, slots=True)
class Plan:
    """Flows sorted by data peer and stage peers. `lower_bound_us`: no plan with as many flows costs less; None when unknown."""

    flows: tuple[Flow, ...]
    lower_bound_us: int | None = None

    @property
    def total_cost_us(self) -> int:
        return sum(flow.cost_us for flow in self.flows)

    @property
    def max_cost_us(self) -> int:
        return max((flow.cost_us for flow in self.flows), default=0)

    def share_of(self, data_peer: PeerId) -> tuple[Flow, ...]:
        """The flows of one data peer, cheapest first."""
        return tuple(sorted((f for f in self.flows if f.data_peer == data_peer), key=lambda f: (f.cost_us, f.stage_peers)))


def plan_problem(problem: Problem, effort: Effort | None = None) -> tuple[Plan, str]:
    """The most flows, then the cheapest; the reason says how good that is and what bounds it."""
    joint = solve_joint(problem, effort)
    return plan_of(problem, joint.flows, joint.lower_bound_us), reason_for(problem, joint)


def plan_of(problem: Problem, flows_FL: IntArray, lower_bound: int | None) -> Plan:
    """Indices to ids."""
    costs = costs_of(problem, flows_FL)
    flows = [
        Flow(problem.layers[0][row[0]], tuple(problem.layers[k + 1][i] for k, i in enumerate(row[1:-1])), int(cost))
        for row, cost in zip(flows_FL.tolist(), costs, strict=True)
    ]
    return Plan(tuple(sorted(flows)), lower_bound)


def reason_for(problem: Problem, joint: JointFlows) -> str:
    """One line for people: counts, quality, and what keeps further flows out."""
    count, wanted = len(joint.flows), problem.demand
    text = f"{count} of {wanted} flows wanted"
    if count < wanted:
        text += f", {_bottleneck(problem)}" if count == joint.most_flows else f", at most {joint.most_flows} are possible"
    if joint.status is JointStatus.EMPTY:
        return text
    if joint.status is JointStatus.OPTIMAL:
        return f"{text}; cost {joint.cost_us} is the least possible"
    gap = joint.cost_us / max(1, joint.lower_bound_us) - 1
    return f"{text}; cost {joint.cost_us} is within {gap:.2%} of the lower bound"


def _bottleneck(problem: Problem) -> str:
    capacity, stage = min((int(c.sum()), k) for k, c in enumerate(problem.capacities[1:-1], start=1))
    if capacity < problem.demand:
        return f"stage {stage} has capacity for {capacity}"
    return "links between the stages are missing"


def check_plan(problem: Problem, plan: Plan) -> None:
    """Raises LocalProtocolError when a plan breaks a demand, a capacity, a link or its own arithmetic."""
    known = [flow for flow in plan.flows if _indices(problem, flow) is None]
    if known:
        raise LocalProtocolError(f"plan with unknown peers or missing links: {known[0].peers}")
    flows = flows_of(problem, plan)
    used = np.bincount(flows[:, 0], minlength=len(problem.data_peers))
    if (used > problem.capacities[0]).any():
        raise LocalProtocolError("plan with more flows than a data peer wants", [str(f.peers) for f in plan.flows])
    if any((spare < 0).any() for spare in spare_of(problem, flows)):
        raise LocalProtocolError("plan over a stage peer's capacity", [str(f.peers) for f in plan.flows])
    if [f.cost_us for f in plan.flows] != costs_of(problem, flows).tolist():
        raise LocalProtocolError("plan with wrong costs", [str(f.peers) for f in plan.flows])


def flows_of(problem: Problem, plan: Plan) -> IntArray:
    """Ids to indices; flows that the problem does not allow (unknown peer, missing link) are left out."""
    rows = [row for flow in plan.flows if (row := _indices(problem, flow)) is not None]
    return np.array(rows, dtype=np.int64).reshape(-1, problem.stages + 2)


def _indices(problem: Problem, flow: Flow) -> tuple[int, ...] | None:
    places = [problem.position.get(peer) for peer in flow.peers]
    row: list[int] = []
    for layer, place in enumerate(places):
        if place is None or place[0] != layer % (problem.stages + 1):
            return None
        row.append(place[1])
    return tuple(row) if len(row) == problem.stages + 2 and problem.path_cost_us(tuple(row)) < FAR else None


def with_fair_demands(problem: Problem) -> Problem:
    """Demands cut in proportion where the stage peers cannot carry them all."""
    room = min(int(c.sum()) for c in problem.capacities[1:-1])
    share = fair_shares(room, [d.demand for d in problem.data_peers])
    data = tuple(DataPeer(d.peer, s) for d, s in zip(problem.data_peers, share, strict=True))
    return problem if data == problem.data_peers else replace(problem, data_peers=data)


def fair_shares(room: int, wanted: list[int]) -> list[int]:
    """`wanted`, one number per data peer, cut in proportion where there is less room than that.

    The most flows at the least cost may leave one data peer without any, and an iteration ends only when every data peer's
    microbatches are back. Largest remainders, ties by place; nobody gets 0 while there are as many flows as data peers."""
    if room >= sum(wanted):
        return wanted
    share = [min(1, d) for d in wanted] if room >= sum(min(1, d) for d in wanted) else [0] * len(wanted)
    left, total = room - sum(share), sum(wanted) - sum(share)
    exact = [(w - s) * left / total for w, s in zip(wanted, share, strict=True)]
    share = [s + int(x) for s, x in zip(share, exact, strict=True)]
    by_remainder = sorted(range(len(wanted)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder[: room - sum(share)]:
        share[i] += 1
    return share


class Planner:
    """Follows a changing problem; see the module docstring. `flows_changed` counts flows that came or went after the first
    plan, `plans_made` how often the solver ran."""

    def __init__(self, effort: Effort | None = None) -> None:
        self._effort = effort
        self._problem: Problem | None = None
        self._joint: JointFlows | None = None
        self.plan = Plan(())
        self.reason = "no view yet"
        self.plans_made = 0
        self.flows_changed = 0

    def update(self, problem: Problem) -> tuple[Plan, str]:
        """The plan for `problem`, as close to the plan so far as is reasonable."""
        before, joint = self._problem, self._joint
        if before is None or joint is None:
            return self._adopt(problem, self._solve(problem), "first plan")
        if _same(before, problem):
            return self.plan, self.reason
        kept = _still_possible(problem, flows_of(problem, self.plan))
        if len(kept) == len(self.plan.flows) and self._is_good_enough(before, joint, problem, kept):
            bound = lower_bound_us(problem, joint.prices, len(kept))
            self._problem, self.plan = problem, plan_of(problem, kept, bound if bound < FAR else None)
            return self.plan, self.reason
        fresh, repaired = self._solve(problem), self._repair(problem, kept)
        cost, count = int(costs_of(problem, repaired).sum()), len(repaired)
        if count == len(fresh.flows) and cost <= fresh.cost_us * (1 + WORTH_CHANGING):
            status = fresh.status if cost == fresh.cost_us else JointStatus.BOUNDED
            bound = min(cost, fresh.lower_bound_us)
            mended = replace(fresh, flows=repaired, cost_us=cost, lower_bound_us=bound, status=status)
            return self._adopt(problem, mended, "repaired" if len(kept) < len(self.plan.flows) else "kept")
        return self._adopt(problem, fresh, "planned anew")

    def _is_good_enough(self, before: Problem, joint: JointFlows, problem: Problem, kept: IntArray) -> bool:
        """Only costs changed, and the last plan's prices still prove that little can be gained: no need to solve."""
        if before.layers != problem.layers or not _same_capacities(before, problem):
            return False
        bound = lower_bound_us(problem, joint.prices, len(kept))
        return bound < FAR and int(costs_of(problem, kept).sum()) <= bound * (1 + WORTH_CHANGING)

    def _solve(self, problem: Problem) -> JointFlows:
        self.plans_made += 1
        return solve_joint(problem, self._effort)

    def _repair(self, problem: Problem, kept: IntArray) -> IntArray:
        """The kept flows and the best flows for what they leave."""
        used = np.bincount(kept[:, 0], minlength=len(problem.data_peers))
        data = tuple(DataPeer(d.peer, d.demand - int(u)) for d, u in zip(problem.data_peers, used, strict=True))
        stage_peers = tuple(
            tuple(StagePeer(stage_peer.peer, int(spare)) for stage_peer, spare in zip(stage, left, strict=True))
            for stage, left in zip(problem.stage_peers, spare_of(problem, kept), strict=True)
        )
        rest = self._solve(Problem(problem.name, data, stage_peers, problem.costs_us))
        return in_order(np.concatenate([kept, rest.flows]))

    def _adopt(self, problem: Problem, joint: JointFlows, how: str) -> tuple[Plan, str]:
        plan = plan_of(problem, joint.flows, joint.lower_bound_us)
        routes = [{(f.data_peer, f.stage_peers) for f in p.flows} for p in (self.plan, plan)]
        changed = len(routes[0] ^ routes[1]) if self._problem is not None else 0
        self.flows_changed += changed
        self._problem, self._joint, self.plan = problem, joint, plan
        self.reason = f"{how}: {reason_for(problem, joint)}"
        if changed:
            self.reason += f"; {changed} flows came or went"
        return plan, self.reason


def _same(one: Problem, other: Problem) -> bool:
    return one.layers == other.layers and _same_capacities(one, other) and _equal(one.costs_us, other.costs_us)


def _same_capacities(one: Problem, other: Problem) -> bool:
    return _equal(one.capacities, other.capacities)


def _equal(one: tuple[IntArray, ...], other: tuple[IntArray, ...]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _still_possible(problem: Problem, flows_FL: IntArray) -> IntArray:
    """The flows that fit demands and capacities, in order."""
    left = [c.copy() for c in problem.capacities[:-1]]
    rows: list[list[int]] = []
    for row in flows_FL.tolist():
        if all(left[k][i] > 0 for k, i in enumerate(row[:-1])):
            rows.append(row)
            for k, i in enumerate(row[:-1]):
                left[k][i] -= 1
    return np.array(rows, dtype=np.int64).reshape(-1, problem.stages + 2)
