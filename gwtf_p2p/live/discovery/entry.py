"""How a peer enters the DHT: under which id, and through whom."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from hivemind.dht import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID

from gwtf_p2p.protocol.ids import PeerId

_TRIES = 4


def dht_id_of(peer: PeerId) -> DHTID:
    """A peer's place in the DHT: the same at each of its starts.

    A DHT id that is drawn anew at each start stays behind in the others' routing tables: they take one machine for several, and
    keep fewer copies of a record than they count.
    """
    return DHTID.generate(source=PeerID.from_base58(peer).to_bytes())


async def is_let_in(node: DHTNode, initial: Collection[PeerId], answer_s: float) -> bool:
    """Ping the initial peers until one answers, and find the nearest neighbours through those that do.

    hivemind's own start asks once: a machine that is busy for three seconds then ends a newcomer. Who refuses does so at once,
    in every try. A clock that is off is measured and judged in `clock_skew`, and not here.
    """
    peers = [PeerID.from_base58(peer) for peer in initial]
    for _ in range(_TRIES):
        pings = (node.protocol.call_ping(peer, validate=True, strict=False) for peer in peers)
        if any(await asyncio.gather(*pings)):
            await asyncio.wait([asyncio.ensure_future(node.find_nearest_nodes([node.node_id]))], timeout=answer_s)
            return True
    return False
