"""The data plane: tensors pushed and small messages sent from peer to peer, over hivemind's libp2p streams or direct ones.

- `push`: header and payload to one peer. The peer answers the header at once, before the payload is there; it acknowledges when
  length and checksum are right. Whatever happens, the sender hears of it: a result, or PushFailed with its kind.
- `call`: a small message, answered.
- `watch`: hear within milliseconds when a peer's process dies, without sending it anything.

Handlers run in the event loop and return at once; computing is somebody else's thread. A receiver that accepted an offer gets
exactly one of `on_delivery` and `on_broken` for it. After PushFailed with kind BROKEN or TIMEOUT the receiver may have got the
payload all the same: whoever sends it again must be able to tell (the protocol does, by microbatch id and attempt).

Why not hivemind's protobuf handlers: its streams build and parse a protobuf message per chunk (three copies of every byte),
open a stream per call, take an early end for a normal one, and leak a connection per failed open; its unary calls hang above
4 MiB. Same p2pd, same libp2p protocol negotiation: see `frames` for what is on a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from gwtf_p2p.live.direct.direct import DirectStreams
from gwtf_p2p.live.direct.doors import KIND
from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.rpc.acceptor import Acceptor
from gwtf_p2p.live.rpc.api import (
    DEFAULT_OPTIONS,
    CallFailed,
    FailureKind,
    Header,
    Payload,
    PushFailed,
    PushResult,
    RpcFailed,
    RpcHandlers,
    RpcOptions,
    RpcService,
)
from gwtf_p2p.live.rpc.entrance import Entrance
from gwtf_p2p.live.rpc.frames import Frame, FrameStream
from gwtf_p2p.live.rpc.greeting import Purpose, protocol_name
from gwtf_p2p.live.rpc.outgoing import (
    NotTaken,
    OutgoingStream,
    PlainWays,
    StreamLost,
    StreamPool,
    Ways,
    call_on,
)
from gwtf_p2p.live.rpc.proving import Prover
from gwtf_p2p.live.rpc.push import Gate, Push
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, RunId

__all__ = [
    "CallFailed",
    "FailureKind",
    "Header",
    "PushFailed",
    "PushResult",
    "Rpc",
    "RpcFailed",
    "RpcHandlers",
    "RpcOptions",
    "RpcService",
]


class Rpc:
    """The data plane of one peer in one run. Peers of another run refuse its streams. `ways`: how it gets to the others;
    `line`: what may pass, both ways; `secret`: nobody without the run's token gets past the greeting. `direct`: payloads need
    not go through p2pd. `admits` is asked whose streams are taken."""

    def __init__(
        self,
        daemon: Daemon,
        run_id: RunId,
        options: RpcOptions = DEFAULT_OPTIONS,
        ways: Ways | None = None,
        line: Line | None = None,
        *,
        secret: RunSecret | None = None,
        direct: DirectStreams | None = None,
    ) -> None:
        self._daemon = daemon
        self._options = options
        self._name = protocol_name(run_id)
        self._ways = ways or PlainWays()
        prover = Prover(daemon.peer_id, secret) if secret is not None else None
        self._direct = direct
        path, line = daemon.control_path, line or Line()
        self._pool = StreamPool(path, self._name, options, self._ways, line, prover=prover, direct=direct)
        self._acceptor = Acceptor(options, self._service_for)
        self.meter, self.line = self._pool.meter, self._pool.line
        self._entrance = Entrance(self._acceptor, prover, self.meter, self.line)
        self._entrance.admits = lambda peer: self.admits(peer)
        self._entrance.tells_port = direct is not None
        self._services: dict[str, RpcService] = {} if direct is None else {KIND: direct}
        self._handlers: RpcHandlers | None = None
        self.admits: Callable[[PeerId], bool] = lambda peer: True
        self._watches: dict[PeerId, _Watch] = {}
        self.is_receiving: Callable[[], bool] = lambda: self._acceptor.inflight_bytes > 0
        """Whether a payload is on its way to this peer."""

    @property
    def peer_id(self) -> PeerId:
        return self._daemon.peer_id

    def know(self, is_member: Callable[[PeerId], bool]) -> None:
        """Who has a record that counts: strangers may take less of this peer."""
        self._acceptor.knows = is_member

    async def start(self, handlers: RpcHandlers) -> None:
        """Accept streams from now on. Everything whose kind has no service of its own goes to `handlers`."""
        self._handlers, self._entrance.is_open = handlers, True
        await self._daemon.p2p.add_binary_stream_handler(self._name, self._accept)
        if self._direct is not None:
            accept = partial(self._entrance.accept, is_direct=True)
            self._direct.start(self._ask, accept, self._may_connect, lambda peer: self._acceptor.knows(peer))

    def add_service(self, kind: str, service: RpcService) -> None:
        """Pushes and calls whose header has this `kind` go to `service`."""
        if kind in self._services:
            raise ValueError(f"the kind {kind!r} has a service already")
        self._services[kind] = service

    async def stop(self) -> None:
        """End every stream at once, and accept none. Pushes under way fail here and at the other end. May be called twice."""
        for watch in list(self._watches.values()):
            watch.close()
        self._watches.clear()
        self._pool.close()
        self._acceptor.close()
        if self._direct is not None:
            await self._direct.stop()
        if self._entrance.is_open:
            self._entrance.is_open = False
            with suppress(OSError, asyncio.IncompleteReadError):  # the own p2pd may be gone already
                await self._daemon.p2p.remove_binary_stream_handler(self._name)

    async def push(
        self,
        to: PeerId,
        header: Header,
        payload: Payload,
        deadline_s: float,
        *,
        eager: bool = True,
        gate: Gate | None = None,
    ) -> PushResult:
        """Send header and payload; returns when they are acknowledged, or refused (`accepted` is False in the result).

        The payload must not change meanwhile. `eager=False` waits for the verdict before it sends the payload; the `gate` is
        waited for before the payload's end is. Raises PushFailed.
        """
        push = Push(self._pool, self._ways, to, header, memoryview(payload).cast("B"), eager=eager)
        push.gate = gate
        whole_bytes = None
        try:
            async with asyncio.timeout(deadline_s):
                result = await push.run()
            whole_bytes = result.sent_bytes if result.accepted else None
            return result
        except _FAILURES as error:
            kind, reason = _why(error, deadline_s, push.opened)
            raise PushFailed(to, kind, reason) from error
        finally:
            self.meter.pushed(str(header.get("kind")), push.sent_bytes, whole_bytes)

    async def call(self, to: PeerId, header: Header, deadline_s: float, *, idempotent: bool = False) -> Header:
        """A small message and its reply. `idempotent` allows a second try when the stream broke or half the deadline passed.

        Raises CallFailed.
        """
        try:
            async with asyncio.timeout(deadline_s):
                if idempotent:
                    with suppress(StreamLost, TimeoutError):
                        async with asyncio.timeout(deadline_s / 2):
                            return await self._call_once(to, header)
                    while self._ways.is_fragile(to):  # its circuits may end at any moment; the deadline ends this
                        with suppress(StreamLost):
                            return await self._call_once(to, header)
                return await self._call_once(to, header)
        except _FAILURES as error:
            kind, reason = _why(error, deadline_s, opened=True)
            raise CallFailed(to, kind, reason) from error

    def watch(self, peer: PeerId) -> None:
        """Hold a silent stream open to `peer`; when it breaks or cannot be opened, `on_watch_broken` is called, once."""
        if peer not in self._watches:
            self._watches[peer] = _Watch(self, peer)

    def unwatch(self, peer: PeerId) -> None:
        watch = self._watches.pop(peer, None)
        if watch is not None:
            watch.close()

    def bar(self, peer: PeerId, seconds: float) -> None:
        """End its streams, and accept none of it for so long; 0 ends an earlier bar."""
        self._acceptor.bar(peer, seconds)
        if seconds > 0:
            self._pool.drop_idle(peer)

    def path_changed(self, peer: PeerId) -> None:
        """There is a better path to a peer now: streams are opened anew, those under way end where they are."""
        self._pool.drop_idle(peer)

    def is_idle(self, peer: PeerId | None = None) -> bool:
        """Whether nothing is under way to the peer, or to anybody; a watch is nothing."""
        return self._pool.is_idle(peer)

    async def signal(self, to: PeerId, header: Header, deadline_s: float, purpose: Purpose = Purpose.TRANSFER) -> Header:
        """A call on a stream of its own, over whatever connection there is: how a better path is agreed on.

        Raises CallFailed.
        """
        listener = OutgoingStream(lambda _: None)
        try:
            async with asyncio.timeout(deadline_s):
                listener.frames, _ = await self._pool.open(to, purpose, listener)
                return await call_on(listener, header)
        except _FAILURES as error:
            kind, reason = _why(error, deadline_s, opened=True)
            raise CallFailed(to, kind, reason) from error
        finally:
            listener.close()

    async def _call_once(self, to: PeerId, header: Header) -> Header:
        async with self._pool.stream(to) as stream:
            return await call_on(stream, header)

    def _may_connect(self, peer: PeerId) -> bool:
        return self.admits(peer) and self._acceptor.takes_direct(peer)

    def _service_for(self, header: Header) -> RpcService:
        assert self._handlers is not None, "streams are accepted only after start"
        return self._services.get(str(header.get("kind")), self._handlers)

    async def _accept(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A stream through p2pd that another peer opened; hivemind calls this in a task of its own."""
        await self._entrance.accept(PeerId(str(info.peer_id)), reader, writer)

    async def _ask(self, peer: PeerId, header: Header) -> Header:
        """Raises RpcFailed."""
        return await self.signal(peer, header, 2 * self._options.first_try_s, Purpose.DIRECT)

    def _watch_broken(self, peer: PeerId, reason: str) -> None:
        if self._watches.pop(peer, None) is not None and self._handlers is not None:
            self._handlers.on_watch_broken(peer, reason)


