"""The greeting of a secret run: both ends prove that they have the run's token before anything else is said.

    opener -> acceptor   greeting
    acceptor -> opener   greeting PROVE . number
    opener -> acceptor   number . proof
    acceptor -> opener   greeting OK . proof, or greeting WRONG_TOKEN

Whoever opens proves first, so a stranger that opens a stream is told nothing that it could try guesses on. An opener with a
token does not go on with an acceptor that asks for none.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from gwtf_p2p.live.libp2p.run_secret import NONCE_BYTES, PROOF_BYTES, RunSecret
from gwtf_p2p.protocol.ids import PeerId


@dataclass(frozen=True, slots=True)
class Prover:
    """One end: its peer and the run's secret."""

    me: PeerId
    secret: RunSecret

    async def answer(self, acceptor: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, purpose: int) -> bytes:
        """The opener's proof, for a number that is read here. Returns the numbers, for the acceptor's proof."""
        numbers = await reader.readexactly(NONCE_BYTES) + os.urandom(NONCE_BYTES)
        proof = self.secret.proof("opener", self.me, acceptor, numbers, purpose)
        writer.write(numbers[NONCE_BYTES:] + proof)
        return numbers

    async def believes(self, acceptor: PeerId, reader: asyncio.StreamReader, numbers: bytes, purpose: int) -> bool:
        """The acceptor's proof, which is read here, is right."""
        given = await reader.readexactly(PROOF_BYTES)
        return self.secret.is_proof(given, "acceptor", self.me, acceptor, numbers, purpose)

    async def challenge(
        self, opener: PeerId, asked: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, purpose: int
    ) -> bytes | None:
        """Ask an opener for its proof: `asked` is what says so. The acceptor's own proof, None when the opener's is wrong."""
        number = os.urandom(NONCE_BYTES)
        writer.write(asked + number)
        numbers = number + await reader.readexactly(NONCE_BYTES)
        given = await reader.readexactly(PROOF_BYTES)
        if not self.secret.is_proof(given, "opener", opener, self.me, numbers, purpose):
            return None
        return self.secret.proof("acceptor", opener, self.me, numbers, purpose)
