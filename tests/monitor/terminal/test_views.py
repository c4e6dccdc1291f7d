"""What a terminal shows: what matters most stays when there is little room, the newest event is first, nothing wraps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.text import Text

from gwtf_p2p.monitor.own_peer import AFTER, OwnPeer
from gwtf_p2p.monitor.run_state import RunState
from gwtf_p2p.monitor.swarm_state import SwarmState
from gwtf_p2p.monitor.terminal.fit import Column, Section, fit, progress_bar, table
from gwtf_p2p.monitor.terminal.local_view import PeerLine, local_view, seconds_left
from gwtf_p2p.monitor.terminal.own_view import own_view
from gwtf_p2p.monitor.terminal.swarm_view import plain_line, swarm_view
from tests.monitor.watched import A1, A2, DATA, RUN, ledger, record, swarm

SMALL = (60, 23)
"""A terminal of 60 by 24 without the line of the cursor."""


def lines(*texts: str) -> list[Text]:
    return [Text(text) for text in texts]


def plain(shown: list[Text]) -> list[str]:
    return [line.plain for line in shown]


# ---- giving way


def test_the_less_important_section_gives_way_and_the_order_stays() -> None:
    sections = [Section(lines("a1", "a2", "a3"), 1), Section(lines("b1", "b2"), 0, least=2), Section(lines("c1"), 2)]
    assert plain(fit(sections, 20, 10)) == ["a1", "a2", "a3", "b1", "b2", "c1"]
    assert plain(fit(sections, 20, 4)) == ["a1", "b1", "b2", "c1"]
    assert plain(fit(sections, 20, 3)) == ["a1", "b1", "b2"]
    assert plain(fit(sections, 20, 2)) == ["b1", "b2"]
    assert fit(sections, 20, 0) == []


def test_what_is_cut_says_how_much_there_is_or_takes_its_short_form() -> None:
    many = lines(*(f"p{i}" for i in range(9)))
    assert plain(fit([Section(many, 0, rest="peers")], 20, 4)) == ["p0", "p1", "p2", "… 6 more peers"]
    assert plain(fit([Section(many, 0, compact=lines("9 peers"))], 20, 4)) == ["9 peers"]


def test_a_table_leaves_out_columns_before_it_wraps() -> None:
    columns = (Column("peer"), Column("state", 1), Column("count", 2, is_number=True))
    rows = [(("QmA", "online", "7"), ""), (("QmB", "syncing", "123"), "red")]
    assert plain(table(columns, rows, 40)) == ["peer  state    count", "QmA   online       7", "QmB   syncing    123"]
    assert plain(table(columns, rows, 15)) == ["peer  state", "QmA   online", "QmB   syncing"]


@pytest.mark.parametrize(("done", "told"), [(0, "  0%"), (50, " 50%"), (200, "100%")])
def test_progress_is_a_bar_of_the_width_asked_for(done: int, told: str) -> None:
    bar = progress_bar(done, 100, 30).plain
    assert len(bar) == 30 and bar.endswith(told)


# ---- a run on this machine


def demo(peers_per_stage: int, events: int) -> tuple[RunState, dict[str, PeerLine]]:
    state = RunState(3, 8, 100, names={"Qm1": "stage1.0"})
    for iteration in range(4):
        state.hear("data0", 0, {"name": "iteration_begins", "iteration": iteration}, 2.0 * iteration)
        done = {"name": "microbatch_done", "microbatch": f"x/{iteration}/0", "loss": 4.0 - iteration, "route": ["Qm1"]}
        state.hear("data0", 0, done, 2.0 * iteration + 1)
        state.ended_at[iteration] = 2.0 * iteration + 2
    state.events = [f"event {n}" for n in range(events)]
    peers = {"bootstrap": PeerLine("bootstrap", -1, "online"), "data0": PeerLine("data", 0, "online", 8, 4)}
    for stage in (1, 2, 3):
        for i in range(peers_per_stage):
            peers[f"stage{stage}.{i}"] = PeerLine("stage", stage, "killed" if i == 1 else "online", 4 + i, 4)
    return state, peers


@pytest.mark.parametrize("peers_per_stage", [2, 12])
@pytest.mark.parametrize("size", [SMALL, (60, 12), (40, 8), (200, 60)])
def test_a_demo_fits_and_says_the_newest_events_first(peers_per_stage: int, size: tuple[int, int]) -> None:
    state, peers = demo(peers_per_stage, 40)
    shown = plain(local_view(state, peers, 10, size))
    assert len(shown) <= size[1] and all(len(line) <= size[0] for line in shown)
    assert shown[0].startswith("step 4/10") and shown[0].endswith("12 s left")
    assert shown.index("event 39") < shown.index("event 38") < shown.index("event 37")


def test_a_small_demo_view_has_everybody_and_a_big_swarm_is_told_by_stage() -> None:
    state, peers = demo(2, 3)
    shown = "\n".join(plain(local_view(state, peers, 10, SMALL)))
    assert all(name in shown for name in peers) and "loss 4.0000 → 1.0000" in shown
    state, peers = demo(12, 3)
    shown = "\n".join(plain(local_view(state, peers, 10, SMALL)))
    assert "stage 2:  1 killed  11 online  114 microbatches" in shown
    state, peers = demo(2, 12)
    assert "stage 2:  ● stage2.0 4  ✗ stage2.1 5" in "\n".join(plain(local_view(state, peers, 10, (60, 18))))


def test_a_demo_that_starts_says_who_is_there() -> None:
    peers = {"bootstrap": PeerLine("bootstrap", -1, "online"), "data0": PeerLine("data", 0)}
    state = RunState(1, 2, 10)
    assert plain(local_view(state, peers, 5, SMALL))[0].startswith("gwtf demo: 1 of 2 peers online")
    assert seconds_left(state, 5) is None


# ---- any swarm


def test_a_swarm_of_hundreds_fits_sixty_columns_and_names_what_is_wrong() -> None:
    state = SwarmState(RUN)
    records = [*swarm(), *(record(f"Qmpeer{i:04}", 1) for i in range(300))]  # type: ignore[arg-type]
    state.look(records, 1.0)
    changed = [replace(r, weights_version=4, sequence_number=9) for r in records if r.peer != A1 and r.stage != 2]
    state.look(changed, 5.0)
    shown = plain(swarm_view(state, SMALL))
    assert len(shown) <= SMALL[1] and all(len(line) <= SMALL[0] for line in shown)
    text = "\n".join(shown)
    assert "Training waits: no peer is online in stage 2." in text and "peer of stage 1 peerA1 is gone" in text
    assert "stage 1  301 online" in text and "stage 2  nobody" in text


# ---- one's own peer


def own(*reports: dict[str, object]) -> OwnPeer:
    """Each report a second after the other."""
    peer = OwnPeer(0.0)
    for second, report in enumerate(reports):
        peer.hear(report, float(second))
    return peer


STARTED = {"name": "started", "peer": "QmSelf123456", "maddrs": ["/ip4/1.2.3.4/tcp/1/p2p/QmSelf123456"]}
RUN_KNOWN = {"name": "run", "run_id": "books", "stages": 2, "total_iterations": 100}
ONLINE = {"name": "online", "stage": 2, "shard": None, "version": 3}


def stepped(iteration: int, ours: int, computed_s: float) -> dict[str, object]:
    told = {"name": "stepped", "iteration": iteration, "microbatches": ours, "of": 8, "loss": 4.0, "computed_s": computed_s}
    return {**told, "different": 8, "useful_s": 1.0, "wasted_s": 0.0, "hop_s": 0.1}


@pytest.mark.parametrize("done", AFTER)
def test_each_step_of_the_start_is_told(done: str) -> None:
    assert own({"name": "step", "done": done}).doing(1.0) == (f"Starts: {AFTER[done]}.", True)


def test_a_peer_says_why_it_waits() -> None:
    waiting = {"name": "waiting", "reasons": [["/ip4/1.2.3.4", "refused"]], "seconds_left": 9.0}
    assert own(waiting).doing(2.0) == ("Waits: no initial peer answers (/ip4/1.2.3.4: refused).", False)
    assert "3 of 7 parts" in own(STARTED, {"name": "download", "chunks": 3, "of": 7}).doing(2.0)[0]
    assert own(STARTED, RUN_KNOWN, ONLINE, {"name": "draining", "held": 2}).doing(5.0)[0].startswith("Leaves")
    there = own(STARTED, RUN_KNOWN, ONLINE)
    assert there.doing(5.0)[0] == "Computes."
    assert "none for 58 s (the run has not begun, or is full)" in there.doing(60.0)[0]
    why = "Training waits: no peer is online in the data stage and stage 1 for 40 s."
    empty = own(STARTED, RUN_KNOWN, ONLINE, {"name": "figures", "computed_s": 0.0, "stall": why})
    assert empty.doing(60.0) == (why, False), "the sentence that every role and the monitor say"
    assert own(STARTED, RUN_KNOWN, ONLINE, stepped(99, 2, 1.0)).doing(60.0)[0].startswith("All 100 iterations are done")


def test_a_peer_says_that_its_copy_differs_from_the_others_and_since_when() -> None:
    known = {**RUN_KNOWN, "replica_sync": 5}
    peer = own(STARTED, known, ONLINE, stepped(6, 2, 10.0))
    assert plain(own_view(peer, 8.0, SMALL))[3] == "Copies of its stage differ: averaged 2 of 5 iterations ago."
    equal = own(STARTED, known, ONLINE, stepped(9, 2, 10.0)).copies
    assert equal == "Copies of its stage are equal now, and averaged every 5 iterations."
    assert not own(STARTED, RUN_KNOWN, ONLINE, stepped(9, 2, 10.0)).copies


def test_what_a_peer_contributed_counts_over_its_lives_and_ends_in_thanks() -> None:
    peer = own(STARTED, RUN_KNOWN, ONLINE, stepped(3, 2, 10.0), STARTED, ONLINE, stepped(4, 4, 5.0))
    assert (peer.computed_s, peer.committed, peer.iterations) == (15.0, 6, 2)
    assert peer.last_words() == "you computed 15 s; 6 microbatches of yours were committed in 2 iterations. Thank you."
    assert "38% of its stage's" in peer.contribution()
    once = own(STARTED, RUN_KNOWN, ONLINE, stepped(3, 1, 10.0))
    assert once.last_words() == "you computed 10 s; 1 microbatch of yours was committed in 1 iteration. Thank you."
    assert "1 microbatch committed" in once.contribution() and once.contribution().endswith("took part in 1 iteration")
    assert peer.seconds_left == pytest.approx(95 * 3.0)
    assert "has computed nothing" in own(STARTED).last_words()


@pytest.mark.parametrize("size", [SMALL, (60, 6), (40, 4)])
def test_the_view_of_a_peer_keeps_what_it_does_and_gives(size: tuple[int, int]) -> None:
    peer = own(STARTED, RUN_KNOWN, ONLINE, stepped(3, 2, 10.0), stepped(4, 2, 20.0))
    for n in range(30):
        peer.tell(f"event {n}", float(n))
    shown = plain(own_view(peer, 8.0, size))
    assert len(shown) <= size[1] and all(len(line) <= size[0] for line in shown)
    assert "Computes." in shown and "computed 20 s" in shown
    if size == SMALL:
        assert shown[0] == "peer 123456 · run books · stage 2 · online for 6.0 s"
        newest = [line for line in shown if "event" in line]
        assert newest[0].endswith("event 29") and newest[1].endswith("event 28")


def test_the_heading_says_of_what_kind_a_peer_is_from_its_start_on() -> None:
    data = OwnPeer(0.0, "data peer")
    assert plain(own_view(data, 1.0, SMALL))[0] == "data peer · starting for 1.0 s"
    data.hear(STARTED, 1.0)
    assert plain(own_view(data, 2.0, SMALL))[0].startswith("data peer 123456 · starting")


def test_a_peer_that_does_not_answer_is_not_counted_as_online() -> None:
    state = SwarmState(RUN)
    state.look(swarm(), 1.0)
    assert "4/4 peers online" in plain_line(state)
    state.look(swarm(4), 2.0, frozenset({A2}))
    assert "3/4 peers online" in plain_line(state)


def test_the_peers_of_a_swarm_are_told_with_what_the_ledger_says_of_them() -> None:
    state = SwarmState(RUN)
    state.hear_contributions(ledger(), {DATA})
    state.look(swarm(), 1.0)
    told = {line.split()[0]: line.split()[-1] for line in plain(swarm_view(state, (100, 40))) if line[:6] in (A1[-6:], A2[-6:])}
    assert told == {A1[-6:]: "9", A2[-6:]: "3"}
