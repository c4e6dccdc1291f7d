"""The flags that `gwtf bootstrap`, `data` and `peer` share, spelled as in hivemind and Petals, and how such a peer is run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gwtf_p2p.cli.flags import takes
from gwtf_p2p.cli.shared.free_place import settle_identity, settle_port
from gwtf_p2p.cli.shared.limit_flags import BYTES_PER_S_OF_A_MBPS, add_limit_flags, checkpoint_options, memory_limit, wishes
from gwtf_p2p.cli.shared.peer_reports import figures_period_s
from gwtf_p2p.protocol.errors import InputError

if TYPE_CHECKING:
    from gwtf_p2p.live.libp2p.options import P2POptions
    from gwtf_p2p.live.measure.permission import ByHand
    from gwtf_p2p.live.peer.config import PeerConfig
    from gwtf_p2p.live.peer.lifecycle import TakePart

BOOTSTRAP_PORT = 31337
PEER_PORT = 31330
JOIN_TIMEOUT_S = 300.0
DRAIN_S = 60.0
"""How long a peer that is asked to leave may take to finish what it holds; asked twice, it leaves at once."""

SHOW_CURSOR = b"\x1b[?25h"


CIRCUIT_RELAY = ("auto", "yes", "no")
GROUPS = ("network", "training", "state", "limits", "diagnostics")
"""The headings under which `--help` lists flags, in this order."""


def add_groups(parser: argparse.ArgumentParser) -> dict[str, argparse._ArgumentGroup]:
    """The headings of a peer's `--help` by name; one without flags is not printed."""
    return {title: parser.add_argument_group(title) for title in GROUPS}


def add_network_flags(parser: argparse.ArgumentParser, port: int) -> dict[str, argparse._ArgumentGroup]:
    """Who to join, where to listen, who to be; and what to say about it. Returns the headings for the verb's own flags."""
    groups = add_groups(parser)
    add = groups["network"].add_argument
    add("-c", "--config", metavar="FILE", help="flags from a TOML file")
    whom = "multiaddrs, comma lists or @file (env GWTF_INITIAL_PEERS)"
    add("--initial_peers", nargs="*", default=[], metavar="MADDR", help=whom)
    add("--host_maddrs", nargs="*", default=None, metavar="MADDR", help="listen here instead of on --port of all addresses")
    add("--announce_maddrs", nargs="*", default=[], metavar="MADDR", help="addresses that others should dial")
    timeout = "keep trying while no initial peer answers, or the run is not there (default 300)"
    add("--timeout", type=takes.seconds, default=JOIN_TIMEOUT_S, metavar="SECONDS", help=timeout)
    add(
        "--port",
        type=takes.port,
        default=None,
        help=f"TCP port to listen on (default {port}, or the next free one; 0: any)",
    )
    add("--public_ip", type=takes.ip_address, metavar="IP", help="announce this address with --port")
    identity = "identity file (default ~/.gwtf/identity.key, or the next one that no peer of this machine uses)"
    add("--identity_path", type=takes.file, metavar="FILE", help=identity)
    relay = "auto (default): call, and be called, through circuit relays where no better path is found; yes: let p2pd look for "
    relay += "circuit relays of its own too; no: never call through one"
    add = groups["network"].add_mutually_exclusive_group().add_argument
    add("--circuit_relay", choices=CIRCUIT_RELAY, default="auto", help=relay)
    for flag, value in (("--use_relay", "auto"), ("--no_relay", "no"), ("--use_auto_relay", "yes")):
        alias = f"hivemind's and Petals' word for --circuit_relay {value}"
        add(flag, dest="circuit_relay", action="store_const", const=value, help=alias)
    lend = groups["limits"].add_argument
    slots = "on a public address: circuit slots lent at once, to any libp2p program that asks (default 256; 0: none)"
    lend("--lend_slots", type=takes.whole(0, 1 << 20), default=256, metavar="N", help=slots)
    lend(
        "--lend_gb",
        type=takes.number(0, takes.MOST_GB, above=True),
        default=64.0,
        metavar="GB",
        help="most bytes of a lent circuit, each way (default 64)",
    )
    tell = groups["diagnostics"].add_argument
    level = os.environ.get("HIVEMIND_LOGLEVEL", "INFO")
    tell("--log_level", type=takes.log_level, default=level, help="DEBUG, INFO, WARNING or ERROR")
    tell("--json", action="store_true", help="one JSON object per report on stdout")
    parser.set_defaults(default_port=port, data_port=None)
    return groups


def add_owner_flag(add: Callable[..., Any]) -> None:
    """Whose run record is believed, and with which token."""
    owner = "believe this owner's run record only (default: that of whose run this peer has joined, or of the only one)"
    add("--run_owner", type=takes.peer_id, metavar="PEER_ID", help=owner)
    add_token_flag(add)


def add_token_flag(add: Callable[..., Any]) -> None:
    """Without it nobody takes part in a secret run, or sees its records."""
    token = "the token of a secret run, or @FILE (env GWTF_TOKEN)"
    add("--token", type=takes.token, default=os.environ.get("GWTF_TOKEN") or None, metavar="TOKEN", help=token)


