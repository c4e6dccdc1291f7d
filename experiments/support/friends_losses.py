"""Stories of what is lost for good."""

from __future__ import annotations

from experiments.support.friends_begin import begin
from experiments.support.friends_house import House, check, forget_disk

ALONE = ("--copies", "0")
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
