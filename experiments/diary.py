"""A week of ten friends at home, simulated: `python -m experiments.diary --seeds 0-9 --json`.

Two data peers and eight stage peers of three stages come and go by a diary: who is at home in the evening, who at night, who
all day, and on weekends otherwise. A coming or going is up to half an hour off. Most leave properly (Ctrl+C), some close the
laptop and wake up where they were, a few are cut off. All come back with their disk. An hour of the diary takes `--hour_s`
seconds of virtual time: an iteration takes about half an hour of the diary, as one of a large model would at home.

Told of each seed: iterations that are committed, the share of the week in which training stands still, by the rules that tell
people so (`protocol/stall`), and why, how often the swarm has gone back, microbatches lost or counted twice, and what the
ledger of a data peer adds up to (microbatches of a stage) beside what is in the averages that were committed. Invariants are
checked all the while; exit code 1 if one breaks, or the two sums differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from random import Random

from gwtf_p2p.cli.verbs.sim import parse_seeds
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.stall.watch import StallWatch, Wanted
from gwtf_p2p.simulation.world.faults import Fault
from gwtf_p2p.simulation.world.small_swarm import SmallConfig, small_swarm

DAYS, HOURS = 7, 24
WEEKEND = (5, 6)
LEDGER_WAIT_S = 300.0
LOOK_S = 2.0
"""How often, in virtual seconds, it is looked whether training stands still."""

SPEEDS = (6.0, 9.0, 12.0)
"""How many times slower than the small swarm's usual stage peers (0.15 s for a microbatch, both ways) these are."""

OFF_H = 0.5
LEAVES, SLEEPS = 0.7, 0.9
"""Of ten goings seven are proper, two are laptops that are closed, and one is a crash."""

EVENING, MORNING, DAY, NIGHT, ALWAYS = (17.0, 24.0), (6.0, 13.0), (8.0, 22.0), (-6.0, 9.0), (0.0, 24.0)
AT_HOME: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "data_0": (ALWAYS, ALWAYS),
    "data_1": (EVENING, DAY),
    "relay_1_0": (ALWAYS, EVENING),
    "relay_1_1": (NIGHT, DAY),
    "relay_1_2": (EVENING, NIGHT),
    "relay_2_0": (DAY, DAY),
    "relay_2_1": (NIGHT, ALWAYS),
    "relay_2_2": (MORNING, EVENING),
    "relay_3_0": (DAY, NIGHT),
    "relay_3_1": (NIGHT, DAY),
}
"""Hours of a weekday and of a day of the weekend (a night begins the evening before) in which a machine takes part."""


@dataclass(frozen=True)
class Going:
    """A friend is away from one hour of the week to another, in one of three ways."""

    peer: PeerId
    from_h: float
    to_h: float
    how: str


def goings(random: Random) -> list[Going]:
    """All of the week, in order of time."""
    found = []
    for name, (weekday, weekend) in AT_HOME.items():
        hours = [weekend if day in WEEKEND else weekday for day in range(DAYS)]
        there = [(HOURS * day + begin, HOURS * day + end) for day, (begin, end) in enumerate(hours)]
        for (_, end), (begin, _) in zip([(0.0, 0.0), *there], [*there, (HOURS * DAYS + 1.0, 0.0)], strict=True):
            left, back = end + random.uniform(-OFF_H, OFF_H), begin + random.uniform(-OFF_H, OFF_H)
            if back - left > 2 * OFF_H:
                draw = random.random()
                how = "drain" if draw < LEAVES else "blink" if draw < SLEEPS else "kill"
                found.append(Going(PeerId(name), max(left, 0.05), back, how))
    return sorted(found, key=lambda going: going.from_h)


