"""Thousands of seeds of random faults on a small swarm, in virtual time: is anything lost, counted twice, or stuck?

    python -m experiments.recovery_sweep --seeds 0-9999 --stages 6 --stage_peers 3 --churn 0.1 0.2 0.3

Every run draws a script of faults from its seed: stage peers are killed, frozen, restarted, blink, drain or become slow, data
peers are restarted or blink. `--churn` is the expected number of faults per stage peer and iteration (half of it for data
peers). At least one stage peer of a stage comes back in the end, so a run must always come to its end. Single faults at every
moment of an iteration are the business of `recovery_single`. With `--delay_optimizer_step` two iterations are under way. With
`--partitions` the network is parted so many times besides, into sides that are drawn (a third of the times a peer alone): both
live, and train on where they can.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gwtf_p2p.cli.verbs.sim import parse_seeds
from gwtf_p2p.protocol.averages.rows import MOST_ALL_WITH_ALL
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.invariants import InvariantError
from gwtf_p2p.simulation.world.small_swarm import (
    BACKWARD_S,
    FORWARD_S,
    SmallConfig,
    SmallSwarm,
    StuckError,
    small_swarm,
)

STARTS_AT_S = 1.0
"""Before this, nobody sees anybody's record."""

STAGE_PEER_FAULTS = ("kill", "restart", "restart", "freeze", "blink", "blink", "slow", "drain")
DATA_FAULTS = ("restart", "blink", "blink")
DRAWN = tuple(dict.fromkeys((*STAGE_PEER_FAULTS, *DATA_FAULTS)))
"""The kinds that are drawn for peers; partitions are drawn for themselves."""

FOR_GOOD = frozenset({"kill", "freeze", "drain"})
"""From these a stage peer does not come back, so one of each stage is spared them."""

HOP_S = 0.2
"""About what a microbatch spends at one stage, both passes."""

DEADLINE_S = 3_000.0
MOST_STEPS = 1_500_000


@dataclass(frozen=True, slots=True)
class Sweep:
    """What all runs have in common. `churn`, `microbatches`: the seed decides which one of these. `slowness`: how many times
    slower a stage peer becomes. `ahead` 1: optimizer steps are delayed."""

    stages: int = 6
    stage_peers: int = 3
    iterations: int = 4
    churn: tuple[float, ...] = (0.1, 0.2, 0.3)
    kinds: tuple[str, ...] = DRAWN
    microbatches: tuple[int, ...] = (2, 4, 6)
    slowness: float = 5.0
    ahead: int = 0
    all_with_all: int = MOST_ALL_WITH_ALL
    state_microbatches: int = 12
    partitions: int = 0
    plans: bool = False


def draw_config(seed: int, sweep: Sweep) -> SmallConfig:
    random = Random(f"config {seed}")
    return SmallConfig(
        stages=sweep.stages,
        stage_peers=sweep.stage_peers,
        data_peers=random.choice((1, 1, 2, 3)),
        microbatches=random.choice(sweep.microbatches),
        capacity=random.choice((1, 2, 4)),
        exact=random.random() < 0.8,
        speeds=random.choice(((1.0,), (1.0, 1.5, 3.0))),
        ahead=sweep.ahead,
        all_with_all=sweep.all_with_all,
        state_microbatches=sweep.state_microbatches,
        plans=sweep.plans,
        seed=seed,
    )


def draw_script(seed: int, config: SmallConfig, sweep: Sweep) -> list[Fault]:
    """Faults over the time that the iterations take without any."""
    random = Random(f"script {seed}")
    churn = sweep.churn[seed % len(sweep.churn)]
    horizon_s = _horizon_s(config, sweep)
    stage_peer_kinds = [kind for kind in STAGE_PEER_FAULTS if kind in sweep.kinds]
    data_kinds = [kind for kind in DATA_FAULTS if kind in sweep.kinds]
    script = []
    for k in range(1, config.stages + 1):
        left = config.stage_peers - 1
        for r in range(config.stage_peers):
            slow = False
            for _ in range(sweep.iterations):
                if random.random() >= churn or not stage_peer_kinds:
                    continue
                kind = random.choice(stage_peer_kinds)
                if (kind in FOR_GOOD and not left) or (kind == "slow" and slow):
                    kind = "restart" if "restart" in stage_peer_kinds else "blink"
                left -= kind in FOR_GOOD
                slow |= kind == "slow"
                script.append(_fault(random, kind, PeerId(f"relay_{k}_{r}"), horizon_s, sweep.slowness))
    for d in range(config.data_peers):
        for _ in range(sweep.iterations):
            if random.random() < churn / 2 and data_kinds:
                script.append(_fault(random, random.choice(data_kinds), PeerId(f"data_{d}"), horizon_s, 1.0))
    return script + _partitions(seed, config, sweep)


def _horizon_s(config: SmallConfig, sweep: Sweep) -> float:
    slowness = sum(config.speeds) / len(config.speeds)
    bottleneck_s = config.data_peers * config.microbatches / config.stage_peers * (FORWARD_S + BACKWARD_S) * slowness
    return STARTS_AT_S + sweep.iterations * (bottleneck_s + 2 * config.stages * HOP_S)


