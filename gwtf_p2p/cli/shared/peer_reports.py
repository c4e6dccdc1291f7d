"""What a peer that runs in a terminal tells its user: a view where stdout is one, else a line when something concerns them.

The first thing is told before torch is loaded, which takes seconds; the last when the peer has left.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.monitor.own_peer import AFTER, OwnPeer
from gwtf_p2p.monitor.terminal.own_view import own_view
from gwtf_p2p.protocol.replica_sync import what_holds
from gwtf_p2p.protocol.stall.rules import counted, rebuilt_stages, were_skipped
from gwtf_p2p.protocol.view.evaluations import so_far
from gwtf_p2p.protocol.wire.messages import Evaluated, Evaluations

FIGURES_S = 2.0
"""How often a peer with a view tells its figures."""

REFRESHES_PER_S = 2


def has_view(args: argparse.Namespace) -> bool:
    """Does this verb show a view, rather than lines or JSON?"""
    return not args.json and sys.stdout.isatty()


def figures_period_s(args: argparse.Namespace) -> float:
    """For `PeerConfig.figures_every_s`: nobody would see them but in a view."""
    return FIGURES_S if has_view(args) else 0.0


class Teller:
    """Takes a peer's reports; any thread may call it. `close` ends the view and says the last words."""

    def __init__(self, as_json: bool, console: Console | None, role: str = "peer") -> None:
        self._as_json, self._console = as_json, console
        self._own = OwnPeer(time.time(), role)
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._reasons: object = None

    def __call__(self, report: Mapping[str, Any]) -> None:
        """One report. The view begins with the first, so that a mistake in the flags is told without one."""
        now = time.time()
        with self._lock:
            self._own.hear(report, now)
            text = self._line(report)
            if text and report["name"] != "step":
                self._own.tell(text, now)
        if self._console is not None:
            self._show(self._console)
        elif self._as_json:
            print(to_json(dict(report)), flush=True)
        elif text:
            print(text, flush=True)

    def _line(self, report: Mapping[str, Any]) -> str:
        """Why nobody answers is told once, and again when it is for another reason."""
        if report["name"] not in ("waiting", "step"):
            self._reasons = None
        elif report["name"] == "waiting" and report["reasons"] == self._reasons:
            return ""
        elif report["name"] == "waiting":
            self._reasons = report["reasons"]
        return line(report)

    def close(self) -> None:
        """To be called however the peer has ended."""
        if self._live is not None:
            self._live.stop()
        if self._own.peer and not self._as_json:
            print(self._own.last_words(), flush=True)

    def _show(self, console: Console) -> None:
        if self._live is None:
            # What is logged to a terminal goes above the view; a log that goes to a file stays there.
            self._live = Live(
                get_renderable=self._render,
                console=console,
                refresh_per_second=REFRESHES_PER_S,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start(refresh=True)

    def _render(self) -> Group:
        assert self._console is not None
        size = self._console.size
        with self._lock:
            return Group(*own_view(self._own, time.time(), (size.width, size.height - 1)))


@contextmanager
def telling(args: argparse.Namespace) -> Iterator[Teller]:
    """For as long as a verb runs."""
    teller = Teller(args.json, Console() if has_view(args) else None, "data peer" if args.verb == "data" else "peer")
    try:
        yield teller
    finally:
        teller.close()


def line(report: Mapping[str, Any]) -> str:
    """What a report says to people, or nothing."""
    match report["name"]:
        case "step":
            following = AFTER.get(report["done"], "")
            return f"starts: {following}" if following else ""
        case "started":
            address = report["maddrs"][0] if report["maddrs"] else "-"
            return f"peer {report['peer']} is up; others can also join through {address}"
        case "waiting":
            reasons = "; ".join(f"{maddr}: {why}" for maddr, why in report["reasons"])
            return f"no initial peer answers, trying on for {report['seconds_left']:.0f} s: {reasons}"
        case "waiting_for_run":
            runs = f"runs that are there: {', '.join(report['runs'][:10])}" if report["runs"] else "no run is there"
            return f"waiting for run {report['run_id']}, for {report['seconds_left']:.0f} s more: nobody publishes it; {runs}"
        case "brings_back":
            return f"nobody publishes run {report['run_id']}: this peer brings it back, from its own disk"
        case "no_common_version":
            return no_common_version(report)
        case "rebuilding":
            return f"{rebuilt_stages(report['stages'], report['version'])} (--rebuild_lost_stage)"
        case "version_missing":
            return f"stage {report['stage']}: nobody here has version {report['version']} (only {report['have']})"
        case "stall" | "goes_on":
            return str(report["text"])
        case "newer_release":
            runs = f"{report['peers']} of the others run release {report['release']}, this peer {report['own']}"
            return f"{runs}. They train together; to upgrade, leave (Ctrl+C), install, and start again the same way"
        case "restarting":
            return f"{report['reason']}: starting again"
        case "path":
            kind = {"public": "direct"}.get(report["path"], report["path"])
            return f"path to {report['peer'][-6:]}: {kind}"
        case "pausing":
            return f"pauses ({report['text']}): what is held is finished first"
        case "run_paused":
            return f"begins no iteration: the last {were_skipped(report['skipped'])}, as gradients were not finite"
        case "paused" | "resumed":
            return str(report["text"])
        case "memory":
            allowed = f" of {report['allowed_bytes'] / 1e9:.3g} allowed" if report["allowed_bytes"] else ""
            held = f"with {counted(report['capacity'], 'microbatch')} at once, {report['least_bytes'] / 1e9:.3g} at least"
            return f"stage {report['stage']} takes about {report['needed_bytes'] / 1e9:.3g} GB of memory{allowed} {held}"
        case "run" if report.get("replica_sync"):
            return what_holds(report["replica_sync"])
        case "online":
            where = f"stage {report['stage']}" if report["stage"] else f"shard {report['shard']}"
            return f"online in {where}, waiting for microbatches"
        case "joined":
            return f"that took {report['seconds']:.1f} s: {report['steps']}"
        case _:
            return _line_of_training(report)


def no_common_version(report: Mapping[str, Any]) -> str:
    """Which stage lacks what, and what can be done, or will be."""
    stages, version = ", ".join(map(str, report["stages_without"])), report["version"]
    lacking = f"the run cannot go on: stage {stages} lacks version {version}, which all other stages have"
    in_s = report.get("rebuilt_in_s")
    if in_s is not None:
        return f"{lacking}. It is rebuilt from its neighbours' weights in {in_s:.0f} s, unless a peer comes that has it"
    can_be = report.get("can_be_rebuilt", 0 not in report["stages_without"])
    or_rebuild = ", start the data peers again with --rebuild_lost_stage" if can_be else ""
    return f"{lacking}. Start a peer that has it{or_rebuild}, or begin again under another run_id"


def _evaluations(report: Mapping[str, Any]) -> str:
    """What a commit has told of the evaluations."""
    newest = Evaluated(report["iteration"], report["loss"])
    known = Evaluations(newest, report["best_version"], report["best_loss"], report["waited"])
    loss = "no finite loss" if report["loss"] is None else f"loss {report['loss']:.4f}"
    return f"the weights after {counted(report['iteration'], 'step')} had {loss}; {so_far(known, report['patience'])}"


def _complete(report: Mapping[str, Any]) -> str:
    """The run is complete at this peer, and what it has kept of it."""
    kept = "its checkpoint is written" if report["written"] else f"no checkpoint: {report['failure'] or 'no --checkpoint_dir'}"
    early = f", since {report['early']}" if report.get("early") else ""
    return f"the run is complete here after {counted(report['iterations'], 'step')}{early}: {kept}"


def _line_of_training(report: Mapping[str, Any]) -> str:
    match report["name"]:
        case "stepped":
            share = f"{report['microbatches']} of {counted(report['of'], 'microbatch')} ours"
            if report["skipped"]:
                at = ", ".join(peer[-6:] for peer in report["skipped_for"][:3])
                return f"step {report['iteration'] + 1:4d}  skipped: the gradient is not finite{f' at {at}' if at else ''}"
            return f"step {report['iteration'] + 1:4d}  loss {report['loss']:.4f}  {share}"
        case "evaluated":
            figures = f"loss {report['loss']:.4f}, perplexity {report['perplexity']:.2f}"
            return f"evaluated after {counted(report['iteration'], 'step')}: {figures}"
        case "evaluations":
            return _evaluations(report)
        case "sampled":
            return f"after {counted(report['iteration'], 'step')}, {report['prompt']!r} goes on: {report['text']!r}"
        case "evaluation_failed":
            return f"not evaluated after {counted(report['iteration'], 'step')}: {report['reason']}"
        case "recovery":
            return f"{report['kind']} recovery of {report['microbatch']}: {report['reason']}"
        case "peer_lost":
            return f"lost peer {report['peer'][-6:]}: {report['reason']}{_steps_lost(report)}"
        case "average_failed":
            return f"average failed and is tried again: {report['reason']}"
        case "out_of_step":
            return f"out of step at version {report['version']}: {report['reason']}"
        case "catching_up":
            return f"catching up: fetching version {report['iteration']} from {counted(len(report['donors']), 'peer')}"
        case "serves_before_moments":
            return f"works with the weights of version {report['version']}; what the optimizer keeps with them is still coming"
        case "memory_full":
            return f"takes nothing more: {counted(report['kept'], 'microbatch')} kept until the iteration is committed"
        case "stage_empty":
            return f"training waits: stage {report['stage']} has no peer"
        case "stage_staffed":
            return f"stage {report['stage']} has a peer again"
        case "going_back":
            return f"back to version {report['version']}: {report.get('reason', 'nobody has a later one')}"
        case "moving":
            return f"moves from stage {report['stage']} to {report['to_stage']}: {report['reason']}"
        case "draining":
            return "leaving: what is held is finished first"
        case "run_complete":
            return _complete(report)
        case "end_waits" if report["stages"]:
            stages = ", ".join(map(str, report["stages"]))
            return f"waiting until stage {stages} has the weights after {counted(report['iterations'], 'step')} too"
        case "run_complete_everywhere":
            return f"all stages have done, and keep, all {counted(report['iterations'], 'step')}"
        case "run_over" if not report["took_part"]:
            return f"the run is complete: {counted(report['iterations'], 'step')} done, there is nothing left to do here"
        case _:
            return _line_of_what_is_refused(report)


def _line_of_what_is_refused(report: Mapping[str, Any]) -> str:
    match report["name"]:
        case "left_out":
            peers = ", ".join(peer[-6:] for peer in report["peers"])
            return f"step {report['iteration'] + 1:4d}  is averaged without {peers}: a part was refused"
        case "part_refused":
            return f"a part of an average, of {report['peer'][-6:]}, is refused: {report['reason']}"
        case "loss_refused":
            return f"the mean loss is without {report['peer'][-6:]}: {report['reason']}"
        case _:
            return ""


def _steps_lost(report: Mapping[str, Any]) -> str:
    steps = report.get("steps_lost", 0)
    return f"; what its copy has learned in {counted(steps, 'step')} since the last average goes with it" if steps else ""
