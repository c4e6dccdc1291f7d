"""A peer as a child process of the local swarm. Importing this module imports everything heavy: that is its purpose.

The fork server imports it once; `run_child` then runs in a fork and reports through a pipe. The peer stops when told so, when
the pipe breaks (the parent is gone), or on SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401
import uvloop

from gwtf_p2p.live.compute.process_memory import bound_arenas
from gwtf_p2p.live.libp2p.daemon_lifetime import die_with_parent
from gwtf_p2p.live.measure.permission import ByHand
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.lifecycle import run_peer

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
"""How long a peer that ends waits for its parent to read its last reports."""


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


class ParentLine:
    """The pipe to the parent, read and written by threads of its own.

    A parent that does not read for a while must neither hold the event loop up nor end the peer: reports wait in a queue. The
    loop itself never watches the pipe: uvloop would make it non-blocking for good, and a full pipe would then be an error.
    """

    def __init__(self, pipe: Connection, told_to_stop: Callable[[], object]) -> None:
        self._pipe, self._told_to_stop = pipe, told_to_stop
        self._reports: queue.SimpleQueue[Mapping[str, Any] | threading.Event | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="reports", daemon=True)
        self._writer.start()
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def tell(self, report: Mapping[str, Any]) -> None:
        """Never waits."""
        self._reports.put(report)

    def flush(self, deadline_s: float) -> None:
        """Wait until what has been told is in the pipe, or the parent does not read for so long, or is gone."""
        written = threading.Event()
        self._reports.put(written)
        written.wait(deadline_s)

    def close(self, deadline_s: float) -> None:
        """`flush`; nothing is written from now on."""
        self._reports.put(None)
        self._writer.join(deadline_s)

    def _write(self) -> None:
        try:
            while (report := self._reports.get()) is not None:
                if isinstance(report, threading.Event):
                    report.set()
                else:
                    self._pipe.send(report)
        except OSError:
            self._told_to_stop()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            self._pipe.recv()
        self._told_to_stop()


async def _serve(config: PeerConfig, pipe: Connection) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def told_to_stop() -> None:
        with suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(stop.set)

    line = ParentLine(pipe, told_to_stop)

    def report(fields: dict[str, Any]) -> None:
        line.tell({"at": time.monotonic(), **fields})
        if fields["name"] == "fault":
            line.flush(FLUSH_S)  # the next thing that this process does may be its last

    by_hand = ByHand()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, by_hand.set, True)
    loop.add_signal_handler(signal.SIGUSR2, by_hand.set, False)
    try:
        await run_peer(config, report, stop, by_hand)
    except Exception as error:  # the process boundary: whatever ends a peer is told to the parent and logged
        logger.exception("the peer ends")
        report({"name": "failed", "error": f"{type(error).__name__}: {error}", "code": getattr(error, "exit_code", 1)})
        return int(getattr(error, "exit_code", 1))
    finally:
        await asyncio.to_thread(line.close, FLUSH_S)
    return 0
