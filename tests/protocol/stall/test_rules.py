"""Why training stands still, in one sentence: table of what is seen, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.stall.rules import STALL_LEAST_S, Situation, counted, stall_of

REDO = "waits for the redo of 2 microbatches"
GOES_ON = Situation(
    stages=2,
    total_iterations=100,
    data_peers=1,
    peers_per_stage=2,
    version=41,
    waited_s=3.0,
    pace_s=2.0,
    online={0: 1, 1: 2, 2: 2},
)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, None, ()),
        ({"version": 100, "waited_s": 1e6, "online": {}}, None, ()),
        ({"online": {0: 1, 1: 2}}, "empty_stage", ("stage 2",)),
        ({"online": {0: 1, 1: 2}, "empty_s": {2: 840.0}}, "empty_stage", ("stage 2", "14 min")),
        ({"online": {1: 2, 2: 1}}, "empty_stage", ("the data stage",)),
        ({"skipped": 9, "most_skipped": 10}, None, ()),
        ({"skipped": 10, "most_skipped": 0}, None, ()),
        (
            {"skipped": 10, "most_skipped": 10, "not_finite": ("12D3KooWabcdef",)},
            "paused",
            ("last 10 steps", "not finite (at abcdef)", "learning_rate"),
        ),
        ({"missing": (1, 40)}, "weights_missing", ("stage 1", "40")),
        ({"missing": (1, 40), "rebuilt_in_s": 12.0, "online": {0: 1, 2: 2}}, "weights_missing", ("stage 1", "in 12 s")),
        ({"rebuilding": (1,), "online": {0: 1, 2: 2}}, "rebuilding", ("stage 1 is rebuilt", "41 iterations", "is lost.")),
        ({"rebuilding": (1,)}, None, ()),
        ({"waited_s": STALL_LEAST_S - 1, "pace_s": 0.0}, None, ()),
        ({"waited_s": 50.0, "pace_s": 20.0}, None, ()),
        (
            {"waited_s": 65.0, "doing": "waits for the redo of 2 microbatches"},
            "stalled",
            ("1 min", "2.0 s", "Iteration 41", "redo of 2"),
        ),
        (
            {"version": 0, "online": {0: 1, 1: 2, 2: 1}},
            "not_begun",
            ("(stage 2)", "1 data peer and 2 peers in each of 2"),
        ),
        ({"version": 0, "online": {0: 0, 1: 2, 2: 2}}, "not_begun", ("0 data peers",)),
        (
            {"version": 0, "stages": 1, "peers_per_stage": 1, "online": {0: 1, 1: 0}},
            "not_begun",
            ("1 data peer and 1 peer in the stage; online: 1 data peer,",),
        ),
        ({"skipped": 1, "most_skipped": 1}, "paused", ("the last step was skipped",)),
        ({"version": 1, "missing": (1, 1)}, "weights_missing", ("after 1 iteration.",)),
        ({"version": 0, "doing": "waits for 4 of 4 microbatches"}, None, ()),
        ({"version": 0, "doing": "waits for 4 of 4 microbatches", "waited_s": 99.0}, "not_begun", ("Iteration 0 waits for 4",)),
    ],
)
def test_what_is_said(changes: dict[str, object], code: str | None, words: tuple[str, ...]) -> None:
    stall = stall_of(replace(GOES_ON, **changes))  # type: ignore[arg-type]
    assert (stall.code if stall else None) == code
    assert stall is None or all(word in stall.text for word in words), stall.text
    assert stall is None or "(s)" not in stall.text
    assert stall is None or stall.alerts == (code != "not_begun"), "a run that has not begun calls nobody"


@pytest.mark.parametrize(
    ("count", "what", "said"),
    [
        (0, "peer", "0 peers"),
        (1, "peer", "1 peer"),
        (2, "data peer", "2 data peers"),
        (1, "microbatch", "1 microbatch"),
        (3, "microbatch", "3 microbatches"),
    ],
)
def test_how_many_are_said_as_people_say_it(count: int, what: str, said: str) -> None:
    assert counted(count, what) == said
