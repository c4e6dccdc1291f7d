"""How fast a peer is there again: `python -m experiments.rejoin --rounds 5 --json`.

Two friends hold the one stage of a small run, with real processes of their own: one types `gwtf peer`, the other
`gwtf peer --supervise`. Again and again each peer is killed (SIGKILL). The first is typed again, a cold start; the second
comes back by itself. Timed from what their screens say: until "online", and until the first step in which it has done
something.

The last line is `{"rounds", "cold_online_s", "cold_work_s", "warm_online_s", "warm_work_s"}`, medians in seconds. Exit code 1
when somebody does not come back.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from experiments.support.friends.begin import begin, works
from experiments.support.friends.house import Friend, House, StoryFailed

Seconds = tuple[float, float]
"""Until online, and until the first step with work."""


def back(house: House, friend: Friend, seen: int, began: float) -> Seconds:
    """Of a friend whose screen had `seen` lines when it was killed."""

    def says(what: str) -> bool:
        new = friend.screen[seen:]
        return any(line.startswith("online in") for line in new) if what == "online" else any(map(works, new))

    house.until_so(f"{friend.name} is online", lambda: says("online"))
    online_s = time.monotonic() - began
    house.until_so(f"{friend.name} does microbatches", lambda: says("work"))
    return online_s, time.monotonic() - began


def cold(house: House, friend: Friend) -> Seconds:
    """It is killed, and typed again."""
    house.kill(friend)
    began = time.monotonic()
    house.start(friend.name, "peer", "--run_id", "friends")
    return back(house, friend, 0, began)


def warm(house: House, friend: Friend) -> Seconds:
    """Its peer is killed, and its supervisor starts it again."""
    seen, began = len(friend.screen), time.monotonic()
    os.kill(int((friend.folder / "identity.pid").read_text().split()[0]), signal.SIGKILL)
    return back(house, friend, seen, began)


def measured(rounds: int, folder: Path) -> dict[str, float]:
    """Raises StoryFailed."""
    with House(folder) as house:
        owner, (plain,) = begin(house, 1, 1)
        supervised = house.start("supervised", "peer", "--run_id", "friends", "--supervise")
        house.until_so("it does microbatches", lambda: any(map(works, supervised.screen)))
        found: dict[str, list[Seconds]] = {"cold": [], "warm": []}
        for _ in range(rounds):
            found["warm"].append(warm(house, supervised))
            house.until_more(owner, 5)
            found["cold"].append(cold(house, plain))
            house.until_more(owner, 5)
        told: dict[str, float] = {"rounds": rounds}
        for kind, seconds in found.items():
            online, work = zip(*seconds, strict=True)
            told[f"{kind}_online_s"] = round(statistics.median(online), 2)
            told[f"{kind}_work_s"] = round(statistics.median(work), 2)
        return told


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="gwtf-rejoin-"))
    try:
        told = measured(chosen.rounds, folder)
    except StoryFailed as error:
        print(f"it did not get to its end: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(told) if chosen.json else told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
