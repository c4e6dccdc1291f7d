"""`gwtf demo`: a local swarm of real peers trains a small model on real text, and one watches.

Every peer is a process of its own with its own p2pd and libp2p identity; they meet through the bootstrap peer's multiaddr, as
they would across the internet. Nothing leaves loopback.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.churn import ChurnStep, parse_churn
from gwtf_p2p.cli.run_file import run_from_plain
from gwtf_p2p.monitor.run_state import RunState
from gwtf_p2p.monitor.terminal import PeerLine, progress_line, render
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.records import RunRecord
from gwtf_p2p.protocol.routers.factory import router_kind

if TYPE_CHECKING:
    from gwtf_p2p.live.local_swarm import LocalSwarm

START_DEADLINE_S = 60.0
STALL_S = 120.0
SHOWN_ROUTES = 6
WARMUP_STEPS = 10
CHECKPOINT_EVERY = 5


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("demo", help="train a small model on a local swarm of real peers", description=__doc__)
    number = parser.add_argument
    number("--stages", type=int, default=3, help="pipeline stages of relay peers (default 3)")
    number("--relays_per_stage", type=int, default=2, help="relay peers in each stage (default 2)")
    number("--data_peers", type=int, default=2, help="data peers, one shard of the dataset each (default 2)")
    number("--steps", type=int, default=50, help="optimizer steps (default 50)")
    number("--model", default="tiny-llama", help="tiny-llama, tiny-gpt2, a config.json or a hub id")
    number("--dataset", default="stdlib", help="stdlib (this Python's library source), text:GLOB, or a hub name")
    number("--tokenizer", default="byte", help="byte, or a Hugging Face tokenizer's name")
    number("--router", default="gwtf", help="how microbatches find their way (default gwtf)")
    number("--recovery", default="exact", help="exact or fast (default exact)")
    number("--seed", type=int, default=0)
    number("--microbatches", type=int, default=4, help="per data peer and step (default 4)")
    number("--microbatch_size", type=int, default=4, help="sequences in a microbatch (default 4)")
    number("--sequence_length", type=int, default=128, help="tokens in a sequence (default 128)")
    number("--capacity", type=int, default=4, help="most microbatches that a relay holds at once (default 4)")
    number("--learning_rate", type=float, default=1.5e-3)
    number("--wire_dtype", default="float32", help="float32 or bfloat16: activations on the wire")
    number("--torch_dtype", default="float32", help="float32 or bfloat16: how peers compute")
    number("--device", default="cpu", help="cpu, cuda or cuda:N")
    number("--churn", default="", metavar="SCRIPT", help="faults, such as 'kill relay stage=2 at=backward_received iter=3'")
    number("--checkpoint_dir", type=Path, metavar="DIR", help="write every stage's checkpoints there, and resume from them")
    number("--keep_logs", type=Path, metavar="DIR", help="keep every peer's log and event log there")
    number("--json", action="store_true", help="one JSON object on stdout, progress on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every step was committed."""
    for name in ("stages", "relays_per_stage", "data_peers", "steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}", str(getattr(args, name)), "expected a whole number above 0")
    from gwtf_p2p.training.data import open_data

    record = run_from_plain(plain_run(args), "command line")
    router_kind(args.router)
    if record.dataset.startswith("text:"):
        open_data(record)  # a wrong pattern is told here, not by a data peer half a minute later
    with ExitStack() as stack:
        folder = args.keep_logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwtf-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        return _Demo(args, record, folder).run()


