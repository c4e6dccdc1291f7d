"""`gwtf demo`: a local swarm of real peers trains a small model on real text, and one watches.

Every peer is a process of its own with its own p2pd and libp2p identity; they meet through the bootstrap peer's multiaddr, as
they would across the internet. Nothing leaves loopback.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.flags.names import COMMAND_LINE, naming_flags
from gwtf_p2p.cli.shared.churn import ChurnScript, parse_churn
from gwtf_p2p.cli.shared.churn_run import ChurnRun, faults_of
from gwtf_p2p.cli.shared.json_lines import note, to_json
from gwtf_p2p.cli.shared.local_run import LocalRun, LocalRunConfig, RunFailed
from gwtf_p2p.cli.shared.run_file import AUTO, check_settings, run_from_plain
from gwtf_p2p.monitor.terminal.local_view import local_view, progress_line
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.replica_sync import what_holds
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.protocol.wire.run_parts import WireSpec

WIRE_HELP = (
    "float32, bfloat16, float16, fp8, int8 or int4: how activations and their gradients travel between stages; "
    "int4 means int4 activations and int8 gradients, which bear less; auto is decided by the stated lines (default float32)"
)

REPLICA_SYNC_HELP = (
    "average the copies of a stage every N steps only, each step by its own gradient in between, when they differ (default: "
    "average gradients in each step)"
)

FLAGS = {
    **dict.fromkeys(("wire.activations", "wire.gradients"), "--wire"),
    "wire.averages": "--wire_averages",
    "wire.rank": "--wire_rank",
    "boundary.subspace": "--subspace",
    "replica_sync": "--replica_sync",
    "microbatches_per_data_peer": "--microbatches",
    "total_iterations": "--steps",
    "optimizer.learning_rate": "--learning_rate",
    "layer_split": "--stages",
    "model_config": "--model",
    "run_id": "--seed",
}
"""By which flag a field of the run is said; the others are called alike."""

POLL_S = 0.05
"""A churn script is carried out as often: a crash at a drawn moment of an iteration is no later."""

STALL_S = 120.0
NO_PROGRESS = ("figures", "stall")
"""What peers tell all the time, and what they tell when nothing happens."""

SHOWN_ROUTES = 6
WARMUP_STEPS = 10
CHECKPOINT_EVERY = 5


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("demo", help="train a small model on a local swarm of real peers", description=__doc__)
    add = parser.add_argument_group("swarm").add_argument
    add("--stages", type=takes.whole(1), default=3, help="pipeline stages of stage peers (default 3)")
    add(
        "--peers_per_stage",
        "--relays_per_stage",
        type=takes.whole(1),
        default=2,
        help="stage peers in each stage (default 2)",
    )
    add("--data_peers", type=takes.whole(1), default=2, help="data peers, one shard of the dataset each (default 2)")
    add("--churn", default="", metavar="SCRIPT", help="faults, such as 'kill peer stage=2 at=backward_received iter=3'")
    add = parser.add_argument_group("training").add_argument
    add("--steps", type=takes.whole(1), default=50, help="optimizer steps (default 50)")
    add("--model", default="tiny-llama", help="tiny-llama, tiny-gpt2, a config.json or a hub id")
    add("--dataset", default="stdlib", help="stdlib (this Python's library source), text:GLOB, or a hub name")
    add("--tokenizer", default="byte", help="byte, or a Hugging Face tokenizer's name")
    add("--router", default="gwtf", help="how microbatches find their way (default gwtf)")
    add("--recovery", default="exact", help="exact or fast (default exact)")
    add("--seed", type=takes.whole(0), default=0, help="of start weights, order of data and routers (default 0)")
    add("--microbatches", type=takes.whole(1), default=4, help="per data peer and step (default 4)")
    add(
        "--elastic_shares", metavar="N,N", help="the same of each data peer, where they differ: between half and one and a half"
    )
    add("--microbatch_size", type=takes.whole(1), default=4, help="sequences in a microbatch (default 4)")
    add("--sequence_length", type=takes.whole(1), default=128, help="tokens in a sequence (default 128)")
    add("--learning_rate", type=takes.number(0, above=True), default=1.5e-3, help="peak (default 0.0015)")
    add("--torch_dtype", type=takes.torch_dtype, default="float32", help="float32 or bfloat16: how peers compute")
    add("--device", type=takes.device, default="cpu", help="cpu, cuda or cuda:N")
    add("--wire", "--wire_dtype", default="float32", help=WIRE_HELP)
    add(
        "--wire_averages",
        help="float32 (default), float16, int8 or powersgd (both with error feedback): gradients in an average",
    )
    add("--wire_rank", type=takes.whole(1), help="columns of powersgd's thin matrices (default 32)")
    add("--replica_sync", type=takes.whole(2), default=0, metavar="N", help=REPLICA_SYNC_HELP)
    add("--subspace", type=takes.whole(2), default=0, metavar="N", help="another model: N times fewer values cross for a token")
    add("--thin_data_peers", action="store_true", help="data peers hold no weights: the first and the last stage do")
    add("--delay_optimizer_step", action="store_true", help="the next step is computed while one is averaged")
    add = parser.add_argument_group("state").add_argument
    add(
        "--checkpoint_dir",
        type=takes.folder,
        metavar="DIR",
        help="write every stage's checkpoints there, and resume from them",
    )
    add = parser.add_argument_group("limits").add_argument
    add("--capacity", type=takes.capacity, default=4, help="most microbatches that a stage peer holds at once (default 4)")
    add = parser.add_argument_group("diagnostics").add_argument
    add("--keep_logs", type=takes.folder, metavar="DIR", help="keep every peer's log and event log there")
    add("--json", action="store_true", help="one JSON object on stdout, progress on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every step was committed."""
    out = sys.stderr if args.json else sys.stdout
    peers = f"1 bootstrap peer, {args.data_peers} data peers, {args.stages * args.peers_per_stage} stage peers"
    with naming_flags(FLAGS):
        check_settings(plain_run(args), COMMAND_LINE)
    script = _churn_of(args)
    print(f"gwtf demo: {peers} in {args.stages} stages on this machine ({args.model}, {args.dataset})", file=out, flush=True)
    note("reading the run's settings: loads torch and transformers, which takes some seconds")
    with naming_flags(FLAGS):
        record = run_from_plain(plain_run(args), COMMAND_LINE)
    if record.replica_sync:
        print(what_holds(record.replica_sync), file=out, flush=True)
    with ExitStack() as stack:
        folder = args.keep_logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwtf-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        return _Demo(args, record, folder, script).run()


