"""`gwtf VERB`: finds the verb's module, parses, runs, and turns the user's mistakes into one line and an exit code.

Exit codes: 0 clean, 1 a run that failed or a replay that differs, 2 usage or bad input, 3 network unreachable,
4 identity in use, 5 run mismatch, 6 resources, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from gwtf_p2p.cli.flags.config_file import expand
from gwtf_p2p.cli.process.outcome import outcome
from gwtf_p2p.version import VERSION

VERBS = {
    "demo": "train a small model on a local swarm of real peers",
    "bootstrap": "bootstrap peer: rendezvous for a swarm",
    "data": "data peer: holds a shard of the dataset, the embedding, the head and the loss",
    "peer": "stage peer: holds one stage of the model",
    "pause": "peers of this machine wait, and hand over what they hold",
    "resume": "peers of this machine that were paused go on",
    "doctor": "can this machine take part? clock, ports, NAT, circuit relays, megabytes, memory, device",
    "plan": "plan the flows of a problem file, without a network",
    "replay": "run a peer's event log through its state machine again",
    "sim": "run a scenario in virtual time",
    "monitor": "watch a running swarm: terminal, web page, metrics",
    "top": "a running swarm on the whole screen, with a keyboard",
    "routes": "the plan of a running swarm: flows, predicted and measured time",
    "ledger": "who has contributed what to a run, in committed microbatches",
    "ab": "compare routers on one scenario, simulated or live, and write the report",
    "run": "run files: check one, print their schema; runs: list them (also: gwtf runs), gwtf ban and gwtf allow peers",
    "generate": "go on with a text: the running swarm's current weights, through its peers",
    "export": "assemble checkpoints into a folder that transformers loads",
    "id": "show, create or back up this machine's identity",
}


LOOKS = ("ledger", "routes")
"""Verbs that print what they see of a running swarm; their modules are in a folder of their own."""

CLIENTS = ("generate",)
"""Verbs that ask a swarm for something, and take no part in it."""

OLDER_VERBS = {"dht": "bootstrap", "route": "plan"}
"""Spellings of older releases, which go on working."""


SHORT = {"runs": ("run", "list"), "ban": ("run", "ban"), "allow": ("run", "allow")}
"""Verbs that are an action of another one."""


LOCAL = ("pause", "resume")
"""Verbs of 'cli/local'."""


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line; dashes in flags are accepted for underscores, the first letters of a flag for the flag are not:
    who reads a unit or a script is to know what it says, and a release that has a flag more is to read it as before."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def verb_module(verb: str) -> ModuleType:
    """The module of a verb, imported only when it is asked for."""
    room = "local" if verb in LOCAL else "verbs.looks" if verb in LOOKS else "clients" if verb in CLIENTS else "verbs"
    return importlib.import_module(f"gwtf_p2p.cli.{room}.{verb}")


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """Only the chosen verb's module is imported: `gwtf plan` needs neither torch nor hivemind."""
    parser = _Parser(prog="gwtf", description="Train a language model on strangers' computers, peer to peer.")
    parser.add_argument("--version", action="version", version=f"gwtf_p2p {VERSION}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, summary in VERBS.items():
        if name == verb:
            verb_module(name).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `gwtf` and `python -m gwtf_p2p`; returns the exit code."""
    arguments = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb in OLDER_VERBS:
        arguments[arguments.index(verb)] = verb = OLDER_VERBS[verb]
    typed = verb
    if verb in SHORT:
        at = arguments.index(verb)
        arguments[at : at + 1] = SHORT[verb]
        verb = arguments[at]
    atexit.register(gc.freeze)  # the interpreter's last collection goes through all of torch, for seconds, to free nothing
    return outcome(typed, lambda: _run(verb, typed, arguments))


def _run(verb: str | None, typed: str | None, arguments: list[str]) -> int:
    parser = build_parser(verb)
    of_verb = _typed_parser(parser, verb, typed)
    if verb is None and not arguments:
        parser.print_help(sys.stderr)
        return 2
    if verb in VERBS:
        arguments = expand(arguments, _verb_parser(parser, verb))
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        of_verb.error(f"unrecognized arguments: {' '.join(unknown)}")
    code: int = args.run(args)
    return code


def _typed_parser(parser: argparse.ArgumentParser, verb: str | None, typed: str | None) -> argparse.ArgumentParser:
    """Whose errors are told; that of a verb which is an action of another one says the word that was typed."""
    if verb not in VERBS:
        return parser
    found = _verb_parser(parser, verb)
    if typed in SHORT:
        found = _verb_parser(found, SHORT[typed][1])
        found.prog = f"gwtf {typed}"
    return found


def _verb_parser(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    by_verb = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    chosen: argparse.ArgumentParser = by_verb[verb]
    return chosen


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value
