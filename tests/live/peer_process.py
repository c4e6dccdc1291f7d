"""A peer in a process of its own: takes every offer, prints its peer id, and stays until its input ends."""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from gwtf_p2p.live.libp2p.daemon import running_daemon
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.rpc.rpc import Rpc
from tests.live.conftest import RUN, Recorder


async def main(initial_peer: str) -> None:
    initial = parse_initial_peers([initial_peer] if initial_peer else [], {})
    async with running_daemon(P2POptions(initial, auto_nat=False, nat_port_map=False)) as daemon:
        rpc = Rpc(daemon, RUN)
        await rpc.start(Recorder())
        print(daemon.peer_id, flush=True)
        input_ended = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(input_ended), sys.stdin)
        await input_ended.read()
        await rpc.stop()


if __name__ == "__main__":
    # A shell that starts the tests in the background has SIGINT ignored in all that follows; here Ctrl+C must work.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    uvloop.run(main(sys.argv[1]))
