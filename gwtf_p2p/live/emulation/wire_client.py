"""A peer's connection to the wire (see `emulation`): it asks for passages, and notes what its device did.

JSON lines over a unix socket. To the wire: `hello` (who), `online`, `start` and `stop` of a passage, `busy` and `work` when a
computation begins and has ended, `count` once a second (small messages sent and seconds of planning so far, microbatches that
wait for the device). From the wire: `{"sent": id}` when the last byte of a passage has left. When the wire is gone the run is
over: passages then never end.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from gwtf_p2p.protocol.events import Work
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId

COUNT_PERIOD_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """What goes where. `size` in bytes as charged; `via`: stored and forwarded there."""

    to: PeerId
    size: int
    kind: str
    about: str
    via: PeerId | None = None


class Passage:
    """One transfer over the emulated lines. `seconds`: what it took, once it is through."""

    def __init__(self, wire: WireClient, load: Load) -> None:
        self._wire, self._load = wire, load
        self.seconds = 0.0
        self._number: int | None = None
        self._done: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """From now on it takes its part of the lines."""
        began = time.monotonic()
        self._number, self._done = self._wire.start(self._load)
        self._done.add_done_callback(lambda done: self._through(time.monotonic() - began))

    def _through(self, seconds: float) -> None:
        self.seconds = seconds

    async def sent(self) -> None:
        """Return when the last byte has left."""
        assert self._done is not None, "begin first"
        await self._done

    def end(self) -> None:
        """It takes the lines no longer, whether it is through or not."""
        if self._number is not None and self._done is not None and not self._done.done():
            self._wire.stop(self._number)


class WireClient:
    """Made by `connect_wire`. `queue_length` is asked when the counts go out."""

    def __init__(self, me: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, links: bool) -> None:
        self.calls = 0
        self.planning_s = 0.0
        self.queue_length: Callable[[], int] = lambda: 0
        self._links = links
        self._writer = writer
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks = [self._loop.create_task(self._listen(reader)), self._loop.create_task(self._count())]
        self._say({"op": "hello", "peer": me})

    def passage(self, load: Load) -> Passage:
        return Passage(self, load)

    def start(self, load: Load) -> tuple[int, asyncio.Future[None]]:
        """Ask for a passage; the future is done when the last byte has left, at once if links are real."""
        number, done = next(self._numbers), self._loop.create_future()
        self._say({"op": "start", "id": number, **asdict(load)})
        if self._links:
            self._waiting[number] = done
        else:
            done.set_result(None)
        return number, done

    def stop(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._say({"op": "stop", "id": number})

    def note(self, fields: Mapping[str, Any]) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._say, fields)

    async def close(self) -> None:
        self._counts()
        for task in self._tasks:
            task.cancel()
        self._writer.close()
        with suppress(ConnectionError):  # the wire may be gone already
            await self._writer.wait_closed()

    def _say(self, fields: Mapping[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(fields).encode() + b"\n")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            done = self._waiting.pop(json.loads(line)["sent"], None)
            if done is not None and not done.done():
                done.set_result(None)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_PERIOD_S)
            self._counts()

    def _counts(self) -> None:
        self._say({"op": "count", "calls": self.calls, "queue": self.queue_length(), "planning_s": self.planning_s})


async def connect_wire(socket: Path, me: PeerId, links: bool) -> WireClient:
    """Raises OSError when nobody listens."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    return WireClient(me, reader, writer, links)


class Stretch:
    """Waits a computation out until the device's time is over; called in the compute thread around every computation.

    Work that is not in `work_s` takes its real time. What was really computed is noted beside it: it must stay well below.
    """

    def __init__(self, work_s: Mapping[Work, float], wire: WireClient) -> None:
        self._work_s, self._wire = work_s, wire
        self._closed = threading.Event()

    def begin(self, work: Work, microbatch: MicrobatchId) -> tuple[float, float]:
        """Marks of wall and CPU time, for `end`."""
        now = time.monotonic()
        self._wire.note({"op": "busy", "what": work.value, "about": _short(microbatch), "began": now})
        return now, time.thread_time()

    def end(self, work: Work, microbatch: MicrobatchId, marks: tuple[float, float], keeps: bool) -> float:
        """Return when the device would be done; a backward without `keeps` takes it a forward more, which is returned."""
        began, cpu = marks
        again_s = self._work_s.get(Work.FORWARD, 0.0) if work is Work.BACKWARD and not keeps else 0.0
        real_s, cpu_s = time.monotonic() - began, time.thread_time() - cpu
        left_s = self._work_s.get(work, 0.0) + again_s - real_s
        if left_s > 0:
            self._closed.wait(left_s)
        fields = {"op": "work", "what": work.value, "about": _short(microbatch), "began": began, "ended": time.monotonic()}
        self._wire.note({**fields, "real_s": real_s, "cpu_s": cpu_s, "late": left_s < 0 and work in self._work_s})
        return again_s

    def measured(self, seconds: Mapping[Work, float]) -> dict[Work, float]:
        """What the device would take for what really took so long."""
        trials = {Work.FORWARD, Work.BACKWARD, Work.EMBED, Work.LOSS} & self._work_s.keys()
        return {**seconds, **{work: max(self._work_s[work], seconds.get(work, 0.0)) for work in trials}}

    def close(self) -> None:
        """Wait for nothing more."""
        self._closed.set()


def _short(microbatch: MicrobatchId) -> str:
    return f"{microbatch.iteration}/{microbatch.index}"
