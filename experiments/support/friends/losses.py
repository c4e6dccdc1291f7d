"""Stories of what is lost for good, or computed for nothing: the weights of a stage, the steps of a run that diverges."""

from __future__ import annotations

import re

from experiments.support.friends.begin import begin, works
from experiments.support.friends.house import Friend, House, check, forget_disk

ALONE = ("--copies", "0")
SKIPS = 3
"""Steps in a row that may be skipped before the run pauses."""

LATER_STEPS = 20
"""So many steps after a stage was rebuilt, its loss is told."""


def stage_lost(house: House) -> str:
    """The only friend in the middle stage loses its disk, and nobody keeps copies. The run waits, and says for what; the owner
    starts again with --rebuild_lost_stage, and it goes on: every screen, the monitor and the ledger say what was done."""
    owner, others = begin(house, 3, 3, ALONE, ALONE)
    friend = next(each for each in others if each.said("^online in stage 2"))
    house.until_step(owner, 7)
    house.kill(friend)
    before = owner.steps[-1]
    forget_disk(friend)
    house.start(friend.name, "peer", "--run_id", "friends", *ALONE)
    told = house.until(owner, "the run cannot go on: stage 2 lacks version")
    check("--rebuild_lost_stage" in told and "begin again under another run_id" in told, f"it says what can be done: {told}")
    for each in (owner, others[0], others[2]):
        house.until(each, "Training waits: ")
    check(house.leave(owner) == 0, "the owner leaves with exit code 0")
    house.start("owner", "data", "--run_id", "friends", "--rebuild_lost_stage", *ALONE)
    house.until(owner, "It is rebuilt from its neighbours' weights in")
    for each in (owner, *others):
        house.until(each, "stage 2 is rebuilt from its neighbours' weights after")
    seconds = house.until_so("the first step", lambda: owner.last_step > 0)
    after = owner.steps[0]
    house.until_step(owner, after[0] + LATER_STEPS)
    later = owner.steps[-1]
    for each in others:
        house.until_so(f"{each.name} steps", lambda e=each: e.last_step >= after[0])  # type: ignore[misc]
    ledger = house.look("reader", "ledger", "--run_id", "friends")
    house.until(ledger, "stage 2 was rebuilt from its neighbours' weights after")
    monitor = house.look("watcher", "monitor", "--run_id", "friends", "--json", "--no_history")
    house.until(monitor, "Stage 2 was rebuilt from its neighbours' weights")
    losses = ", ".join(f"{loss:.2f} at step {step}" for step, loss in (before, after, later))
    return f"first step {seconds:.0f} s after it was rebuilt; loss {losses}"


def nan_step(house: House) -> str:
    """A friend's machine begins to compute gradients that are not finite. The steps are skipped in all stages alike, every
    screen says at whom, and after some the run pauses. The machine is mended, the owner starts again, the loss is as before."""
    owner, others = begin(house, 2, 2, max_skipped_steps=SKIPS)
    broken = house.folder / "broken"
    odd = house.start("odd", "peer", "--run_id", "friends", altered=("--broken", str(broken)))
    house.until_so("it does microbatches", lambda: any(works(line) for line in odd.screen))
    everybody = (owner, *others, odd)
    broken.touch()
    for friend in everybody:
        house.until(friend, f"Training is paused: the last {SKIPS} steps were skipped")
    skips = {friend.name: skipped(friend) for friend in everybody}
    told = skips[owner.name]
    check(len(told) == SKIPS, f"{SKIPS} steps were skipped: {told}")
    check(all(found == told for found in skips.values()), f"the same are skipped in all stages: {skips}")
    check(all(odd.said("^peer").split()[1].endswith(at) for _, at in told), f"every screen says at whom: {told}")
    before = owner.steps[-1]
    broken.unlink()
    check(house.leave(owner) == 0, "the owner leaves with exit code 0")
    house.start("owner", "data", "--run_id", "friends")
    seconds = house.until_so("steps are done again", lambda: owner.last_step > 0)
    number, loss = owner.steps[0]
    check(number == before[0] + SKIPS + 1, f"it goes on after the skipped ones: step {number} after {before[0]}")
    house.until_step(owner, number + 5)
    check(not skipped(owner), "no step is skipped any more")
    steps = ", ".join(str(step) for step, _ in told)
    return f"steps {steps} skipped at all four; loss {before[1]:.2f} before, {loss:.2f} after ({seconds:.0f} s after typing)"


def skipped(friend: Friend) -> list[tuple[int, str]]:
    """Steps that its screen says were skipped, and at whom."""
    found = (re.match(r"step +(\d+) +skipped: the gradient is not finite(?: at (\S+))?", line) for line in friend.screen)
    return [(int(m[1]), m[2] or "") for m in found if m]