def token_flag(args: argparse.Namespace) -> str:
    """Where the token comes from, as its user knows it: `--token`, `GWTF_TOKEN`, or nowhere."""
    if not args.token:
        return ""
    with suppress(argparse.ArgumentTypeError):
        if takes.token(os.environ.get("GWTF_TOKEN", "")) == args.token:
            return "GWTF_TOKEN"
    return "--token"


def add_compute_flags(groups: dict[str, argparse._ArgumentGroup]) -> None:
    """How to compute, what to keep of the state, how much of the machine may be used, and what to be called."""
    called = "what ledgers and monitors call this peer, up to 40 characters (default: the end of its id)"
    groups["network"].add_argument("--public_name", type=takes.public_name, metavar="NAME", help=called)
    data = "TCP port for payloads between peers that reach each other directly; 0: any; off: all go through p2pd (default 0)"
    groups["network"].add_argument("--data_port", type=takes.data_port, default=0, metavar="PORT", help=data)
    add = groups["training"].add_argument
    add("--device", type=takes.device, default="cpu", help="cpu, cuda or cuda:N")
    add("--torch_dtype", type=takes.torch_dtype, default="float32", help="float32 or bfloat16 (weights stay float32)")
    add("--threads", type=takes.whole(0, 4096), default=0, help="torch threads (default: torch's own choice)")
    path = "a file or folder of this machine that the run names and may read; repeatable"
    add("--allow_path", "--dataset", action="append", default=[], metavar="PATH", help=path)
    add = groups["state"].add_argument
    add(
        "--checkpoint_dir",
        type=takes.folder,
        metavar="DIR",
        help="write checkpoints of this peer's stage there, and resume from them",
    )
    own = "checkpoints of this peer's own after every N steps, besides those of the run file's checkpoint_every (default: none)"
    add("--checkpoint_every", type=takes.whole(0), default=0, metavar="N", help=own)
    add("--keep_checkpoints", type=takes.whole(0), default=0, metavar="N", help="keep the newest N, if the run says fewer")
    add("--stay", action="store_true", help="go on serving when the run is complete, instead of ending")
    add(
        "--copies",
        type=takes.whole(0),
        default=1,
        metavar="N",
        help="peers of neighbouring stages that copy a checkpoint (default 1)",
    )
    add_limit_flags(groups["limits"].add_argument)
    add = groups["diagnostics"].add_argument
    add_alert_flags(add)
    add("--event_log", type=takes.file, metavar="FILE", help="write every protocol event there, as JSON lines")


def add_alert_flags(add: Callable[..., Any]) -> None:
    """Whom to call when training stands still; the same for a peer and for a monitor."""
    alert = "run this when training stands still; what has happened is in GWTF_ALERT_CODE and GWTF_ALERT_TEXT"
    add("--on_alert", default="", metavar="COMMAND", help=alert)
    add(
        "--alert_after",
        type=takes.seconds,
        default=300.0,
        metavar="SECONDS",
        help="how long training must stand still (default 300)",
    )


def check_initial_peers(args: argparse.Namespace) -> None:
    """Raises InputError for malformed addresses, and when there is nobody to join."""
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers

    if not parse_initial_peers(args.initial_peers, os.environ):
        raise InputError("--initial_peers", "", "expected at least one multiaddr, as `gwtf bootstrap` prints it")


def p2p_options(args: argparse.Namespace, needs_peers: bool) -> P2POptions:
    """Raises InputError for malformed addresses, and when a peer has nobody to join."""
    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers, parse_listen_maddrs
    from gwtf_p2p.live.libp2p.options import Lending, P2POptions

    if needs_peers:
        check_initial_peers(args)
    if args.host_maddrs is not None and args.port is not None and not args.public_ip:
        raise InputError("--port", str(args.port), "expected either --host_maddrs or --port")
    peers = parse_initial_peers(args.initial_peers, os.environ)
    port = settle_port(args, os.environ)
    host = args.host_maddrs if args.host_maddrs is not None else _everywhere(port, is_bootstrap=not needs_peers)
    announce = list(args.announce_maddrs)
    if args.public_ip:
        kind = "ip6" if ":" in args.public_ip else "ip4"
        announce.append(f"/{kind}/{args.public_ip}/tcp/{port}")
        if not needs_peers and args.host_maddrs is None:
            announce.append(f"/{kind}/{args.public_ip}/udp/{port}/quic-v1")
    is_public = bool(announce) or not needs_peers
    return P2POptions(
        initial_peers=peers,
        host_maddrs=parse_listen_maddrs(host, "--host_maddrs"),
        announce_maddrs=parse_listen_maddrs(announce, "--announce_maddrs", announced=True),
        use_relay=args.circuit_relay != "no",
        use_auto_relay=args.circuit_relay == "yes",
        dht_mode="server" if is_public else "auto",
        nat_port_map=False,  # `port_mapping` does it, and tells
        is_public=is_public,
        data_port=args.data_port,
        lending=Lending(args.lend_slots, int(args.lend_gb * (1 << 30))),
    )


