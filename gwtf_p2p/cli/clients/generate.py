"""`gwtf generate --run_id R PROMPT`: go on with a text by the current weights of a running swarm, through its peers.

It joins for as long as it takes and takes no part in training. The text goes to stdout as it comes, the speed to stderr. Prompt
and text together have at most the run's `sequence_length` tokens, and every token costs a forward of a whole microbatch.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.json_lines import note, to_json
from gwtf_p2p.cli.shared.observing import add_observer_flags, initial_peers_of, run_ids_of
from gwtf_p2p.cli.shared.peer_flags import serve

if TYPE_CHECKING:
    from gwtf_p2p.live.peer.config import PeerConfig

MOST_TOKENS = 1 << 20
UNFINISHED = "\ufffd"
"""Stands at the end of a text of which the next token brings the rest of a character."""


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    summary = "go on with a text: the running swarm's current weights, through its peers"
    parser = subparsers.add_parser("generate", help=summary, description=__doc__)
    add = parser.add_argument
    add("prompt", help="what the text begins with; may be empty")
    add_observer_flags(parser, once=False)
    add(
        "--temperature",
        type=takes.number(0),
        default=0.0,
        help="0 (default): the likeliest token each time; else they are drawn",
    )
    add(
        "--top_p",
        type=takes.number(0, 1, above=True),
        default=1.0,
        help="draw from the likeliest tokens of this share (default 1)",
    )
    add("--seed", type=takes.whole(0, (1 << 63) - 1), default=0, help="of the draws (default 0)")
    add("--max_new_tokens", type=takes.whole(1, MOST_TOKENS), help="end after so many (default: as many as there is room for)")
    add("--timeout", type=takes.seconds, default=60.0, metavar="SECONDS", help="wait so long for the run (default 60)")
    add("--device", type=takes.device, default="cpu", help="cpu, cuda or cuda:N, for embedding and head")
    identity = "identity file, for runs that list their peers (default: a passing identity)"
    add("--identity_path", type=takes.file, metavar="FILE", help=identity)
    path = "a file or folder of this machine that the run names as its weights or tokenizer; repeatable"
    add("--allow_path", action="append", default=[], metavar="PATH", help=path)
    add("--json", action="store_true", help="one JSON object on stdout, at the end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the text. Raises InputError."""
    run_ids_of(args)
    with tempfile.TemporaryDirectory(prefix="gwtf-generate-") as folder:
        config = config_of(args, Path(folder))
        from gwtf_p2p.live.clients.generate import Asked, generate
        from gwtf_p2p.live.text.sampling import Sampling

        asked = Asked(args.prompt, Sampling(args.temperature, args.top_p, args.seed, args.max_new_tokens))
        printer = _Printer(as_json=args.json)
        code = serve(config, args, printer, partial(generate, asked=asked))
        return code if code or printer.is_done else 130


def config_of(args: argparse.Namespace, folder: Path) -> PeerConfig:
    """What the flags say; an identity that they don't name passes, in `folder`. Raises InputError."""
    peers = initial_peers_of(args)
    note("loads torch and transformers: this takes some seconds")
    from gwtf_p2p.live.libp2p.options import P2POptions
    from gwtf_p2p.live.peer.config import PeerConfig
    from gwtf_p2p.protocol.ids import RunId
    from gwtf_p2p.training.compute.config import ExecutorConfig
    from gwtf_p2p.training.compute.device import resolve_device

    resolve_device(args.device)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = P2POptions(peers, ("/ip4/0.0.0.0/tcp/0",), dht_mode="client", nat_port_map=False, check_identity=False)
    return PeerConfig(
        role="client",
        options=options,
        identity_path=args.identity_path or folder / "identity.key",
        run_id=RunId(args.run_id),
        run_owner=args.run_owner,
        token=args.token or "",
        local_files=tuple(args.allow_path),
        executor=ExecutorConfig(args.device),
        join_timeout_s=args.timeout,
    )


class _Printer:
    """Prints a text as it comes, or one object at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._printed, self.is_done = as_json, "", False

    def __call__(self, report: dict[str, Any]) -> None:
        match report["name"]:
            case "text_so_far" if not self._as_json:
                self._go_on(str(report["text"]).rstrip(UNFINISHED))
            case "text":
                self.is_done = True
                self._end(report)
            case _:
                pass

    def _go_on(self, text: str) -> None:
        """What is printed stays, so a tokenizer that takes something back (a space before a full stop) loses no text behind."""
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, self._printed, strict=False)))
        print(text[kept:], end="", flush=True)
        self._printed = text

    def _end(self, report: dict[str, Any]) -> None:
        if self._as_json:
            print(to_json({name: value for name, value in report.items() if name != "name"}))
            return
        self._go_on(str(report["text"]))
        print(flush=True)
        versions = " to ".join(str(version) for version in dict.fromkeys((report["versions"][0], report["versions"][-1])))
        told = f"{len(report['tokens'])} tokens in {report['seconds']:.1f} s, {report['tokens_per_s']:.2f} tokens/s"
        print(f"{told}; weights after {versions} iterations", file=sys.stderr)
