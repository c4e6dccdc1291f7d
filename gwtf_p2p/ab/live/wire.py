"""The wire: all emulated lines of a live run, shared max-min fairly by the simulator's own code, in real time.

It runs in a thread of the process that starts the peers. Peers ask for passages and hear when the last byte has left
(`live/emulation/wire_client`). So a live run and a simulated one share lines by the same rule, and what still differs is real.
A peer whose connection ends loses its passages. The wire also keeps what passed it: bytes by path and kind, small messages, and
what each device did, for the report.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.simulation.lines.kernel import Action, Kernel
from gwtf_p2p.simulation.lines.links import Links, LinkSpec, Transfer
from gwtf_p2p.simulation.measure.trace import Span

START_DEADLINE_S = 10.0


class RealKernel(Kernel):
    """The simulator's clock and queue, over an event loop: `now` is in real seconds since the start."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._began = loop, time.monotonic()

    @property
    def now(self) -> float:  # type: ignore[override]
        return time.monotonic() - self._began

    def at(self, time_s: float, action: Action) -> None:
        self._loop.call_later(max(0.0, time_s - self.now), action)


@dataclass
class Usage:
    """What one peer did: device seconds (emulated, since it took part), real and CPU seconds of the same computations."""

    online: bool = False
    device_s: float = 0.0
    real_s: float = 0.0
    cpu_s: float = 0.0
    computations: int = 0
    late: int = 0
    messages: int = 0
    planning_s: float = 0.0
    busy_since: float | None = None
    queued: list[int] = field(default_factory=list)


class Wire:
    """Start it, give its socket to the peers, read its books when they have ended, stop it."""

    def __init__(self, socket: Path, spec: Callable[[PeerId, PeerId], LinkSpec], lines: Mapping[PeerId, float]) -> None:
        """`lines` in bytes/s; a peer that is not in it has no limit of its own."""
        self.socket = socket
        self.usage: dict[PeerId, Usage] = defaultdict(Usage)
        self.spans: list[Span] = []
        self.bytes_by_path: dict[tuple[PeerId, PeerId, str], int] = defaultdict(int)
        self._spec, self._lines = spec, lines
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="wire", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._links: Links | None = None

    def start(self) -> None:
        """Raises RuntimeError when it does not come up."""
        self._thread.start()
        if not self._ready.wait(START_DEADLINE_S):
            raise RuntimeError(f"the wire did not start at {self.socket}")

    def stop(self) -> None:
        """Passages that are under way never end."""
        if self._loop is not None and self._over is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def killed(self, peer: PeerId) -> None:
        """A computation that was cut off counts until now."""
        usage = self.usage[peer]
        if usage.busy_since is not None:
            usage.device_s += time.monotonic() - usage.busy_since
        usage.busy_since, usage.online = None, False

    # ---- in the thread

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._links = Links(RealKernel(self._loop), self._spec, self._lines)

        connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections[task] = writer
            await _Connection(self, reader, writer).run()
            del connections[task]

        server = await asyncio.start_unix_server(accept, str(self.socket))
        self._ready.set()
        await self._over.wait()
        server.close()
        for writer in connections.values():
            writer.close()
        await asyncio.gather(*connections)
        await asyncio.sleep(0)  # closed transports are told in the next round of the loop

    @property
    def links(self) -> Links:
        assert self._links is not None, "start first"
        return self._links


class _Connection:
    """One peer's."""

    def __init__(self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._wire, self._reader, self._writer = wire, reader, writer
        self._peer = PeerId("")
        self._under_way: dict[int, Transfer] = {}
        self._messages_before, self._planning_before = 0, 0.0

    async def run(self) -> None:
        try:
            while line := await self._reader.readline():
                self._hear(json.loads(line))
        except ConnectionError:
            pass  # killed: that is what the run is about
        finally:
            for transfer in self._under_way.values():
                self._wire.links.stop(transfer)
            self._writer.close()

    def _hear(self, said: Mapping[str, Any]) -> None:
        usage = self._wire.usage[self._peer]
        match said["op"]:
            case "hello":
                self._peer = PeerId(said["peer"])
                known = self._wire.usage[self._peer]  # of a peer that was killed and is back
                self._messages_before, self._planning_before = known.messages, known.planning_s
            case "start":
                self._start(said)
            case "stop":
                transfer = self._under_way.pop(said["id"], None)
                if transfer is not None:
                    self._wire.links.stop(transfer)
            case "online":
                usage.online = True
            case "busy" if usage.online:
                usage.busy_since = said["began"]
            case "work" if usage.online:
                self._worked(usage, said)
            case "count":
                usage.messages = self._messages_before + said["calls"]
                usage.planning_s = self._planning_before + said["planning_s"]
                usage.queued.append(said["queue"])
            case _:
                pass  # a computation before the peer took part

    def _start(self, said: Mapping[str, Any]) -> None:
        number, to, via = said["id"], PeerId(said["to"]), said["via"]
        began = time.monotonic()

        def sent() -> None:
            self._under_way.pop(number, None)
            span = Span(self._peer, said["kind"], said["about"], began, time.monotonic(), to, said["size"])
            self._wire.spans.append(span)
            for sender, receiver in [(self._peer, to)] if via is None else [(self._peer, via), (via, to)]:
                self._wire.bytes_by_path[sender, receiver, said["kind"]] += said["size"]
            if not self._writer.is_closing():
                self._writer.write(b'{"sent": %d}\n' % number)

        self._under_way[number] = self._wire.links.start(
            self._peer, to, said["size"], sent, None if via is None else PeerId(via)
        )

    def _worked(self, usage: Usage, said: Mapping[str, Any]) -> None:
        usage.busy_since = None
        usage.device_s += said["ended"] - said["began"]
        usage.real_s += said["real_s"]
        usage.cpu_s += said["cpu_s"]
        usage.computations += 1
        usage.late += said["late"]
        self._wire.spans.append(Span(self._peer, said["what"], said["about"], said["began"], said["ended"]))
