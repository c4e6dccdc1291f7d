"""`python -m experiments.lab`: the lab by hand.

    list                            the topologies that come with it
    up TOPOLOGY                     make it, say how to enter each host, remove it on Ctrl+C
    run TOPOLOGY HOST -- COMMAND    run one command in a host of a fresh lab; exits with its exit code
    sweep                           remove what killed labs left (every start does)

TOPOLOGY is a name from the list or a TOML file.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

from experiments.lab import runs
from experiments.lab.lab import Lab, why_unavailable
from experiments.lab.processes import inside_command
from experiments.lab.topology import Topology, load_topology, names
from gwtf_p2p.protocol.errors import InputError


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: that of the command, 2 for bad input, 6 where there can be no lab, 130 when interrupted."""
    parser = argparse.ArgumentParser("python -m experiments.lab", description=__doc__, formatter_class=_AsWritten)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    verbs.add_parser("sweep")
    verbs.add_parser("up").add_argument("topology")
    run = verbs.add_parser("run")
    run.add_argument("topology")
    run.add_argument("host")
    run.add_argument("command", nargs="+")
    args = parser.parse_args(arguments)
    try:
        if args.verb == "list":
            return _list()
        if reason := why_unavailable():
            print(f"no lab: {reason}", file=sys.stderr)
            return 6
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave the way that Ctrl+C does
        if args.verb == "sweep":
            print(*runs.sweep() or ["nothing to remove"])
            return 0
        topology = load_topology(args.topology)
        return _up(topology) if args.verb == "up" else _run(topology, args.host, args.command)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


class _AsWritten(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description."""


def _list() -> int:
    for name in names():
        print(f"{name:24} {load_topology(name).description}")
    return 0


def _up(topology: Topology) -> int:
    with Lab(topology) as lab:
        print(f"{topology.name} is up; Ctrl+C removes it. Enter a host with `ip netns exec NAMESPACE bash`.\n")
        print(f"{'host':16} {'address':16} {'seen as':16} {'behind':40} namespace")
        for host in topology.hosts:
            routers = " < ".join(f"{router.name} ({router.nat.value})" for router in topology.routers_of(host.name))
            address = lab.address(host.name)
            seen = lab.public_address(host.name)
            print(f"{host.name:16} {address.ip!s:16} {seen:16} {routers or '-':40} {lab.namespace(host.name)}", flush=True)
        signal.pause()
    return 0


def _run(topology: Topology, host: str, command: Sequence[str]) -> int:
    if host not in {known.name for known in topology.hosts}:
        raise InputError(topology.name, host, f"expected one of {', '.join(known.name for known in topology.hosts)}")
    with Lab(topology) as lab:
        return subprocess.run(inside_command(lab.namespace(host), command), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
