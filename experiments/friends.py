"""What friends live through in a week, with real processes: `python -m experiments.friends`.

    python -m experiments.friends                     all stories, what each screen said, and a table at the end
    python -m experiments.friends --story NAME ...    only these
    python -m experiments.friends --list

Each friend types `gwtf` on a machine of their own (a home, a disk, an identity); a story is told of their screens alone. Exit
code 1 if one does not hold. `disk_full` mounts a small tmpfs, `parted` makes network namespaces: they need root and Linux, and
elsewhere say so and are left out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from experiments.support.friends.begin import RUN, begin, works
from experiments.support.friends.house import Friend, House, StoryFailed, check, forget_disk
from experiments.support.friends.losses import nan_step, stage_lost
from experiments.support.friends.two_places import NoTwoPlaces, two_places
from experiments.support.small_disk import NoSmallDisk, small_disk

ASLEEP_S = 45.0
"""How long the laptop is closed: longer than any deadline of the others, and than its record lives."""

PARTED_S = 60.0
"""Longer than any deadline of the others, and than a record lives."""

JUMP_S = 3600.0
MOST_LINES = 24
NEWER = "9.0.0"
CUT_FILE = "part-1.jsonl.gz"


def comes_back(house: House, friend: Friend) -> None:
    """It types the same as before, but for the run's file: the run's name is all that it needs."""
    house.start(friend.name, "data" if friend.name == "owner" else "peer", "--run_id", "friends")


def power_cut(house: House) -> str:
    """Everything is gone in the middle of a step. All come back by the run's name alone, and the run goes on."""
    owner, others = begin(house, stages=2)
    house.until_step(owner, 7)
    reached = owner.last_step
    house.power_cut()
    (house.folder / "run.toml").unlink()
    house.bootstrap()
    for friend in (*others, owner):
        comes_back(house, friend)
    seconds = house.until_so("steps are done again", lambda: owner.last_step > 0)
    first = owner.steps[0][0]
    check(any(friend.said("this peer brings it back, from its own disk") for friend in (*others, owner)), "somebody says so")
    check(1 < first <= reached + 1, f"it goes on from a checkpoint: step {first} after {reached}")
    house.until_step(owner, reached + 2)
    return f"cut after step {reached}, first step {first}, {seconds:.0f} s after they typed it"


def disk_full(house: House) -> str:
    """The disk of a friend is full: nobody stops, nothing half is left, and when there is room again it is written to."""
    with small_disk(house.folder / "small") as small:
        disk = small.folder
        house.folder.joinpath("friend2").mkdir()
        house.folder.joinpath("friend2", "disk").symlink_to(disk)
        owner, (_, friend) = begin(house)
        house.until_so("a checkpoint is written", lambda: any(disk.glob("stage_*/step_*/manifest.json")))
        small.fill()
        told = house.until(friend, "disk is left alone")
        before = small.newest
        house.until_more(owner, 4)
        house.until_more(friend, 2)
        half = [path for path in disk.rglob("*") if path.is_dir() and path.name.startswith("step_") and not whole(path)]
        check(not half, f"no checkpoint is half written: {half}")
        small.free()
        seconds = house.until_so("a later checkpoint is written", lambda: small.newest > before)
    return f"{told.split(':')[-1].strip()!r}; written again {seconds:.0f} s after there was room"


def laptop_asleep(house: House) -> str:
    """A friend closes the laptop; the others go on; when it wakes up it finds where they are and takes part again."""
    owner, (friend, other) = begin(house)
    asleep = house.sleep(friend)
    began, reached = time.monotonic(), owner.last_step
    house.until_step(owner, reached + 2)
    passed_over_s = time.monotonic() - began
    house.until_so("it has slept for long enough", lambda: time.monotonic() - began > ASLEEP_S)
    others_reached, told = other.last_step, len(friend.screen)
    check(others_reached > reached, "the others went on meanwhile")
    for process in reversed(asleep):
        process.resume()
    seconds = house.until_so("it steps again", lambda: friend.last_step > others_reached)
    house.until_so("it does microbatches again", lambda: any(works(line) for line in friend.screen[told:]))
    return f"asleep {ASLEEP_S:.0f} s, passed over after {passed_over_s:.1f} s, steps again {seconds:.1f} s after waking"


