"""`gwtf doctor`: can this machine take part? Each line of the report comes with a remedy; the exit code says it in short.

Give two public peers of the swarm as --initial_peers: the kind of NAT cannot be told with fewer. It takes 15 to 40 seconds, and
sends up to 100 MB. Exit codes: 0 fit to be a stage peer (or nothing is known against it), 2 bad input, 3 the network is against
it, 6 this machine is (memory, disk, open files, clock, device).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.json_lines import to_json
from gwtf_p2p.cli.shared.limit_flags import add_memory_flag
from gwtf_p2p.cli.shared.peer_flags import PEER_PORT, add_token_flag, token_flag
from gwtf_p2p.protocol.errors import InputError

if TYPE_CHECKING:
    from gwtf_p2p.live.doctor.machine import MachineFindings, StageSpeed
    from gwtf_p2p.live.doctor.network import NetworkFindings
    from gwtf_p2p.live.doctor.rules import Diagnosis
    from gwtf_p2p.live.libp2p.maddrs import InitialPeer

MARKS = {"good": "ok", "remark": "--", "bad": "NO", "unknown": "??"}


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("doctor", help="can this machine take part?", description=__doc__)
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", help="flags from a TOML file")
    whom = "public peers of the swarm: multiaddrs, comma lists or @file (env GWTF_INITIAL_PEERS)"
    add("--initial_peers", nargs="*", default=[], metavar="MADDR", help=whom)
    add("--port", type=takes.port, default=PEER_PORT, help=f"TCP port that the peer will listen on (default {PEER_PORT})")
    add("--device", type=takes.device, default="cpu", help="cpu, cuda or cuda:N")
    add("--torch_dtype", type=takes.torch_dtype, default="float32", help="float32 or bfloat16")
    add("--run_id", type=takes.run_id, help="measure the device on a stage of this run instead of a small reference stage")
    add("--run_owner", type=takes.peer_id, metavar="PEER_ID", help="believe this owner's record of --run_id only")
    add_token_flag(add)
    add_memory_flag(add)
    add("--json", action="store_true", help="one JSON object per check on stdout, and the verdict as the last")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit code of the diagnosis. Raises InputError."""
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers

    if not args.run_id and (args.run_owner or token_flag(args) == "--token"):
        raise InputError("--run_owner" if args.run_owner else "--token", "", "expected with --run_id")
    initial = parse_initial_peers(args.initial_peers, os.environ)
    if args.run_id and not initial:
        raise InputError("--initial_peers", "", "expected at least one multiaddr, to read the run's record")
    from gwtf_p2p.live.libp2p.daemon import DaemonFailed
    from gwtf_p2p.training.compute.device import resolve_device

    if args.device != "cpu":
        resolve_device(args.device)
    if not args.json:
        print("Looking at this machine and its network; this takes up to a minute.", file=sys.stderr, flush=True)
    try:
        diagnosis = examine(args, initial)
    except DaemonFailed as error:
        print(f"gwtf doctor: {error}", file=sys.stderr)
        return int(error.exit_code)
    (_print_json if args.json else print_table)(diagnosis)
    return diagnosis.exit_code


def examine(args: argparse.Namespace, initial: tuple[InitialPeer, ...]) -> Diagnosis:
    """Network first, so that nothing else takes the processor while it is measured."""
    import uvloop

    from gwtf_p2p.live.discovery.run_trust import Trusted
    from gwtf_p2p.live.doctor.machine import examine_machine, stages_of
    from gwtf_p2p.live.doctor.network import AskedRun, examine_network
    from gwtf_p2p.live.doctor.rules import diagnose
    from gwtf_p2p.live.libp2p.identity import state_dir
    from gwtf_p2p.protocol.ids import RunId

    machine: MachineFindings = examine_machine(state_dir(os.environ), args.port, args.device)
    port = 0 if machine.port_why else args.port
    with tempfile.TemporaryDirectory(prefix="gwtf-doctor-") as folder:
        asked = AskedRun(RunId(args.run_id), Trusted(args.run_owner), args.token or "") if args.run_id else None
        network: NetworkFindings = uvloop.run(examine_network(initial, port, Path(folder), asked))
    if network.run_why:
        raise InputError("--run_id", "", network.run_why)
    stages = stages_of(network.run) if network.run is not None else ()
    return diagnose(network, replace(machine, allowed_bytes=int(args.memory_gb * 1e9)), _measure(args, network), stages)


def _measure(args: argparse.Namespace, network: NetworkFindings) -> StageSpeed | str:
    from gwtf_p2p.live.doctor.machine import measure_stage
    from gwtf_p2p.training.compute.config import ExecutorConfig

    try:
        return measure_stage(ExecutorConfig(args.device, args.torch_dtype), network.run)
    except (RuntimeError, MemoryError) as error:  # what torch raises when a device or its memory does not suffice
        return str(error).partition("\n")[0]


def print_table(diagnosis: Diagnosis) -> None:
    """What a person reads."""
    from gwtf_p2p.live.doctor.report import BOOTSTRAP

    for line in diagnosis.lines:
        only_bootstrap = line.against == (BOOTSTRAP,)  # who wants to train is not to take fright at it
        mark = MARKS["remark" if only_bootstrap and line.status.value == "bad" else line.status.value]
        print(f"[{mark}] {line.check:14} {line.text}")
        if line.remedy:
            print(f"     {'':14} -> {line.remedy}")
    print()
    for role, (verdict, checks) in diagnosis.roles.items():
        because = f" (see {', '.join(checks)})" if checks else ""
        print(f"{role:10} {verdict.value}{because}")


def _print_json(diagnosis: Diagnosis) -> None:
    for line in diagnosis.lines:
        fields = {"name": "check", "check": line.check, "status": line.status.value, "text": line.text, "remedy": line.remedy}
        print(to_json({**fields, "against": list(line.against), **line.values}))
    roles = {role: {"verdict": verdict.value, "because": list(checks)} for role, (verdict, checks) in diagnosis.roles.items()}
    print(to_json({"name": "verdict", "roles": roles, "exit_code": diagnosis.exit_code}))
