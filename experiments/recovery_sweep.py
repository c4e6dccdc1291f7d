"""Thousands of seeds of random faults on a small swarm, in virtual time: is anything lost, counted twice, or stuck?

    python -m experiments.recovery_sweep --seeds 0-9999 --stages 6 --relays 3 --churn 0.1 0.2 0.3

Every run draws a script of faults from its seed: relays are killed, frozen, restarted, blink, drain or become slow, data
peers are restarted or blink. `--churn` is the expected number of faults per relay and iteration. Whoever is killed comes back
after a while (unless enough others of its stage stay), so a run must always come to its end. Broken invariants raise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from random import Random

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.faults import Fault
from gwtf_p2p.simulation.invariants import InvariantError
from gwtf_p2p.simulation.small import SmallConfig, SmallSwarm, StuckError, small_swarm

STARTS_AT_S = 1.0
"""Before this, nobody sees anybody's record."""

RELAY_FAULTS = ("kill", "restart", "restart", "freeze", "blink", "blink", "slow", "drain")
DATA_FAULTS = ("restart", "blink", "blink")
DEADLINE_S = 10_000.0
MOST_STEPS = 5_000_000


def draw_config(seed: int, stages: int, relays: int) -> SmallConfig:
    random = Random(f"config {seed}")
    return SmallConfig(
        stages=stages,
        relays=relays,
        data_peers=random.choice((1, 1, 2, 3)),
        microbatches=random.choice((3, 5, 8)),
        capacity=random.choice((1, 2, 4)),
        exact=random.random() < 0.8,
        speeds=random.choice(((1.0,), (1.0, 1.5, 3.0))),
        seed=seed,
    )


def draw_script(seed: int, config: SmallConfig, churn: float, iterations: int, kinds: set[str]) -> list[Fault]:
    """Faults over the time that the iterations take without any."""
    random = Random(f"script {seed}")
    hop_s = 0.2
    bottleneck = config.data_peers * config.microbatches / config.relays * 0.15 * sum(config.speeds) / len(config.speeds)
    horizon_s = STARTS_AT_S + iterations * (bottleneck + 2 * config.stages * hop_s)
    permanent: Counter[int] = Counter()
    slow: set[PeerId] = set()
    script = []
    for k in range(1, config.stages + 1):
        for r in range(config.relays):
            peer = PeerId(f"relay_{k}_{r}")
            for _ in range(iterations):
                if random.random() < churn:
                    kind = random.choice([kind for kind in RELAY_FAULTS if kind in kinds])
                    if kind == "slow" and peer in slow:
                        kind = "blink"  # a hundred times slower would only take long
                    slow |= {peer} if kind == "slow" else set()
                    if kind in ("kill", "freeze", "drain"):
                        if permanent[k] >= config.relays - 1:
                            kind = "restart" if "restart" in kinds else "blink"
                        else:
                            permanent[k] += 1
                    script.append(_fault(random, kind, peer, horizon_s))
    for d in range(config.data_peers):
        for _ in range(iterations):
            if random.random() < churn / 2:
                kind = random.choice([kind for kind in DATA_FAULTS if kind in kinds] or ["blink"])
                script.append(_fault(random, kind, PeerId(f"data_{d}"), horizon_s))
    return script


def _fault(random: Random, kind: str, peer: PeerId, horizon_s: float) -> Fault:
    at_s = random.uniform(STARTS_AT_S, horizon_s)
    for_s = random.choice((0.05, 0.3, 1.0, 3.0, 8.0)) * random.uniform(0.5, 1.5)
    return Fault(kind, peer, at_s, for_s=for_s, factor=10.0, fresh=random.random() < 0.3 and peer.startswith("relay"))


def run_seed(seed: int, arguments: argparse.Namespace) -> tuple[str, SmallSwarm, str]:
    """(done, broken or stuck), the swarm, the reason."""
    churn = arguments.churn[seed % len(arguments.churn)]
    config = draw_config(seed, arguments.stages, arguments.relays)
    script = draw_script(seed, config, churn, arguments.iterations, set(arguments.kinds))
    swarm = small_swarm(config, script)
    try:
        swarm.run(arguments.iterations, DEADLINE_S, MOST_STEPS)
    except InvariantError as error:
        return "broken", swarm, str(error)
    except StuckError as error:
        if any(report.name == "version_missing" for _, report, _ in swarm.reports[-20:]):
            return "version_missing", swarm, "all that had a stage's weights are gone"
        return "stuck", swarm, str(error).splitlines()[0]
    except Exception as error:  # noqa: BLE001 (a crash of the machines is what this looks for)
        return "crashed", swarm, f"{type(error).__name__}: {error}"
    return "done", swarm, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0-99", help="first-last")
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--relays", type=int, default=3, help="per stage")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--churn", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--kinds", nargs="+", default=["kill", "restart", "freeze", "blink", "drain", "slow"])
    parser.add_argument("--story", help="file for the story of the first run that fails")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    began = time.perf_counter()
    ends: Counter[str] = Counter()
    tally: Counter[str] = Counter()
    for seed in range(int(first), int(last or first) + 1):
        end, swarm, why = run_seed(seed, arguments)
        ends[end] += 1
        tally["faults"] += len(swarm.faults.fired)
        tally["recoveries"] += sum(swarm.count("recovery").values())
        if end != "done":
            print(f"seed {seed}: {end}: {why[:300]}", file=sys.stderr)
            if arguments.story and sum(ends.values()) - ends["done"] == 1:
                with open(arguments.story, "w", encoding="utf-8") as file:  # noqa: PTH123
                    file.write(f"seed {seed} {end} {why}\n{swarm.story(400)}")
            continue
        outcome = swarm.invariants.check()
        tally["microbatches"] += outcome.done
        tally["double"] += outcome.double
        tally["lost_fast" if not swarm.config.exact else "lost"] += outcome.lost
    line = {"seeds": arguments.seeds, **ends, **tally, "seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(line))
    return 0 if set(ends) == {"done"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
