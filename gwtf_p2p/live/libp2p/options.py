"""How a peer takes part in libp2p, as its user says it: where it listens, whom it joins, and what it grants to others.

Nothing is started here and no hivemind is imported, so that a wrong flag is answered before anything heavy is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from gwtf_p2p.live.libp2p.maddrs import InitialPeer, parse_initial_peer

_START_S = 12.0
_CROWDED_START_S = 60.0
"""Of one among others of one machine, which have its cores too."""

_BUFFER_BYTES = 262144
"""Of each circuit, and allocated at once: p2pd's own 16 MiB are no faster (measured)."""


@dataclass(frozen=True, slots=True)
class Lending:
    """What a public peer lends to those that it circuit relays for: to any libp2p program, since p2pd asks nobody whether it
    takes part in a run. `slots`: peers at once, 0 for none; the rest is of each circuit, bytes in each direction.

    p2pd's own 4 GiB and 30 min would cut a circuit in the middle of a training run, and its 16 circuits per peer are fewer than
    the neighbours that a peer behind NAT may have.
    """

    slots: int = 256
    circuit_bytes: int = 64 << 30
    circuit_hours: int = 24
    circuits_per_peer: int = 256

    @property
    def flags(self) -> tuple[str, ...]:
        """As p2pd spells them."""
        return (
            f"-relayDataLimit={self.circuit_bytes}",
            f"-relayTimeLimit={self.circuit_hours}h",
            f"-relayMaxCircuits={self.circuits_per_peer}",
            f"-relayMaxReservations={self.slots}",
            f"-relayBufferSize={_BUFFER_BYTES}",
        )

    @property
    def words(self) -> str:
        """For whoever lends it, in one sentence."""
        if not self.slots:
            return "it lends no circuits"
        size = f"{self.circuit_bytes / (1 << 30):g} GiB each way and {self.circuit_hours} h"
        return f"it lends circuits to any libp2p program, of this run or not: {self.slots} slots, {size} per circuit"


@dataclass(frozen=True, slots=True)
class P2POptions:
    """How a peer takes part in libp2p. The defaults are those of a peer on a public or local address.

    `host_maddrs` empty: listen nowhere. `dht_mode`, of libp2p's own DHT: server, client (for peers that nobody can dial), or
    auto, as AutoNAT finds. `check_identity`: ask the swarm whether another peer runs with this identity (0.3 s and a second
    p2pd for a moment). `auto_nat`: find out how others can reach this peer, and make it so. `is_public`: this peer is known to
    be reachable; p2pd need not find out, and circuit relays for others at once (`public_relay`). `is_quiet`: this p2pd does
    nothing unasked: no DHT of libp2p's, and nobody asked to dial back, since a peer that is asked more than 30 times a minute
    refuses. `outlives`: it goes on when its peer has crashed, for the next one, and logs nothing. `lending`: see there;
    None for p2pd's own limits. `relay_flags` are more of p2pd's flags, which win.
    `data_port`: a port beside p2pd's, at the same addresses, where payloads come in without p2pd (`live/direct`);
    0 for any, None: all go through p2pd.

    Noise is off: this p2pd would prefer it to TLS, which costs about half the CPU (measured) and which every p2pd of hivemind
    speaks. A libp2p program that speaks Noise alone can neither join nor be circuit relayed.
    """

    initial_peers: tuple[InitialPeer, ...] = ()
    host_maddrs: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce_maddrs: tuple[str, ...] = ()
    use_relay: bool = True
    use_auto_relay: bool = False
    dht_mode: str = "server"
    auto_nat: bool = True
    nat_port_map: bool = True
    noise: bool = False
    check_identity: bool = True
    is_public: bool = False
    is_quiet: bool = False
    outlives: bool = False
    start_timeout_s: float = _START_S
    lending: Lending | None = Lending()
    relay_flags: tuple[str, ...] = ()
    data_port: int | None = 0

    @classmethod
    def on_this_machine(cls, *maddrs: str) -> P2POptions:
        """Of a peer among others of one machine, which finds nothing out about how it is reached; empty multiaddrs are none.

        Raises InputError.
        """
        peers = tuple(parse_initial_peer(maddr) for maddr in maddrs if maddr)
        start_s = _CROWDED_START_S
        return cls(peers, auto_nat=False, nat_port_map=False, check_identity=False, start_timeout_s=start_s)
