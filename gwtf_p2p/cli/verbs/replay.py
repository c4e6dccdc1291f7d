"""`gwtf replay EVENTS.jsonl`: runs a peer's event log (`--event_log`) through its state machine again, without a network.

The machine is composed from the settings at the beginning of the log and gets the same events at the same times. Exit code 0
when it answers with the same effects, 1 with the first difference, 2 when the file is no event log.

With `--draw FILE.html` nothing is run again: an iteration of the logs of several peers of one machine (`gwtf demo
--keep_logs`), or of a trace (`gwtf sim --trace FILE.jsonl`), becomes a page that plays it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.pictures import MOVING, bars_of_files, iteration_page
from gwtf_p2p.drawing.files import check_picture_path, write_picture
from gwtf_p2p.live.libp2p.audit_signing import verifier
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.replay.replay import Difference, Replayed, replay

SHOWN = 400
"""Characters of an effect that are printed; `--json` has it whole."""


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("replay", help="run an event log through its state machine again", description=__doc__)
    parser.add_argument("logs", metavar="EVENTS.jsonl", type=Path, nargs="+")
    parser.add_argument("--draw", type=Path, metavar="FILE.html", help="an iteration to play, of all these logs, or of a trace")
    parser.add_argument("--iteration", type=takes.whole(0), metavar="N", help="of --draw (default: the last), the first is 0")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Raises InputError for a file that cannot be read or is no event log."""
    if args.draw is not None:
        check_picture_path(args.draw, "--draw", (MOVING,))
        bars, stages = bars_of_files(args.logs)
        write_picture(args.draw, iteration_page(bars, stages, args.iteration, args.logs[0].name), "--draw")
        return 0
    if args.iteration is not None:
        raise InputError("--iteration", str(args.iteration), "expected --draw FILE.html with it")
    return max([_replay(path, args.json) for path in args.logs])


def _replay(path: Path, as_json: bool) -> int:
    from gwtf_p2p.live.libp2p.signing import verified

    try:
        with path.open(encoding="utf-8") as lines:
            replayed = replay(lines, str(path), verified, verifier)
    except UnicodeDecodeError as error:
        raise InputError(str(path), "", f"expected UTF-8 text, but {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise InputError(str(path), "", f"expected a readable file, but {error.strerror or error}") from error
    print(json.dumps(plain(replayed)) if as_json else "\n".join(told(replayed, path)))
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
