"""`gwtf replay EVENTS.jsonl`: runs a peer's event log (`--event_log`) through its state machine again, without a network.

The machine is composed from the settings at the beginning of the log and gets the same events at the same times. Exit code 0
when it answers with the same effects, 1 with the first difference, 2 when the file is no event log.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.replay.replay import Difference, Replayed, replay

SHOWN = 400
"""Characters of an effect that are printed; `--json` has it whole."""


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("replay", help="run an event log through its state machine again", description=__doc__)
    parser.add_argument("log", metavar="EVENTS.jsonl", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises InputError for a file that cannot be read or is no event log."""
    path: Path = args.log
    try:
        with path.open(encoding="utf-8") as lines:
            replayed = replay(lines, str(path))
    except UnicodeDecodeError as error:
        raise InputError(str(path), "", f"expected UTF-8 text, but {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise InputError(str(path), "", f"expected a readable file, but {error.strerror or error}") from error
    print(json.dumps(plain(replayed)) if args.json else "\n".join(told(replayed, path)))
    return 1 if replayed.difference else 0


def plain(replayed: Replayed) -> dict[str, object]:
    """The JSON object."""
    found = replayed.difference
    difference = None
    if found is not None:
        expected = {"effects": found.expected, "raised": found.expected_raised}
        got = {"effects": found.got, "raised": found.got_raised}
        where = {"line": found.line, "event": found.event, "now": found.now, "first": found.first}
        difference = {**where, "expected": expected, "got": got}
    return {"same_events": replayed.events, "machines": replayed.machines, "torn": replayed.torn, "difference": difference}


def told(replayed: Replayed, path: Path) -> list[str]:
    """For people."""
    found = replayed.difference
    if found is not None:
        return _difference(found, path, replayed.events)
    torn = ["the last line is not whole (the peer was killed while it wrote), and was left out"] if replayed.torn else []
    return [f"same effects: {replayed.events} events", *torn]


def _difference(found: Difference, path: Path, before: int) -> list[str]:
    lines = [f"{path}:{found.line}: {found.event} at {found.now:.6f} s, after {before} events with the same effects"]
    if found.expected_raised != found.got_raised:
        return [*lines, f"  expected {found.expected_raised or 'no failure'}", f"  got      {found.got_raised or 'no failure'}"]
    lines.append(f"  effect {found.first + 1} of {len(found.expected)} in the log, of {len(found.got)} now")
    expected, got = (side[found.first] if found.first < len(side) else None for side in (found.expected, found.got))
    return [*lines, f"  expected {_shown(expected)}", f"  got      {_shown(got)}"]


def _shown(effect: dict[str, Any] | None) -> str:
    if effect is None:
        return "nothing more"
    text = json.dumps(effect)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
