"""A peer as a child process of the local swarm. Importing this module imports everything heavy: that is its purpose.

The fork server imports it once; `run_child` then runs in a fork and reports through a pipe. The peer stops when told so, when
the pipe breaks (the parent is gone), or on SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401
import uvloop

from gwtf_p2p.live.compute.process_memory import bound_arenas
from gwtf_p2p.live.libp2p.daemon_lifetime import die_with_parent
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.lifecycle import run_peer

logger = logging.getLogger(__name__)


def run_child(config: PeerConfig, pipe: Connection, log: str) -> None:
    """Body of a peer's process; ends the process with the peer's exit code."""
    bound_arenas()
    os.setsid()
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(level=os.environ.get("HIVEMIND_LOGLEVEL", "WARNING"), format="%(asctime)s %(name)s %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_serve(config, pipe))
    pipe.close()
    sys.exit(code)


async def _serve(config: PeerConfig, pipe: Connection) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def told() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        loop.remove_reader(pipe.fileno())
        stop.set()

    def report(fields: dict[str, Any]) -> None:
        try:
            pipe.send({"at": time.monotonic(), **fields})
        except OSError:
            stop.set()

    loop.add_reader(pipe.fileno(), told)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        await run_peer(config, report, stop)
    except Exception as error:  # the process boundary: whatever ends a peer is told to the parent and logged
        logger.exception("the peer ends")
        report({"name": "failed", "error": f"{type(error).__name__}: {error}", "code": getattr(error, "exit_code", 1)})
        return int(getattr(error, "exit_code", 1))
    return 0
