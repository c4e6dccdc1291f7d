"""Why training stands still, in one sentence: table of what is seen, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gwtf_p2p.protocol.stall.rules import STALL_LEAST_S, Situation, stall_of

REDO = "waits for the redo of 2 microbatch(es)"
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
            {"waited_s": 65.0, "doing": "waits for the redo of 2 microbatch(es)"},
            "stalled",
            ("1 min", "2.0 s", "Iteration 41", "redo of 2"),
        ),
        ({"version": 0, "online": {0: 1, 1: 2, 2: 1}}, "not_begun", ("(stage 2)", "2 peer(s) in each")),
        ({"version": 0, "online": {0: 0, 1: 2, 2: 2}}, "not_begun", ("0 data peer(s)",)),
        ({"version": 0, "doing": "waits for 4 of 4 microbatches"}, None, ()),
        ({"version": 0, "doing": "waits for 4 of 4 microbatches", "waited_s": 99.0}, "not_begun", ("Iteration 0 waits for 4",)),
    ],
)
def test_what_is_said(changes: dict[str, object], code: str | None, words: tuple[str, ...]) -> None:
    stall = stall_of(replace(GOES_ON, **changes))  # type: ignore[arg-type]
    assert (stall.code if stall else None) == code
    assert stall is None or all(word in stall.text for word in words), stall.text
    assert stall is None or stall.alerts == (code != "not_begun"), "a run that has not begun calls nobody"
