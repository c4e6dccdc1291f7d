"""What becomes of a stream that another peer opens: its greeting within bounds, the proof of a secret run, then its frames."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from gwtf_p2p.live.rpc.acceptor import Acceptor
from gwtf_p2p.live.rpc.frames import FrameStream
from gwtf_p2p.live.rpc.greeting import Greeted, OtherVersion, Purpose, accept_frames, accept_greeting, challenge, refuse
from gwtf_p2p.live.rpc.incoming import IncomingStream
from gwtf_p2p.live.rpc.meter import Meter
from gwtf_p2p.live.rpc.proving import Prover
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.ids import PeerId

logger = logging.getLogger(__name__)


class Entrance:
    """Where streams come in while it `is_open`. `admits` is asked whose are taken; `meter` and `line` count and cap them.
    `tells_port`: who asks for the data port is answered."""

    def __init__(self, acceptor: Acceptor, prover: Prover | None, meter: Meter, line: Line) -> None:
        self._acceptor, self._prover = acceptor, prover
        self._meter, self._line = meter, line
        self.is_open = self.tells_port = False
        self.admits: Callable[[PeerId], bool] = lambda peer: True

    async def accept(
        self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_direct: bool = False
    ) -> None:
        """A stream of a peer that whatever it came over has authenticated."""
        greeted = None
        with self._acceptor.greeting(sender) as may_greet:
            try:
                async with asyncio.timeout(self._acceptor.options.first_try_s):
                    greeted = await self._greeted(sender, reader, writer) if may_greet else None
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
                pass
        ended = reader.at_eof() or writer.is_closing()
        if greeted is None or ended or not self.is_open or not self._may_enter(sender, greeted[0], is_direct):
            writer.transport.abort()
            return
        purpose, proof = greeted
        stream = IncomingStream(sender, self._acceptor, purpose, is_direct=is_direct)
        self._acceptor.add(stream)
        stream.frames = accept_frames(writer, stream, proof)
        self._equip(stream.frames, sender, is_direct)
        stream.watch_progress()

    def _equip(self, frames: FrameStream, sender: PeerId, is_direct: bool) -> None:
        frames.meter, frames.line, frames.is_direct = self._meter, self._line, is_direct
        frames.may_hold = partial(self._acceptor.may_hold, sender)

    async def _greeted(
        self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Purpose, bytes] | None:
        """None when the stream is not for this peer; else what it is for, and what proves in a secret run that this peer has
        its token."""
        try:
            purpose = await accept_greeting(reader)
        except OtherVersion as error:
            logger.info("refused a stream of %s: %s", sender, error)
            await refuse(reader, writer)
            return None
        if purpose is None or (purpose is Purpose.DIRECT and not self.tells_port):
            return None
        if self._prover is None:
            return purpose, b""
        proof = await challenge(self._prover, sender, reader, writer, purpose)
        if proof is None:
            logger.info("refused a stream of %s: it has not the token of this run", sender)
            await refuse(reader, writer, Greeted.WRONG_TOKEN)
            return None
        return purpose, proof

    def _may_enter(self, sender: PeerId, purpose: Purpose, is_direct: bool) -> bool:
        if not self.admits(sender) or (is_direct and not self._acceptor.takes_direct(sender)):
            return False  # asked before the handshake too, when others of its own may have been under way
        return self._acceptor.admits(sender, purpose)
