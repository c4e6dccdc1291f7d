"""`experiments/scenarios/large.toml` with other counts: the shape of a swarm stays, its size changes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

LARGE = Path(__file__).parents[1] / "scenarios" / "large.toml"
STAGE_PEERS_OF_A_DATA_PEER = 50
CRASHES, RETURNS = 0.1, 0.5
"""Per iteration: of each stage peer to crash, and of each crashed one to come back."""


def scaled(stage_peers: int, iterations: int) -> dict[str, Any]:
    """The scenario with about so many stage peers: equally many in each stage, and a data peer for each fifty."""
    scenario = tomllib.loads(LARGE.read_text())
    in_stage = max(1, round(stage_peers / scenario["model"]["stages"]))
    scenario["name"] = f"large_{stage_peers}"
    scenario["iterations"], scenario["warmup_iterations"] = iterations, min(1, iterations - 1)
    scenario["links"]["table"] = str(LARGE.parent / scenario["links"]["table"])
    for group in scenario["peers"]:
        if group["role"] == "data":
            group["count"] = max(1, stage_peers // STAGE_PEERS_OF_A_DATA_PEER)
        else:
            group["count_per_stage"] = in_stage
    scenario["churn"] = {"crash_probability_per_iteration": CRASHES, "rejoin_probability_per_iteration": RETURNS}
    return scenario


def to_toml(scenario: dict[str, Any]) -> str:
    """Fields, then tables, then lists of tables; values are those that TOML and JSON write alike."""
    lines = [_field(name, value) for name, value in scenario.items() if not _is_table(value) and not _is_tables(value)]
    for name, value in scenario.items():
        for heading, table in [(f"[[{name}]]", item) for item in value] if _is_tables(value) else [(f"[{name}]", value)]:
            if _is_table(table):
                lines += ["", heading, *(_field(*pair) for pair in table.items())]
    return "\n".join(lines) + "\n"


def _field(name: str, value: object) -> str:
    return f"{name} = {json.dumps(value)}"


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))