def clock_jumps(house: House) -> str:
    """A friend's clock jumps ahead by an hour, then an hour behind, then is right: the run goes on throughout."""
    owner, _ = begin(house)
    clock = house.folder / "clock"
    clock.write_text("0")
    odd = house.start("clocky", "peer", "--run_id", "friends", altered=("--clock", str(clock)))
    house.until(odd, "^online in")
    house.until_step(odd, 1)
    told = []
    for jump in (JUMP_S, -JUMP_S, 0.0):
        clock.write_text(str(jump))
        seconds = house.until_more(owner, 5)
        told.append(f"{jump:+.0f} s: 5 steps in {seconds:.1f} s")
    before = len(odd.screen)
    house.until_so("it does microbatches again", lambda: any(works(line) for line in odd.screen[before:]))
    return "; ".join(told)


def half_upgraded(house: House) -> str:
    """Half of the friends leave, install a newer release and come back, one after the other; the run goes on meanwhile."""
    owner, (first, second) = begin(house)
    for friend in (first, owner):
        check(house.leave(friend) == 0, f"{friend.name} leaves with exit code 0")
        role = "data" if friend is owner else "peer"
        house.start(friend.name, role, "--run_id", "friends", altered=("--release", NEWER))
        house.until(friend, "^online in")
        house.until_more(second, 2)
    told = house.until(second, f"run release {NEWER}")
    house.until_more(owner, 3)
    check(not first.said("run release"), "who has the newest is told of none")
    house.until_so("both kinds do microbatches", lambda: all(any(map(works, f.screen[-40:])) for f in (first, second)))
    return told


def broken_shard(house: House) -> str:
    """One of two friends' copies of the texts is cut off: its owner is told which file, trains on the rest, and both go on."""
    for name in ("owner", "second"):
        write_texts(house.folder / name / "texts", cut=name == "second")
    allowed = ("--dataset", "./texts")
    dataset = {"path": "./texts", "text_column": "text"}
    owner, _ = begin(house, 1, 2, owner_types=allowed, wait=False, data_peers=2, dataset=dataset)
    second = house.start("second", "data", "--run_id", "friends", *allowed)
    told = house.until(second, "is cut or damaged")
    check(CUT_FILE in told, f"the file is named: {told}")
    for friend in (owner, second):
        house.until_step(friend, 4)
    check(not owner.said("damaged"), "who has whole files is told of nothing")
    check(not second.said("Traceback"), "no traceback")
    return told.strip()[-120:]


def owner_gone(house: House) -> str:
    """The owner and the owner's disk are gone for good; a stranger takes up the data, and the run goes on without the owner."""
    owner, others = begin(house, stages=2)
    house.until_so("a copy of the owner's checkpoint is kept by others", lambda: any(map(copies_of_the_owner, others)))
    reached = owner.last_step
    house.kill(owner)
    forget_disk(owner)
    stranger = house.start("stranger", "data", "--run_id", "friends")
    house.until(stranger, "^online in")
    seconds = house.until_so("the stranger's first step", lambda: stranger.last_step > 0)
    first = stranger.steps[0][0]
    check(1 < first <= reached + 2, f"it goes on from the copy that was kept: step {first} after {reached}")
    house.until_step(stranger, first + 3)
    for friend in others:
        house.until_so(f"{friend.name} is at the stranger's steps", lambda f=friend: first in [n for n, _ in f.steps[-8:]])  # type: ignore[misc]
    return f"gone after step {reached}, the stranger's first step {first}, {seconds:.0f} s after it was online"


# ---- what the stories need


