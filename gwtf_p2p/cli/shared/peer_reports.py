"""What a peer that runs in a terminal tells its user: one line when something happens that concerns them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def reporter(as_json: bool) -> Callable[[dict[str, Any]], None]:
    """Prints reports; with `as_json` each as one JSON object."""

    def tell(fields: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(fields), flush=True)
            return
        line = _line(fields)
        if line:
            print(line, flush=True)

    return tell


def _line(report: dict[str, Any]) -> str:
    match report["name"]:
        case "started":
            address = report["maddrs"][0] if report["maddrs"] else "-"
            return f"peer {report['peer']} is up; others can also join through {address}"
        case "waiting":
            reasons = "; ".join(f"{maddr}: {why}" for maddr, why in report["reasons"])
            return f"no initial peer answers, trying on for {report['seconds_left']:.0f} s: {reasons}"
        case "restarting":
            return f"{report['reason']}: starting again"
        case "path":
            kind = {"public": "direct"}.get(report["path"], report["path"])
            return f"path to {report['peer'][-6:]}: {kind}"
        case "online":
            where = f"stage {report['stage']}" if report["stage"] else f"shard {report['shard']}"
            return f"online in {where}, waiting for microbatches"
        case "joined":
            return f"that took {report['seconds']:.1f} s: {report['steps']}"
        case "stepped":
            share = f"{report['microbatches']} of {report['of']} microbatches were ours"
            return f"step {report['iteration'] + 1:4d}  loss {report['loss']:.4f}  {share}"
        case "evaluated":
            return (
                f"evaluated after {report['iteration']} steps: loss {report['loss']:.4f}, perplexity {report['perplexity']:.2f}"
            )
        case "evaluation_failed":
            return f"not evaluated after {report['iteration']} steps: {report['reason']}"
        case "recovery":
            return f"{report['kind']} recovery of {report['microbatch']}: {report['reason']}"
        case "peer_lost":
            return f"lost peer {report['peer'][-6:]}: {report['reason']}"
        case "average_failed":
            return f"average failed and is tried again: {report['reason']}"
        case "out_of_step":
            return f"out of step at version {report['version']}: {report['reason']}"
        case "run_complete":
            return f"the run is complete after {report['iterations']} steps (Ctrl+C leaves)"
        case _:
            return ""
