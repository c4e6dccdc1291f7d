"""`optimal`: the best plan that can be found, whatever it takes; in the simulator and `gwtf plan` only, as the bound.

One data peer: the exact optimum. Several: the optimum where the linear relaxation is integral or its bound is met (the reason
says so), otherwise the best plan found and the bound that no plan beats.
"""

from __future__ import annotations

from gwtf_p2p.protocol.flow.multi_commodity import THOROUGH
from gwtf_p2p.protocol.flow.plan_keeper import Plan, plan_problem
from gwtf_p2p.protocol.flow.problem import Problem
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.routers.gwtf import GwtfRouter


def optimal_plan(problem: Problem) -> tuple[Plan, str]:
    """With `THOROUGH` effort."""
    return plan_problem(problem, THOROUGH)


def optimal_router(me: PeerId) -> GwtfRouter:
    """`gwtf --cost paper` with `THOROUGH` effort, for the simulator: there planning takes no virtual time."""
    return GwtfRouter(me, THOROUGH)
