"""What makes a comparison with SWARM a fair one, point by point, with what this one did: printed in every report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import mean

from gwtf_p2p.ab.trials.arms import is_swarm, parse_arm
from gwtf_p2p.ab.trials.result import LIVE, RunResult
from gwtf_p2p.protocol.routers.swarm import SwarmConfig
from gwtf_p2p.simulation.swarm.build import Memory


def checklist(results: Sequence[RunResult], equivalence: str) -> tuple[tuple[str, str, str], ...]:
    """(number, what is asked, what was done). What was not done is said as plainly."""
    arms = list(dict.fromkeys(r.arm for r in results))
    swarm = [arm for arm in arms if is_swarm(arm)]
    live = [r for r in results if r.backend == LIVE]
    pairs = dict.fromkeys((r.backend, r.scenario) for r in results)
    seeds = {f"{b} {s}": min(_seeds_by_arm(results, b, s).values()) for b, s in pairs}
    fewest = min(seeds.values())
    configs = [parse_arm(arm).config for arm in swarm]
    waits = sorted({f"{config.in_flight or 'no limit'}" for config in configs if isinstance(config, SwarmConfig)})
    return (
        ("1", "IWRR as published; its settings swept, SWARM given its best",
         f"{len(swarm)} SWARM arms ({', '.join(swarm) or 'none'}); in flight: {', '.join(waits) or '-'}; the baseline is the "
         "one of least median iteration, chosen on the same seeds. A wide sweep runs in the simulator: "
         "`python -m experiments.run --arms +swarm_sweep`."),
        ("2", "Both routers on the same data plane; the star only as an arm of its own",
         "One runtime, peer to peer, in all arms; "
         + ("`swarm-hub` is the star, never the baseline." if "swarm-hub" in arms else "no star arm in this comparison.")),
        ("3", "Time-outs both ways; headline with the short ban",
         "Headline: deadlines from measured times and bans until the peer announces itself again; "
         + _official(arms)),
        ("4", "A lost backward recomputes one stage", "In all arms: the machines' own repair hands one stage to another peer."),
        ("5", "Same choice in all arms: activations, compression, all-reduce, delayed updates",
         f"Memory {_memories(arms)} (all but unlimited fit the same; SWARM's official code recomputes: {_recomputing(swarm)}); "
         "no compression (fp32); the same butterfly all-reduce; no delayed updates."),
        ("6", "Without rebalancing and with it, real state download included",
         "With: `swarm+rebalance`, whose mover drains, restarts and downloads its new stage's state over the lines."
         if any("rebalance" in arm for arm in arms) else "Not in this comparison: add the arm `swarm+rebalance`."),
        ("7", "Lost and repeated work counted as waste in all arms",
         "Waste = 1 - device seconds in committed gradients / all device seconds, computations cut off by a crash included."),
        ("8", "Same model, start weights, batch, data order, network and failures; 5 seeds; homogeneous control; equal losses",
         f"All drawn from the seed alone; seeds of every arm: {', '.join(f'{s} {n}' for s, n in seeds.items())}"
         + (" (FEWER THAN 5 in some)" if fewest < 5 else "")
         + f"; homogeneous control {'included' if any('homogeneous' in s for s in seeds) else 'NOT in this report'}. "
         + (f"Losses: {equivalence}." if live else "The simulator trains nothing; losses are compared in live runs.")),
        ("9", "Unit checks: shares = ratio of EMAs, kill gap, migration",
         "`tests/simulation/test_swarm_router.py` (shares within 3 points, one move by the rule)"
         + (f"; kill gap live: recovery delay {_delay(live)}." if live else ".")),
        ("10", "Reference arms: random below, the optimum above",
         f"random {'included' if 'random' in arms else 'NOT included'}; the bound (compute, slots, lines) in every table."),
    )  # fmt: skip


def _seeds_by_arm(results: Sequence[RunResult], backend: str, scenario: str) -> Counter[str]:
    """How many seeds each arm was run with."""
    return Counter(r.arm for r in results if (r.backend, r.scenario) == (backend, scenario))


def _official(arms: Sequence[str]) -> str:
    official = [arm for arm in arms if getattr(parse_arm(arm).config, "official_failures", False)]
    return (
        f"the official 30 s / 75 s without a ban: {', '.join(official)}."
        if official
        else "official time-outs NOT in this report."
    )


def _memories(arms: Sequence[str]) -> str:
    return ", ".join(sorted({parse_arm(arm).memory.value for arm in arms}))


def _recomputing(swarm: Sequence[str]) -> str:
    """Whether SWARM is given what its authors' code does."""
    arms = [arm for arm in swarm if parse_arm(arm).memory in (Memory.RECOMPUTED, Memory.ADAPTIVE)]
    return ", ".join(arms) if arms else "NO such arm, so SWARM is not at its best here"


def _delay(live: Sequence[RunResult]) -> str:
    delays = [s * r.time_scale for r in live for s in r.recovery_s]
    return f"{mean(delays):.2f} real seconds on average over {len(delays)} recoveries" if delays else "no recovery happened"