class _Watch:
    """One watched peer. The stream carries nothing; that it ends is the news."""

    def __init__(self, rpc: Rpc, peer: PeerId) -> None:
        self._rpc = rpc
        self._peer = peer
        self._frames: FrameStream | None = None
        self._opening = asyncio.get_running_loop().create_task(self._open())

    def close(self) -> None:
        self._opening.cancel()
        if self._frames is not None:
            self._frames.close()

    def on_frame(self, kind: Frame, body: bytes) -> None:
        """Nothing is due on a watch; whatever comes is ignored."""

    def on_lost(self, reason: str) -> None:
        if self._frames is not None and self._rpc._ways.is_fragile(self._peer):
            self._frames = None  # perhaps only the path has ended: the news is whether another can be had
            self._opening = asyncio.get_running_loop().create_task(self._open())
            return
        self._rpc._watch_broken(self._peer, reason)

    async def _open(self) -> None:
        rpc = self._rpc
        try:
            async with asyncio.timeout(2 * rpc._options.first_try_s):
                while self._frames is None:
                    await rpc._ways.ready(self._peer)
                    try:
                        self._frames, _ = await rpc._pool.open(self._peer, Purpose.WATCH, self)
                    except RpcFailed:
                        if not rpc._ways.is_fragile(self._peer):
                            raise
                        await asyncio.sleep(AGAIN_S)
        except (TimeoutError, RpcFailed) as error:
            self.on_lost(str(error) or "no answer when the watch was opened")


AGAIN_S = 0.1
"""Between attempts to watch a peer whose circuits come and go."""

_FAILURES = (TimeoutError, StreamLost, NotTaken, RemoteProtocolError)


def _why(error: Exception, deadline_s: float, opened: bool) -> tuple[FailureKind, str]:
    """Kind and reason of a failed exchange. `opened`: something may have been said to the peer."""
    if isinstance(error, TimeoutError) and not opened:
        return FailureKind.UNREACHABLE, f"no stream within {deadline_s:.1f} s"
    if isinstance(error, TimeoutError):
        return FailureKind.TIMEOUT, f"no answer within {deadline_s:.1f} s"
    if isinstance(error, (NotTaken, RpcFailed)):
        return error.kind, error.reason
    return FailureKind.BROKEN, str(error)