def plain_run(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the demo's run, as in a run file."""
    names = ("stages", "relays_per_stage", "data_peers", "model", "dataset", "tokenizer", "router", "recovery", "seed")
    plain = {name: getattr(args, name) for name in (*names, "sequence_length", "microbatch_size", "wire_dtype")}
    plain["microbatches_per_data_peer"] = args.microbatches
    plain["total_iterations"] = args.steps
    plain["optimizer"] = {"learning_rate": args.learning_rate, "warmup_iterations": WARMUP_STEPS}
    return {"run_id": f"demo-{args.seed}", **plain}


def _churn_of(args: argparse.Namespace) -> list[ChurnStep]:
    """The checked script. Raises InputError for peers that the demo does not have."""
    from gwtf_p2p.live.faults import MOMENTS

    steps = parse_churn(args.churn, MOMENTS)
    for step in steps:
        peers = args.relays_per_stage if step.role == "relay" else args.data_peers
        known = step.verb == "join" or step.index < peers
        if not known or not 1 <= step.stage <= args.stages or step.iteration >= args.steps:
            raise InputError("--churn", str(step), "no such peer, stage or step in this demo")
    return steps


class _Demo:
    """One demo from the first process to the summary."""

    def __init__(self, args: argparse.Namespace, record: RunRecord, folder: Path) -> None:
        self.args, self.record, self.folder = args, record, folder
        self.out = sys.stderr if args.json else sys.stdout
        self.state = RunState(
            stages=record.stages,
            expected=record.data_peers * record.microbatches_per_data_peer,
            tokens_per_microbatch=record.microbatch_size * record.sequence_length,
        )
        self.lines: dict[str, PeerLine] = {}
        self.complete: set[str] = set()
        self.began = time.monotonic()
        self.online_s = 0.0
        self.churn = _churn_of(args)
        self.came_about: set[ChurnStep] = set()
        self.maddr = ""
        self._told: set[int] = set()

    def run(self) -> int:
        from gwtf_p2p.live.local_swarm import LocalSwarm

        swarm = LocalSwarm(self.folder)
        failure = ""
        code = 1
        try:
            failure = self._start(swarm) or self._watch(swarm)
        except KeyboardInterrupt:
            failure, code = "interrupted", 130
        finally:
            swarm.stop()
        accounting = self.state.accounting()
        missed = [str(step) for step in self.churn if step not in self.came_about]
        if not failure and missed:
            failure = f"did not come about: {'; '.join(missed)}"
        if not failure and accounting["lost"] + accounting["double_counted"]:
            failure = f"the ledger does not add up: {accounting}"
        self._summary(failure)
        return code if failure else 0

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    # ---- starting

    def _start(self, swarm: LocalSwarm) -> str:
        """Returns why not, or nothing."""
        args = self.args
        relays = args.stages * args.relays_per_stage
        self._say(
            f"starting 1 bootstrap peer, {args.data_peers} data peers and {relays} relay peers in {args.stages} stages "
            f"({args.model}, {args.dataset}, router {args.router})"
        )
        self.lines["bootstrap"] = PeerLine("bootstrap", -1)
        swarm.start("bootstrap", self._config("dht", "bootstrap"))
        started = swarm.wait_for("bootstrap", "started", START_DEADLINE_S)
        if started is None:
            return f"the bootstrap peer did not start\n{_tail(self.folder / 'bootstrap.log')}"
        self._hear("bootstrap", started)
        self.lines["bootstrap"].state = "online"
        self.maddr = maddr = started["maddrs"][0]
        self._say(f"join with --initial_peers {maddr} --run_id {self.record.run_id}")
        for shard in range(args.data_peers):
            self.lines[f"data{shard}"] = PeerLine("data", 0)
            swarm.start(f"data{shard}", self._config("data", f"data{shard}", maddr, shard=shard))
        for stage in range(1, args.stages + 1):
            for number in range(args.relays_per_stage):
                name = f"relay{stage}.{number}"
                self.lines[name] = PeerLine("relay", stage)
                swarm.start(name, self._config("peer", name, maddr, stage=stage))
        return ""

    def _config(self, role: str, name: str, maddr: str = "", stage: int | None = None, shard: int | None = None) -> Any:
        from gwtf_p2p.live.checkpoints import CheckpointOptions
        from gwtf_p2p.live.maddrs import parse_initial_peer
        from gwtf_p2p.live.p2p import P2POptions
        from gwtf_p2p.live.peer_config import PeerConfig
        from gwtf_p2p.training.executor import ExecutorConfig

        peers = (parse_initial_peer(maddr),) if maddr else ()
        return PeerConfig(
            role=role,
            options=P2POptions(initial_peers=peers, auto_nat=False, nat_port_map=False, check_identity=False),
            identity_path=self.folder / f"{name}.key",
            run_id=self.record.run_id,
            new_run=self.record if shard == 0 else None,
            stage=stage,
            shard=shard,
            capacity=self.args.capacity,
            executor=ExecutorConfig(self.args.device, self.args.torch_dtype),
            threads=1,
            checkpoints=CheckpointOptions(self.args.checkpoint_dir, CHECKPOINT_EVERY),
            fault=self._fault_of(name),
            event_log=self.folder / f"{name}.events.jsonl" if self.args.keep_logs else None,
        )

    # ---- churn

    def _fault_of(self, name: str) -> Any:
        from gwtf_p2p.live.faults import Fault

        step = next((s for s in self.churn if s.verb != "join" and s.target == name), None)
        return Fault(step.verb, step.moment, step.iteration) if step else None

    def _fault_fired(self, name: str, report: Mapping[str, Any]) -> None:
        self.lines[name].state = "killed" if report["action"] == "kill" else "frozen"
        self.came_about |= {s for s in self.churn if s.target == name and s.moment == report["moment"]}
        self._say(f"{report['action']} {name} at {report['moment']} in step {report['iteration'] + 1}")

    def _joins(self, swarm: LocalSwarm) -> None:
        """Start the newcomers whose step has begun."""
        for step in self.churn:
            if step.verb == "join" and step not in self.came_about and step.iteration in self.state.begun_at:
                self.came_about.add(step)
                name = f"relay{step.stage}.{sum(line.stage == step.stage for line in self.lines.values())}"
                self.lines[name] = PeerLine("relay", step.stage)
                swarm.start(name, self._config("peer", name, self.maddr, stage=step.stage))
                self._say(f"{name} joins in step {step.iteration + 1}")

    # ---- watching

    def _watch(self, swarm: LocalSwarm) -> str:
        """Until every data peer has done its steps; returns why not, or nothing."""
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self.out)
        progress_at = time.monotonic()
        with ExitStack() as stack:
            live = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
            while not self._finished():
                for name, report in swarm.poll(0.25):
                    if report["name"] == "exited" and self.lines[name].state in ("killed", "frozen"):
                        continue
                    if report["name"] in ("failed", "exited"):
                        return f"{name} ended: {report.get('error', report.get('code'))}\n{_tail(self.folder / f'{name}.log')}"
                    self._hear(name, report)
                    progress_at = time.monotonic()
                self._joins(swarm)
                if time.monotonic() - progress_at > STALL_S:
                    return f"nothing happened for {STALL_S:.0f} s; the peers' logs: --keep_logs DIR"
                if live is not None:
                    title = f"gwtf demo · {self.record.run_id} · router {self.record.router}"
                    live.update(render(self.state, self.lines, title, self.args.steps), refresh=True)
                else:
                    self._plain()
        return ""

    def _finished(self) -> bool:
        everybody = {name for name, line in self.lines.items() if line.role != "bootstrap" and line.state == "online"}
        done = {name for name in everybody if self.lines[name].iteration >= self.args.steps}
        return bool(everybody) and len(self.complete) == self.args.data_peers and done == everybody

    def _hear(self, name: str, report: Mapping[str, Any]) -> None:
        line, now = self.lines[name], time.monotonic()
        if report["name"] == "started":
            self.state.names[report["peer"]] = name
        elif report["name"] == "online":
            line.state, line.stage = "online", report["stage"]
            if all(other.state == "online" for other in self.lines.values()):
                self.online_s = now - self.began
                self._say(f"all {len(self.lines)} peers online after {self.online_s:.1f} s")
        elif report["name"] == "stepped":
            line.iteration = report["iteration"] + 1
            line.microbatches += report["microbatches"]
        elif report["name"] == "run_complete":
            self.complete.add(name)
        elif report["name"] == "fault":
            self._fault_fired(name, report)
        self.state.hear(name, max(line.stage, 0), report, now)

    def _plain(self) -> None:
        for iteration in sorted(set(self.state.ended_at) - self._told):
            self._say(progress_line(self.state, iteration))
            self._told.add(iteration)

    # ---- the end

    def _summary(self, failure: str) -> None:
        state = self.state
        if self.out is sys.stderr or not self.out.isatty():
            self._plain()
        steps = state.iterations
        losses = [state.loss(i) for i in sorted(state.ended_at)]
        accounting = state.accounting()
        seconds = state.iteration_seconds()
        if self.args.json:
            print(
                json.dumps(
                    {
                        "steps": steps,
                        "first_loss": losses[0] if losses else None,
                        "last_loss": losses[-1] if losses else None,
                        "losses": losses,
                        "tokens_per_second": round(state.tokens_per_second(), 1),
                        "iteration_seconds": [round(s, 4) for s in seconds],
                        "router": self.record.router,
                        "peers": len(self.lines),
                        "seconds_to_online": round(self.online_s, 2),
                        "microbatches": accounting,
                        "recoveries": dict(state.recoveries),
                        "wall_seconds": round(time.monotonic() - self.began, 2),
                        **({"failure": failure.splitlines()[0]} if failure else {}),
                    }
                )
            )
        else:
            for route, count in state.routes.most_common(SHOWN_ROUTES):
                self._say(f"route {' → '.join(('data', *route, 'data'))}: {count} microbatches")
            if losses:
                self._say(
                    f"{steps} steps: loss {losses[0]:.4f} → {losses[-1]:.4f}, {state.tokens_per_second():.0f} tokens/s, "
                    f"median step {statistics.median(seconds):.2f} s"
                )
            recoveries = ", ".join(f"{kind} {count}" for kind, count in sorted(state.recoveries.items())) or "none"
            self._say(
                f"microbatches done {accounting['done']}, retried {accounting['retried']}, recoveries {recoveries}, "
                f"microbatches lost {accounting['lost']}, double-counted {accounting['double_counted']}; "
                f"{time.monotonic() - self.began:.0f} s in all"
            )
        if failure:
            print(f"gwtf demo: {failure}", file=sys.stderr)


def _tail(log: Path, lines: int = 5) -> str:
    """The end of a peer's log, for a failure message."""
    try:
        return "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
