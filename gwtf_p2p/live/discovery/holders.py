"""Stores a record on the machines that keep its key, without a search each time.

hivemind searches for the machines nearest to a key before each store, and everybody it asks on the way answers with all that it
has under that key: in a stage of many peers that is far more than the record. The machines change only as peers come and go.
They are found by asking for a *neighbour* of the key, which differs in the last bit: the same machines are nearest to it, and
nobody has anything there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID

SEARCH_AGAIN_S = 60.0
MOST_KEYS = 64


@dataclass(frozen=True, slots=True)
class _Known:
    machines: tuple[PeerID, ...]
    until: float


class Holders:
    """Of one DHT node. `clock` in seconds; `replicas`: machines that are to keep a record."""

    def __init__(self, node: DHTNode, replicas: int, clock: Callable[[], float]) -> None:
        self._node, self._replicas, self._clock = node, replicas, clock
        self._known: dict[DHTID, _Known] = {}

    async def store(self, key: str, value: bytes, expires_at: float, subkey: bytes) -> bool:
        """Whether all of the machines that are known to be nearest have it now; if not, they are searched for next time."""
        key_id = DHTID.generate(source=key)
        machines = await self._machines(key_id)
        if not machines:
            return False
        signed = self._signed(key_id, value, expires_at, subkey)
        kept = await asyncio.gather(*(self._store_on(machine, key_id, signed, subkey) for machine in machines))
        if not all(kept):
            del self._known[key_id]
        return all(kept)

    async def _machines(self, key_id: DHTID) -> tuple[PeerID, ...]:
        known = self._known.get(key_id)
        if known is None or known.until <= self._clock():
            neighbour = DHTID(int(key_id) ^ 1)
            found = await self._node.find_nearest_nodes([neighbour], self._replicas, beam_size=self._replicas + 1)
            known = _Known(tuple(found[neighbour].values()), self._clock() + SEARCH_AGAIN_S)
            self._known[key_id] = known
            if len(self._known) > MOST_KEYS:
                del self._known[next(iter(self._known))]
        return known.machines

    def _signed(self, key_id: DHTID, value: bytes, expires_at: float, subkey: bytes) -> DHTRecord:
        protocol = self._node.protocol
        packed = protocol.serializer.dumps(subkey), protocol.serializer.dumps(value)
        record = DHTRecord(key_id.to_bytes(), *packed, expires_at)
        return replace(record, value=protocol.record_validator.sign_value(record))

    async def _store_on(self, machine: PeerID, key_id: DHTID, signed: DHTRecord, subkey: bytes) -> bool:
        protocol = self._node.protocol
        if machine == self._node.peer_id:
            return bool(protocol.storage.store(key_id, signed.value, signed.expiration_time, subkey=subkey))
        stored = await protocol.call_store(machine, [key_id], [signed.value], signed.expiration_time, subkeys=[subkey])
        return bool(stored and all(stored))
