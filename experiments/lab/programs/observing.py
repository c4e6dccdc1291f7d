"""What everybody can read of a run: its records, as an observer in a host of the lab finds them in the DHT."""

from __future__ import annotations

import asyncio
import multiprocessing as mp
from collections.abc import Sequence
from multiprocessing.connection import Connection

from experiments.lab.lab import Lab
from experiments.lab.programs.warm import fork_into
from gwtf_p2p.monitor.observer import observe
from gwtf_p2p.monitor.swarm_state import Change, SwarmState
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.view.network_view import NetworkView

ANSWER_S = 60.0


class LabObserver:
    """`gwtf monitor` in a host, without a screen. The lab ends it, or `stop` does."""

    def __init__(self, lab: Lab, host: str, initial: Sequence[str], run_id: str) -> None:
        context = mp.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = fork_into(context, lab, host, _look_when_asked, theirs, tuple(initial), run_id)
        theirs.close()

    def view(self) -> NetworkView:
        """As the records are after this call. Raises TimeoutError; EOFError when the observer has ended."""
        self._pipe.send(None)
        if not self._pipe.poll(ANSWER_S):
            raise TimeoutError(f"the observer has found nothing within {ANSWER_S:.0f} s")
        records, run = self._pipe.recv()
        return NetworkView.of(records, run.stages, run.activation_bytes, gradient_bytes=run.gradient_bytes)

    def stop(self) -> None:
        self._process.kill()
        self._process.join(ANSWER_S)
        self._pipe.close()


def _look_when_asked(pipe: Connection, initial: Sequence[str], run_id: str) -> None:
    import uvloop

    from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers

    def on_look(state: SwarmState, changes: list[Change]) -> bool:
        if pipe.poll():
            pipe.recv()
            pipe.send((list(state.records.values()), state.run))
        return False

    uvloop.run(observe(parse_initial_peers(initial, {}), RunId(run_id), on_look, asyncio.Event()))
