"""The exchange of records of many peers that do nothing, simulated: bytes of the real decisions (`world`), from 26 to 1,000.

The DHT beside it is added by what was measured of it live: a record of 2,180 bytes is stored on five machines every second
period, the machines are searched for each minute, and what is read beside the exchange costs `FALLBACK_BYTES_PER_S` at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.idle_traffic.world import ExchangeWorld, Member
from gwtf_p2p.protocol.exchange.pace import FALLBACK_BYTES_PER_S, RECORD_PERIOD_S, orders_s, round_s
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord

MACHINES, STORED_BYTES, SEARCH_BYTES, ANSWER_BYTES = 5, 2180, 9000, 1400
SETTLED_ROUNDS, MEASURED_ROUNDS = 5, 10
"""Five are a period; everybody knows everybody from the beginning on."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """What one peer sends, in kB/s: by the exchange, and by the DHT; `known`: of all pairs of peers, the share that know each
    other."""

    peers: int
    exchange_kb_s: float
    dht_kb_s: float
    known: float

    @property
    def total_kb_s(self) -> float:
        """Of all peers."""
        return self.peers * (self.exchange_kb_s + self.dht_kb_s)


def records(peers: int, stages: int = 3, data_peers: int = 2) -> list[StageRecord]:
    """Of a swarm in which everybody is online."""
    return [
        StageRecord(
            peer=PeerId(f"Qm{number:044d}"),
            run_id=RunId("quiet"),
            stage=Stage(0 if number < data_peers else 1 + number % stages),
            state=PeerState.ONLINE,
            capacity=4,
            exchanges=True,
        )
        for number in range(peers)
    ]


def settled(peers: int, seed: int) -> ExchangeWorld:
    """Everybody knows everybody, as when a swarm has come together one by one."""
    world = ExchangeWorld(seed)
    for record in records(peers):
        world.add(record, [], looks=False)
    members = list(world.members.values())
    own = [member.statement for member in members]
    for member in members:
        for statement in own:
            if statement is not None:
                member.exchange.table.take(statement, statement.record.peer, world.now)
        member.exchange.table.urgent.clear()
    for member in members:
        world.look(member)
    return world


def quiet(peers: int, seed: int) -> Quiet:
    """Measured over some rounds, after as many in which peers meet."""
    world, round_ = settled(peers, seed), round_s(peers)
    world.run(SETTLED_ROUNDS * round_)
    before, seconds = world.sent_bytes.total(), MEASURED_ROUNDS * round_
    world.run(seconds)
    stored = MACHINES * STORED_BYTES / (2 * RECORD_PERIOD_S) + SEARCH_BYTES / 60
    asked = MACHINES * ANSWER_BYTES / orders_s(peers, exchanges=True)
    return Quiet(
        peers=peers,
        exchange_kb_s=round((world.sent_bytes.total() - before) / seconds / peers / 1e3, 3),
        dht_kb_s=round((stored + asked + FALLBACK_BYTES_PER_S) / 1e3, 3),
        known=round(sum(len(_known(member, world.now)) for member in world.members.values()) / peers**2, 4),
    )


def _known(member: Member, now: float) -> dict[PeerId, StageRecord]:
    return member.records(now)