def plain_run(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the demo's run, as in a run file."""
    names = ("stages", "peers_per_stage", "data_peers", "model", "dataset", "tokenizer", "router", "recovery", "seed")
    plain = {name: getattr(args, name) for name in (*names, "sequence_length", "microbatch_size")}
    plain["wire"] = _wire(args)
    plain["boundary"] = {"subspace": args.subspace}
    plain["thin_data_peers"] = args.thin_data_peers
    plain["delay_optimizer_step"] = args.delay_optimizer_step
    plain["microbatches_per_data_peer"] = args.microbatches
    plain["elastic_shares"] = _shares(args.elastic_shares)
    plain["total_iterations"] = args.steps
    plain["checkpoint_every"] = -(-CHECKPOINT_EVERY // every) * every if (every := args.replica_sync) else CHECKPOINT_EVERY
    plain["replica_sync"] = args.replica_sync
    plain["optimizer"] = {"learning_rate": args.learning_rate, "warmup_iterations": WARMUP_STEPS}
    return {"run_id": f"demo-{args.seed}", **plain}


def _shares(text: str | None) -> list[int]:
    """Raises InputError."""
    try:
        return [int(word) for word in text.split(",")] if text else []
    except ValueError as error:
        raise InputError(
            "--elastic_shares", str(text), "expected whole numbers with commas between them, such as 3,5"
        ) from error


def _wire(args: argparse.Namespace) -> dict[str, Any] | str:
    """Raises InputError where all is to be decided, and something is said."""
    said = {"averages": args.wire_averages, "rank": args.wire_rank}
    if args.wire != AUTO:
        named = WireSpec.named(args.wire, args.wire_averages or WireSpec().averages)
        return {**asdict(named), "rank": args.wire_rank or WireSpec().rank}
    for name, value in said.items():
        if value is not None:
            raise InputError(f"--wire_{name}", str(value), f"expected it without --wire {AUTO}, which decides it")
    return AUTO


def _churn_of(args: argparse.Namespace) -> ChurnScript:
    """The checked script. Raises InputError for peers that the demo does not have."""
    from gwtf_p2p.live.emulation.faults import ALL_MOMENTS

    script = parse_churn(args.churn, ALL_MOMENTS)
    for step in script.steps:
        peers = args.peers_per_stage if step.role == "stage" else args.data_peers
        known = step.role == "bootstrap" or step.verb in ("join", "restart") or step.index < peers
        if not known or not 1 <= step.stage <= args.stages or step.iteration >= args.steps:
            raise InputError("--churn", str(step), "no such peer, stage or step in this demo")
    return script


class _Demo:
    """One demo from the first process to the summary."""

    def __init__(self, args: argparse.Namespace, record: RunRecord, folder: Path, script: ChurnScript) -> None:
        self.args, self.record = args, record
        self.out = sys.stderr if args.json else sys.stdout
        config = LocalRunConfig(
            data_peers=args.data_peers,
            peers_per_stage=args.peers_per_stage,
            capacity=args.capacity,
            device=args.device,
            torch_dtype=args.torch_dtype,
            checkpoint_dir=args.checkpoint_dir,
            event_logs=bool(args.keep_logs),
        )
        stage_peers = [f"stage{k + 1}.{i}" for k in range(record.stages) for i in range(args.peers_per_stage)]
        names = [*stage_peers, *(f"data{i}" for i in range(args.data_peers))]
        self.local = LocalRun(config, record, folder, faults_of(script, names, folder))
        self.state = self.local.state
        self.churn = ChurnRun(script, self.local, args.seed, self._say)
        self._told: set[int] = set()
        self._said_online = False
        self._pause = ""

    def run(self) -> int:
        failure, code = "", 1
        try:
            self._start()
            failure = self._watch()
            self.local.hear_last_figures()
        except RunFailed as error:
            failure = str(error)
        except KeyboardInterrupt:
            failure, code = "interrupted", 130
        finally:
            self.local.stop()
        accounting = self.state.accounting()
        if not failure and self.churn.missed:
            failure = f"did not come about: {'; '.join(self.churn.missed)}"
        if not failure and accounting["lost"] + accounting["double_counted"]:
            failure = f"the ledger does not add up: {accounting}"
        self._summary(failure)
        return code if failure else 0

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def _start(self) -> None:
        self._say("starting the bootstrap peer, and the process that all others are forked from")
        self.local.begin()
        if waiting := len(self.local.swarm.queued):
            self._say(f"peers start in turn, {self.local.swarm.turns.at_once} at once: {waiting} wait for theirs")
        self._say(f"join with --initial_peers {self.local.initial_peer()} --run_id {self.record.run_id}")

    # ---- watching

    def _watch(self) -> str:
        """Until every data peer has done its steps; returns why not, or nothing."""
        from rich.console import Console, Group
        from rich.live import Live

        console = Console(file=self.out)
        progress_at = time.monotonic()
        with ExitStack() as stack:
            live = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
            while not self.local.finished(self.args.steps):
                heard = self.local.poll(POLL_S)
                for name, report in heard:
                    self._heard(name, report)
                if any(report["name"] not in NO_PROGRESS for _, report in heard):
                    progress_at = time.monotonic()
                self.churn.tick()
                if news := self.local.start_news():
                    self._say(news)
                if time.monotonic() - progress_at > STALL_S:
                    return f"nothing happened for {STALL_S:.0f} s; the peers' logs: --keep_logs DIR"
                if live is not None:
                    size = console.size
                    lines = local_view(self.state, self.local.lines, self.args.steps, (size.width, size.height - 1))
                    live.update(Group(*lines), refresh=True)
                else:
                    self._plain()
        return ""

    def _heard(self, name: str, report: Mapping[str, Any]) -> None:
        if report["name"] == "fault" and report["moment"] != "any":
            self.churn.fired(name, report["moment"], report["iteration"])
            self._say(f"{report['action']} {name} at {report['moment']} in step {report['iteration'] + 1}")
        elif report["name"] == "joined" and self.state.ended_at:
            self._say(f"{name} joined in {report['seconds']:.1f} s ({report['steps']})")
        if self.local.online_s and not self._said_online:
            self._said_online = True
            self._say(f"all {len(self.local.lines)} peers online after {self.local.online_s:.1f} s")
        if self.state.pause != self._pause:
            self._pause = self.state.pause
            self._say(self._pause or "training goes on: every stage has a peer again")

    def _plain(self) -> None:
        for iteration in sorted(set(self.state.ended_at) - self._told):
            self._say(progress_line(self.state, iteration))
            self._told.add(iteration)

    # ---- the end

    def _summary(self, failure: str) -> None:
        if self.out is sys.stderr or not self.out.isatty():
            self._plain()
        if self.args.json:
            print(to_json({**self._plain_summary(), **({"failure": failure.splitlines()[0]} if failure else {})}))
        else:
            self._tell_summary()
        if failure:
            print(f"gwtf demo: {failure}", file=sys.stderr)

    def _plain_summary(self) -> dict[str, Any]:
        state = self.state
        losses = state.known_losses()
        return {
            "steps": state.iterations,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "losses": losses,
            "tokens_per_second": round(state.tokens_per_second(), 1),
            "iteration_seconds": [round(s, 4) for s in state.iteration_seconds()],
            "router": self.record.router,
            "peers": len(self.local.lines),
            "seconds_to_online": round(self.local.online_s, 2),
            "microbatches": state.accounting(),
            "withdrawn": state.withdrawn,
            "recoveries": dict(state.recoveries),
            "recovery": state.recovery.plain(),
            "bytes": state.traffic.plain(),
            "churn": {"crashes": self.churn.churn.crashes, "returns": self.churn.churn.returns},
            "joined_seconds": {name: round(s, 2) for name, s in state.joined_s.items()},
            "wall_seconds": round(time.monotonic() - self.local.began, 2),
        }

    def _tell_summary(self) -> None:
        state = self.state
        losses, seconds = state.known_losses(), state.iteration_seconds()
        for route, count in state.routes.most_common(SHOWN_ROUTES):
            self._say(f"route {' → '.join(('data', *route, 'data'))}: {count} microbatches")
        if losses:
            self._say(
                f"{state.iterations} steps: loss {losses[0]:.4f} → {losses[-1]:.4f}, {state.tokens_per_second():.0f} tokens/s, "
                f"median step {statistics.median(seconds):.2f} s"
            )
        for line in (*state.recovery.lines(), *state.traffic.lines()):
            self._say(line)
        accounting = state.accounting()
        recoveries = ", ".join(f"{kind} {count}" for kind, count in sorted(state.recoveries.items())) or "none"
        self._say(
            f"microbatches done {accounting['done']}, retried {accounting['retried']}, recoveries {recoveries}, "
            f"microbatches lost {accounting['lost']}, double-counted {accounting['double_counted']}; "
            f"{time.monotonic() - self.local.began:.0f} s in all"
        )