def parted(house: House) -> str:
    """The line between two places breaks; in both live a data peer and friends of all stages, and train on. When it is mended
    all follow the place that has got further."""
    with two_places() as house.places:
        house.places.there |= {"friend2", "friend4", "second"}
        owner, _ = begin(house, stages=2, peers=0, peers_per_stage=2, data_peers=2, wait=False)
        stages = {"friend1": "1", "friend2": "1", "friend3": "2", "friend4": "2"}
        others = [house.start(name, "peer", "--run_id", "friends", "--stage", stage) for name, stage in stages.items()]
        everybody = (owner, *others, house.start("second", "data", "--run_id", "friends"))
        for friend in everybody:
            house.until_step(friend, 3)
        house.places.cut()
        began, before = time.monotonic(), {friend.name: friend.last_step for friend in everybody}
        house.until_so("it was cut for long enough", lambda: time.monotonic() - began > PARTED_S)
        reached = {friend.name: friend.last_step for friend in everybody}
        check(all(reached[name] > before[name] + 1 for name in reached), f"both places train on: {reached}")
        house.places.mend()
        told = [(friend, len(friend.screen)) for friend in everybody]
        of_both = f"of {2 * int(str(RUN['microbatches_per_data_peer']))} microbatches"
        seconds = house.until_so(
            "all take part in steps of both data peers",
            lambda: all(any(together(line, of_both) for line in f.screen[n:]) for f, n in told),
        )
        followed = [
            friend.name for friend, n in told if any(re.match("out of step|catching up", line) for line in friend.screen[n:])
        ]
        check(bool(followed), "one place follows the other")
        house.power_cut()
    return f"parted for {PARTED_S:.0f} s, then at steps {reached}; together again after {seconds:.0f} s; followed: {followed}"


def together(line: str, of_both: str) -> bool:
    """A step of all microbatches, of which this friend has done some."""
    return works(line) and of_both in line


def whole(checkpoint: Path) -> bool:
    return (checkpoint / "manifest.json").exists()


def copies_of_the_owner(friend: Friend) -> int:
    """Checkpoints of stage 0 on the disk of another one."""
    return len(list(friend.disk.glob("stage_00000/step_*/manifest.json")))


def write_texts(folder: Path, cut: bool) -> None:
    """Two files of text; `cut`: the second ends in the middle, as when a download was broken off."""
    folder.mkdir(parents=True)
    for number in range(2):
        text = "".join(
            json.dumps({"text": f"Line {i} of file {number}: " + "the quick brown fox. " * 20}) + "\n" for i in range(400)
        )
        packed = gzip.compress(text.encode(), mtime=0)
        file = folder / f"part-{number}.jsonl.gz"
        file.write_bytes(packed[: len(packed) // 2] if cut and file.name == CUT_FILE else packed)


STORIES: dict[str, Callable[[House], str]] = {
    story.__name__: story
    for story in (
        power_cut,
        disk_full,
        laptop_asleep,
        clock_jumps,
        half_upgraded,
        broken_shard,
        owner_gone,
        stage_lost,
        nan_step,
        parted,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--story", nargs="*", choices=sorted(STORIES), metavar="NAME", help="only these")
    parser.add_argument("--list", action="store_true", help="print the names")
    parser.add_argument("--lines", type=int, default=MOST_LINES, help="of each screen, at most (default %(default)s)")
    args = parser.parse_args()
    if args.list:
        print("\n".join(STORIES))
        return 0
    table, failed = [], 0
    for name in args.story or STORIES:
        folder, began = Path(tempfile.mkdtemp(prefix=f"gwtf-{name}-")), time.monotonic()
        print(f"{name}: {STORIES[name].__doc__}", flush=True)
        with House(folder) as house:
            try:
                outcome, told = STORIES[name](house), "holds"
            except StoryFailed as error:
                outcome, told, failed = str(error), "FAILS", failed + 1
            except (NoSmallDisk, NoTwoPlaces) as why:
                outcome, told = str(why), "left out"
        print("\n".join(house.screens(args.lines)), flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        table.append(f"{name:14} {told:9} {time.monotonic() - began:4.0f} s  {outcome}")
        print(table[-1] + "\n", flush=True)
    print("\n".join(table))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
