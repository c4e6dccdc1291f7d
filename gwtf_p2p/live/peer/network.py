"""What a peer is connected by, put together before it looks for its run: p2pd, its reachability, the DHT, and the ways."""

from __future__ import annotations

from dataclasses import dataclass, field

from gwtf_p2p.live.discovery.dht import Dht
from gwtf_p2p.live.discovery.order_book import OrderBook
from gwtf_p2p.live.discovery.peer_cache import PeerCache
from gwtf_p2p.live.discovery.signing import OwnedRun
from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.dialling import is_circuit
from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.nat.paths import Paths
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PathType


@dataclass(frozen=True, slots=True)
class Network:
    """Without `reachability` and `paths` p2pd alone finds the ways: on one machine, or for bootstrap peers. `line`: what may
    pass to and from other peers. `run` and `orders` are what it publishes to keep its run alive, once it has found it."""

    daemon: Daemon
    dht: Dht
    identity: Identity
    reachability: Reachability | None = None
    paths: Paths | None = None
    cache: PeerCache | None = None
    line: Line = field(default_factory=Line)
    run: OwnedRun | None = None
    orders: OrderBook | None = None
    secret: RunSecret | None = None

    def saw(self, view: NetworkView) -> None:
        """Where the peers of this view are to be found, and who of them can relay."""
        if self.paths is None or self.reachability is None:
            return
        self.paths.learn(view)
        for peer, record in view.records.items():
            if record.path is PathType.PUBLIC:
                self.reachability.learn(peer, record.maddrs)
                if self.cache is not None:
                    self.cache.note(f"{maddr}/p2p/{peer}" for maddr in record.maddrs if not is_circuit(maddr))