@dataclass
class Week:
    """A seed's week. `stalled` counts looks by the code of the rule that they fitted."""

    seed: int
    hour_s: float

    def __post_init__(self) -> None:
        config = SmallConfig(
            stages=3, stage_peers=3, data_peers=2, microbatches=8, capacity=4, speeds=SPEEDS, checkpoint_every=5, seed=self.seed
        )
        self.swarm = small_swarm(config)
        self.swarm.world.kill(PeerId("relay_3_2"))  # ten friends, not eleven
        self.stalled: Counter[str] = Counter()
        self.looks = 0
        self.iterations = 0
        self._watches: dict[str, StallWatch] = {}
        for going in goings(Random(self.seed)):
            self._plan(going)

    def _plan(self, going: Going) -> None:
        kernel, faults = self.swarm.world.kernel, self.swarm.faults
        lasts_s = (going.to_h - going.from_h) * self.hour_s

        def go() -> None:
            faults.fire(Fault(going.how, going.peer, at_s=0.0, for_s=lasts_s))

        kernel.at(going.from_h * self.hour_s, go)

        def come() -> None:
            if self.swarm.world.peers[going.peer].alive:  # it has not got away: what it held was never committed
                self.swarm.world.kill(going.peer)
            faults.restart(going.peer, fresh=False)

        if going.how != "blink":
            kernel.at(going.to_h * self.hour_s, come)

    def live(self) -> None:
        """Raises AssertionError when an invariant breaks."""
        kernel = self.swarm.world.kernel
        while kernel.now < DAYS * HOURS * self.hour_s:
            kernel.run(lambda: False, kernel.now + LOOK_S)
            self._look(kernel.now)
        kernel.run(lambda: bool(self.swarm.invariants.ledgers()), kernel.now + LEDGER_WAIT_S)  # one that is in no step just now
        self.swarm.invariants.check()

    def sums(self) -> tuple[int, int]:
        """Microbatches of a stage in the ledger of the data peer that has most, and in the averages of the commits it holds."""
        ledgers = self.swarm.invariants.ledgers().values()
        return max(((said.total(), averaged.total()) for said, averaged in ledgers), default=(0, 0))

    def _look(self, now: float) -> None:
        self.looks += 1
        up = [p for p in self.swarm.world.peers.values() if p.alive and not p.frozen]
        if not up:
            self.stalled["nobody is there"] += 1
            return
        self.iterations = max(self.iterations, max(p.machine.participant.version for p in up))
        first = min(up, key=lambda p: (not p.id.startswith("data"), p.id))
        watch = self._watches.setdefault(first.id, StallWatch(Wanted(1, 1), 0.0))
        watch.look(first.machine, now)
        if watch.text:
            self.stalled[kind_of(watch.text)] += 1


def kind_of(text: str) -> str:
    """The sentence without its figures of the moment."""
    return re.split(r" for | yet\. |, without ", text)[0].rstrip(".")


def week(seed: int, hour_s: float) -> dict[str, object]:
    """Figures of one seed; `wrong` says which invariant broke, '' for none."""
    told = Week(seed, hour_s)
    wrong = ""
    try:
        told.live()
    except AssertionError as error:
        wrong = (str(error) or repr(error)).splitlines()[0]
    tally = told.swarm.invariants.check() if not wrong else None
    ledger, committed = told.sums() if tally else (0, 0)
    if not wrong and (ledger != committed or (told.iterations and not committed)):
        wrong = f"the ledger adds up to {ledger}, the commits to {committed}"
    share = {code: round(count / told.looks, 4) for code, count in told.stalled.most_common()}
    return {
        "seed": seed,
        "iterations": told.iterations,
        "microbatches": tally.done if tally else None,
        "lost": tally.lost if tally else None,
        "double_counted": tally.double if tally else None,
        "ledger": ledger,
        "committed": committed,
        "stalled": round(sum(told.stalled.values()) / max(1, told.looks), 4),
        "stalled_why": share,
        "goings": dict(Counter(fault.kind for _, fault in told.swarm.faults.fired)),
        "went_back": len({r.fields["epoch"] for _, r, _ in told.swarm.reported("going_back") if "epoch" in r.fields}),
        "wrong": wrong,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, default=(0,), metavar="A-B", help="a number, a range or a comma list")
    parser.add_argument("--hour_s", type=float, default=20.0, metavar="SECONDS", help="virtual seconds of an hour")
    parser.add_argument("--json", action="store_true", help="one JSON object for each seed, and one for all")
    args = parser.parse_args()
    weeks = []
    for seed in args.seeds:
        weeks.append(week(seed, args.hour_s))
        print(json.dumps(weeks[-1]) if args.json else line_of(weeks[-1]), flush=True)
    total = {
        "seeds": len(weeks),
        "iterations": [min(w["iterations"] for w in weeks), max(w["iterations"] for w in weeks)],  # type: ignore[type-var]
        "stalled": round(sum(float(str(w["stalled"])) for w in weeks) / len(weeks), 4),
        "lost": sum(int(str(w["lost"] or 0)) for w in weeks),
        "double_counted": sum(int(str(w["double_counted"] or 0)) for w in weeks),
        "ledger": sum(int(str(w["ledger"])) for w in weeks),
        "committed": sum(int(str(w["committed"])) for w in weeks),
        "wrong": [w["seed"] for w in weeks if w["wrong"]],
    }
    print(json.dumps(total) if args.json else f"{total}")
    return 1 if total["wrong"] or total["lost"] or total["double_counted"] else 0


def line_of(figures: dict[str, object]) -> str:
    why = "; ".join(f"{100 * share:.1f} % {text}" for text, share in dict(figures["stalled_why"]).items())  # type: ignore[call-overload]
    return (
        f"seed {figures['seed']}: {figures['iterations']} iterations, {figures['microbatches']} microbatches, "
        f"{figures['lost']} lost, {figures['double_counted']} double, "
        f"{figures['ledger']} stages of them in the ledger, {figures['committed']} in the commits; "
        f"stood still {100 * float(str(figures['stalled'])):.1f} % "
        f"of the week ({why}); went back {figures['went_back']} times; {figures['wrong'] or 'invariants hold'}"
    )


if __name__ == "__main__":
    sys.exit(main())