def _everywhere(port: int, *, is_bootstrap: bool) -> list[str]:
    """Where to listen: TCP, which carries tensors better than QUIC; a bootstrap peer may be joined by either."""
    listen = [f"/ip4/0.0.0.0/tcp/{port}"]
    has_ipv6 = Path("/proc/net/if_inet6").exists() or (socket.has_ipv6 and not sys.platform.startswith("linux"))
    if is_bootstrap:
        listen.append(f"/ip4/0.0.0.0/udp/{port}/quic-v1")
    if is_bootstrap and has_ipv6 and port:
        listen += [f"/ip6/::/tcp/{port}", f"/ip6/::/udp/{port}/quic-v1"]
    return listen


def config_of_flags(args: argparse.Namespace, options: P2POptions, role: str) -> PeerConfig:
    """What the flags say that data peers and stage peers share. Raises InputError."""
    from gwtf_p2p.live.peer.config import PeerConfig
    from gwtf_p2p.training.compute.config import ExecutorConfig

    return PeerConfig(
        role=role,
        options=options,
        identity_path=settle_identity(args.identity_path, os.environ),
        run_owner=args.run_owner,
        token=args.token or "",
        local_files=tuple(args.allow_path),
        executor=ExecutorConfig(args.device, args.torch_dtype),
        threads=args.threads,
        checkpoints=checkpoint_options(args),
        stays=args.stay,
        public_name=args.public_name or "",
        on_alert=args.on_alert,
        alert_after_s=args.alert_after,
        upload_bytes_per_s=args.upload_mbps * BYTES_PER_S_OF_A_MBPS,
        download_bytes_per_s=args.download_mbps * BYTES_PER_S_OF_A_MBPS,
        memory=memory_limit(args),
        wishes=wishes(args),
        nice=args.nice,
        memory_bytes=int(args.memory_gb * 1e9),
        drain_s=DRAIN_S,
        join_timeout_s=args.timeout,
        figures_every_s=figures_period_s(args),
        event_log=args.event_log,
    )


def serve(
    config: PeerConfig,
    args: argparse.Namespace,
    on_report: Callable[[dict[str, Any]], None],
    take_part: TakePart | None = None,
) -> int:
    """Run a peer in this process until Ctrl+C, SIGTERM, or the end of its terminal; a second Ctrl+C leaves at once.

    `take_part`: as `run_peer` has it. Returns the exit code."""
    import uvloop

    from gwtf_p2p.live.compute.memory_errors import OutOfMemory, memory_errors
    from gwtf_p2p.live.discovery.run_trust import RunConflict
    from gwtf_p2p.live.libp2p.daemon import DaemonFailed, NetworkUnreachable
    from gwtf_p2p.live.libp2p.identity import IdentityInUse
    from gwtf_p2p.live.measure.permission import ByHand
    from gwtf_p2p.live.peer.config import ClockWrong, NotKept, NotServed, RunMismatch, RunNotThere, StartInterrupted
    from gwtf_p2p.live.peer.lifecycle import run_peer

    network, machine = (NetworkUnreachable, IdentityInUse), (DaemonFailed, ClockWrong, OutOfMemory, NotKept)
    _set_up_logging(args.log_level)
    asked = _Asked()

    async def main() -> None:
        stop, by_hand = asyncio.Event(), ByHand()
        asked.listen(asyncio.get_running_loop(), stop, by_hand)
        await run_peer(config, on_report, stop, by_hand, take_part)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, memory_errors("take part"):
            runner.run(main())
    except StartInterrupted as error:
        print(f"gwtf {args.verb}: {error}", file=sys.stderr)
        return int(error.exit_code) if asked.interrupted else 0
    except (*network, *machine, RunMismatch, RunConflict, RunNotThere, NotServed) as error:
        print(f"gwtf {args.verb}: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


class _Asked:
    """What signals have asked of this peer. `interrupted`: a user has told it to leave."""

    def __init__(self) -> None:
        self.interrupted = False
        self._terminal = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def listen(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, by_hand: ByHand) -> None:
        """Sets `stop` when it is to leave, and says to `by_hand` when it is to pause."""
        loop.add_signal_handler(signal.SIGINT, self._interrupt, stop)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, by_hand.set, True)
        loop.add_signal_handler(signal.SIGUSR2, by_hand.set, False)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
            loop.add_signal_handler(signal.SIGHUP, self._hang_up, stop)

    def _interrupt(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            for descriptor in self._terminal:
                os.write(descriptor, SHOW_CURSOR)  # which a view has hidden
            os._exit(130)  # asked twice: leave now; p2pd ends when its only client is gone
        self.interrupted = True
        stop.set()

    def _hang_up(self, stop: asyncio.Event) -> None:
        """The terminal is gone, and what is printed to it would fail; what the peer holds is finished first all the same."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminal:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)
        stop.set()


def _set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d [%(levelname)s] [%(name)s] %(message)s",
        datefmt="%b %d %H:%M:%S",
    )
