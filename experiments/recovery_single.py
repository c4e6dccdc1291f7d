"""Every peer of a small swarm fails once, at each event and each effect of an iteration: is the gradient the same?

    python -m experiments.recovery_single --stages 3 --stage_peers 2

After a stage peer's fault, with exact recovery, all gradients are those of the run without faults, counted by microbatch id in
every stage; with fast recovery a microbatch may be missing in stages, never counted twice. With two data peers, one of which
fails, its microbatches of an iteration are in the gradients of all stages or of none. All invariants (`simulation.invariants`)
hold at every event. Then the network is cut in two, and whole again at moments of an attempt that one side has opened alone:
all have the same weights in the end. With `--delay_optimizer_step` microbatches of two iterations are under way. One JSON line
per case; the exit code is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import InvariantError
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, SmallSwarm, StuckError, every_moment, small_swarm

ITERATION = 1
"""In which the fault happens; the one before fills the timings, and others follow."""

ITERATIONS = 3
FOR_S = 5.0
"""After which a peer is back: later than it is found to be lost."""

Gradients = list[dict[Stage, Counter[MicrobatchId]]]


@dataclass(frozen=True, slots=True)
class Case:
    """`of`: the fault comes before each "event" or each "effect" of a peer whose name begins with `peers`."""

    kind: str
    peers: str = "stage"
    of: str = "event"
    exact: bool = True

    def config(self, base: SmallConfig) -> SmallConfig:
        return replace(base, data_peers=2 if self.peers == "data" else 1, exact=self.exact)


CASES = (
    *(Case(kind) for kind in ("kill", "freeze", "restart", "blink", "drain")),
    *(Case("kill", of="effect"), Case("restart", of="effect")),
    *(Case(kind, exact=False) for kind in ("kill", "freeze")),
    *(Case(kind, "data") for kind in ("kill", "freeze", "restart", "blink")),
    *(Case(kind, "data", "effect") for kind in ("kill", "restart")),
)


def faults_of(case: Case, base: SmallConfig) -> list[Fault]:
    """One fault for each moment."""
    moments = every_moment(case.config(base), ITERATION, case.peers, case.of)
    return [
        Fault(case.kind, peer, for_s=FOR_S, **{f"at_{case.of}": (ITERATION, n)})  # type: ignore[arg-type]
        for peer, count in sorted(moments.items())
        for n in range(1, count + 1)
    ]


def gradients_without_faults(config: SmallConfig) -> Gradients:
    swarm = small_swarm(config)
    swarm.run(ITERATIONS)
    return [swarm.invariants.committed(i) for i in range(ITERATIONS)]


def failure(case: Case, config: SmallConfig, fault: Fault, wanted: Gradients) -> str:
    """What is wrong after this fault; empty if nothing is."""
    swarm = small_swarm(config, [fault])
    try:
        tally = swarm.run(ITERATIONS, deadline_s=300.0, most_steps=200_000)
    except InvariantError as error:
        return f"broken: {error}"
    except StuckError as error:
        return str(error).splitlines()[0]
    if [fired for _, fired in swarm.faults.fired] != [fault]:
        return "the fault did not fire"
    if tally.double or (tally.lost and case.exact):
        return f"{tally.lost} lost, {tally.double} counted twice"
    one_way = case.peers == "stage" and case.exact
    if one_way and [swarm.invariants.committed(i) for i in range(ITERATIONS)] != wanted:
        return "another gradient than without the fault"
    if not one_way and tally.done + tally.lost < ITERATIONS * config.microbatches:
        return f"only {tally.done} microbatches done"
    return ""


def failures(case: Case, base: SmallConfig, faults: Sequence[Fault]) -> list[str]:
    config = case.config(base)
    wanted = gradients_without_faults(config)
    found = [(fault, failure(case, config, fault, wanted)) for fault in faults]
    return [f"{fault}: {what}" for fault, what in found if what]


# ---- the network is cut in two


@dataclass(frozen=True)
class Cut:
    """Of so many `peers` in each of so many `stages`, `away` are cut off, and the second data peer where there are two."""

    stages: int
    peers: int
    data_peers: int
    away: int

    def __str__(self) -> str:
        return f"{self.away} of {self.peers} in {self.stages} stages, {self.data_peers} data peers"

    def config(self, ahead: int) -> SmallConfig:
        return SmallConfig(self.stages, self.peers, self.data_peers, ahead=ahead)

    @property
    def side(self) -> frozenset[PeerId]:
        there = {f"relay_{k}_{r}" for k in range(1, self.stages + 1) for r in range(self.peers - self.away, self.peers)}
        return frozenset(map(PeerId, there | ({"data_1"} if self.data_peers > 1 else set())))


CUTS = (
    *(Cut(2, 4, 1, 3), Cut(3, 4, 1, 3), Cut(2, 4, 2, 3), Cut(2, 5, 2, 3)),
    *(Cut(3, 3, 2, 2), Cut(3, 3, 1, 2), Cut(3, 4, 1, 2), Cut(1, 5, 1, 4)),
)
CUT_AT_S = 1.5
WHOLE_AFTER_S = (0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3)
"""After an attempt has been opened: while it is prepared, committed, or applied here and there."""

ATTEMPTS = (1, 2)
MOMENTS = tuple(product(ATTEMPTS, WHOLE_AFTER_S))


def reunited(cut: Cut, attempt: int, after_s: float, ahead: int = 0) -> SmallSwarm:
    """Cut in two, and whole again so long after the first data peer has opened that attempt without the others."""
    swarm = small_swarm(cut.config(ahead))
    world, kernel = swarm.world, swarm.world.kernel
    leading, opened = world.peers[PeerId("data_0")].machine, list[object]()
    assert isinstance(leading, DataPeer)
    kernel.run(lambda: kernel.now > CUT_AT_S, 10.0)
    world.partition(cut.side)

    def is_open() -> bool:
        under_way = leading.coordinator.under_way.attempt
        if under_way is not None and under_way not in opened and not cut.side & under_way.participants.keys():
            opened.append(under_way)
        return len(opened) >= attempt

    assert kernel.run(is_open, 100.0), "it opens an attempt without the others"
    at_s = kernel.now + after_s
    kernel.run(lambda: kernel.now >= at_s, at_s + 10.0)
    world.reunite()
    return swarm


def reunion_failure(swarm: SmallSwarm) -> str:
    """What is wrong some iterations after the network is whole again; empty if nothing is."""
    try:
        tally = swarm.run(2 * ITERATIONS, deadline_s=swarm.world.kernel.now + 300.0, most_steps=600_000)
    except InvariantError as error:
        return f"broken: {error}"
    except StuckError as error:
        return str(error).splitlines()[0]
    if tally.double or tally.lost:
        return f"{tally.lost} lost, {tally.double} counted twice"
    return ""


def _tell(line: Mapping[str, object], moments: int, wrong: Sequence[str], began: float) -> None:
    for text in wrong:
        print(text, file=sys.stderr)
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({**line, "moments": moments, "failed": len(wrong), "seconds": seconds}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--stage_peers", "--relays", type=int, default=2, help="per stage")
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--delay_optimizer_step", action="store_true", help="the next iteration is computed meanwhile")
    flags = parser.parse_args()
    sizes = {"stages": flags.stages, "stage_peers": flags.stage_peers, "microbatches": flags.microbatches}
    base = SmallConfig(**sizes, ahead=int(flags.delay_optimizer_step))
    failed = 0
    for case in CASES:
        began, faults = time.perf_counter(), faults_of(case, base)
        wrong = failures(case, base, faults)
        failed += len(wrong)
        line = {"kind": case.kind, "peers": case.peers, "of": case.of, "recovery": "exact" if case.exact else "fast"}
        _tell(line, len(faults), wrong, began)
    for cut in CUTS:
        began = time.perf_counter()
        found = [(moment, reunion_failure(reunited(cut, *moment, base.ahead))) for moment in MOMENTS]
        wrong = [f"{cut}, attempt {attempt} {after_s} s: {what}" for (attempt, after_s), what in found if what]
        failed += len(wrong)
        _tell({"kind": "part", "peers": str(cut), "of": "attempt", "recovery": "exact"}, len(found), wrong, began)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
