"""What a peer tells of its progress: times of routes, also of what had gone on its way before its iteration began."""

from __future__ import annotations

from typing import Any

from gwtf_p2p.live.measure.run_progress import Progress


def done(index: int, iteration: int) -> dict[str, Any]:
    return {"microbatch": f"data_0/{iteration}/{index}", "loss": 1.0, "route": ["one", "two"]}


def test_what_has_gone_ahead_of_its_iteration_is_timed_and_what_is_over_is_forgotten() -> None:
    progress = Progress()
    progress.hear("injected", {"microbatch": "data_0/0/1"}, 0.0)
    progress.hear("injected", {"microbatch": "data_0/1/0"}, 2.0)
    progress.hear("iteration_begins", {"iteration": 1}, 5.0)
    progress.hear("microbatch_done", done(0, 1), 6.0)
    progress.hear("microbatch_done", done(1, 0), 6.0)
    assert list(progress.route_seconds().values()) == [4.0]
