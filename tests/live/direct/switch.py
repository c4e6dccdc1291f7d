"""A way between two peers' data ports that a test can cut: bytes are passed on until then."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Self

from tests.live.direct.conftest import DirectPeer

_PIECE = 1 << 16


class Switch:
    """In front of one port. `has_cut` tells that what the test asked for has come to pass."""

    def __init__(self, port: int) -> None:
        self._port, self._left = port, 0
        self._cuts_answers, self._answers_from = False, 0
        self.has_cut = False
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def between(self, opener: DirectPeer, other: DirectPeer) -> None:
        """What the opener sends to the other goes through here from now on."""
        await opener.opened(other)
        doors = opener.direct._doors
        assert doors is not None
        door = doors._doors[other.id]
        assert door.invitation is not None
        door.invitation = replace(door.invitation, port=self._server.sockets[0].getsockname()[1])
        opener.rpc.path_changed(other.id)

    def cut_after(self, count: int) -> None:
        """End all connections when so many more bytes have passed towards the port."""
        self._left = count

    def cut_answers(self, behind: int) -> None:
        """End all connections when an answer comes back behind so many bytes: a payload's acknowledgement."""
        self._cuts_answers, self._answers_from = True, behind

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, to]
        passed = [0]
        self._tasks += [
            asyncio.ensure_future(self._pass(reader, to, passed)),
            asyncio.ensure_future(self._pass_back(there, writer, passed)),
        ]

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: list[int]) -> None:
        while piece := await reader.read(_PIECE):
            passed[0] += len(piece)
            if self._left and passed[0] >= self._left:
                self._cut()
                return
            writer.write(piece)
            await writer.drain()
        writer.transport.abort()

    async def _pass_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: list[int]) -> None:
        while piece := await reader.read(_PIECE):
            if self._cuts_answers and passed[0] > self._answers_from:
                self._cut()
                return
            writer.write(piece)
        writer.transport.abort()

    def _cut(self) -> None:
        self.has_cut = True
        self._left, self._cuts_answers = 0, False
        self._server.close()
        self._end()

    def _end(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