def _partitions(seed: int, config: SmallConfig, sweep: Sweep) -> list[Fault]:
    random = Random(f"partitions {seed}")
    peers = [PeerId(f"data_{d}") for d in range(config.data_peers)]
    peers += [PeerId(f"relay_{k}_{r}") for k in range(1, config.stages + 1) for r in range(config.stage_peers)]
    found, at_s = list[Fault](), random.uniform(STARTS_AT_S, _horizon_s(config, sweep))
    for _ in range(sweep.partitions):
        share, for_s = random.choice((0.0, 0.2, 0.5)), random.choice((1.0, 3.0, 10.0, 30.0)) * random.uniform(0.5, 1.5)
        first, *rest = random.sample(peers, len(peers))
        side = tuple(peer for peer in rest if random.random() < share)
        found.append(Fault("part", first, at_s, for_s=for_s, others=side))
        at_s += for_s + random.uniform(1.0, 8.0)
    return found


def _fault(random: Random, kind: str, peer: PeerId, horizon_s: float, factor: float) -> Fault:
    at_s = random.uniform(STARTS_AT_S, horizon_s)
    for_s = random.choice((0.05, 0.3, 1.0, 3.0, 8.0)) * random.uniform(0.5, 1.5)
    return Fault(kind, peer, at_s, for_s=for_s, factor=factor, fresh=random.random() < 0.3 and peer.startswith("relay"))


def attempt(swarm: SmallSwarm, iterations: int) -> tuple[str, str]:
    """(done, broken, stuck or crashed), and why."""
    try:
        swarm.run(iterations, DEADLINE_S, MOST_STEPS)
    except InvariantError as error:
        return "broken", str(error)
    except StuckError as error:
        return "stuck", str(error).splitlines()[0]
    except Exception as error:  # noqa: BLE001 (a crash of the machines is what this looks for)
        return "crashed", f"{type(error).__name__}: {error}"
    return "done", ""


def runs(seeds: Sequence[int], sweep: Sweep) -> Iterator[tuple[str, SmallSwarm]]:
    """(name, swarm) of every run."""
    for seed in seeds:
        config = draw_config(seed, sweep)
        yield f"seed {seed}", small_swarm(config, draw_script(seed, config, sweep))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0-99", metavar="A-B", help="a number, a range or a comma list")
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--stage_peers", "--relays", type=int, default=3, help="per stage")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--churn", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--kinds", nargs="+", default=list(DRAWN), choices=DRAWN)
    parser.add_argument("--delay_optimizer_step", action="store_true", help="the next iteration is computed meanwhile")
    parser.add_argument("--all_with_all", type=int, default=MOST_ALL_WITH_ALL, help="of more peers a stage averages in rows")
    parser.add_argument("--state_microbatches", type=int, default=12, help="a download takes as long as so many transfers")
    parser.add_argument("--partitions", type=int, default=0, help="of the network, beside the other faults")
    parser.add_argument("--plans", action="store_true", help="routes are planned: what waits is handed over to newcomers")
    parser.add_argument("--story", type=Path, help="file for the story of the first run that fails")
    arguments = parser.parse_args()
    try:
        seeds = parse_seeds(arguments.seeds)
    except InputError as error:
        parser.error(str(error))
    if arguments.partitions < 0:
        parser.error(f"--partitions: expected 0 or more, got {arguments.partitions}")
    of, churn, kinds = (arguments.stages, arguments.stage_peers, arguments.iterations), arguments.churn, arguments.kinds
    ahead, most = int(arguments.delay_optimizer_step), arguments.all_with_all
    state = arguments.state_microbatches
    also = {"ahead": ahead, "all_with_all": most, "state_microbatches": state, "partitions": arguments.partitions}
    sweep = Sweep(*of, tuple(churn), tuple(kinds), **also, plans=arguments.plans)
    began = time.perf_counter()
    ends: Counter[str] = Counter()
    tally: Counter[str] = Counter()
    for name, swarm in runs(seeds, sweep):
        end, why = attempt(swarm, sweep.iterations)
        ends[end] += 1
        tally["faults"] += len(swarm.faults.fired)
        tally["recoveries"] += sum(swarm.count("recovery").values())
        tally["gone_back"] += len(swarm.reported("going_back"))
        tally["served_before_moments"] += len(swarm.reported("serves_before_moments"))
        if end == "done":
            outcome = swarm.invariants.check()
            tally["microbatches"] += outcome.done
            tally["double"] += outcome.double
            tally["lost" if swarm.config.exact else "dropped_fast"] += outcome.lost
            continue
        print(f"{name}: {end}: {why[:300]}", file=sys.stderr, flush=True)
        if arguments.story and sum(ends.values()) - ends["done"] == 1:
            arguments.story.write_text(f"{name} {end} {why}\n{swarm.story(400)}", encoding="utf-8")
    print(json.dumps({**ends, **tally, "seconds": round(time.perf_counter() - began, 1)}))
    return 0 if set(ends) == {"done"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
