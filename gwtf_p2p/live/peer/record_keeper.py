"""Keeps this peer's record in the DHT fresh, and the peer's view of all others' records.

A record goes out every period, and when the protocol asks for it: soon when others route, plan or join by what has changed in
it (`publishing.news_of`); what only accounts for the peer (its figures, its links, a stage peer's version) waits for
`ROUTINE_S`. Reading is quicker while a swarm assembles or this peer joins than later, and when a peer that has come back says
that it serves, which its record is to show before anybody plans with it. This peer's own record enters its view
as it is published, without another reading.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from gwtf_p2p.live.discovery.dht import Records
from gwtf_p2p.live.discovery.order_book import OrderBook
from gwtf_p2p.live.discovery.signing import OwnedRun
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.measure.run_progress import Progress
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.peer.assembly import Place
from gwtf_p2p.live.peer.config import RECORD_PERIOD_S
from gwtf_p2p.protocol.core.failure_detector import Liveness
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.own_record import OwnMeasurements, news_of, stage_record
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.trust.state_access import LEAST_PERIOD_S
from gwtf_p2p.protocol.view.contributions import Contributions
from gwtf_p2p.protocol.view.contributions_told import pages_of
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.messages import Standing
from gwtf_p2p.protocol.wire.records import PeerState, RunRecord, StageRecord
from gwtf_p2p.protocol.wire.signed import Order
from gwtf_p2p.version import VERSION

logger = logging.getLogger(__name__)

VIEW_PERIOD_S = 2.0
ORDERS_PERIOD_S = 5.0
ASSEMBLING_PERIOD_S = 0.5
EXPECTING_PERIOD_S, EXPECTED_FOR_S = 0.3, 3.0
"""How often records are read when a peer has said that it serves and its record does not say so yet, and for how long."""

MOST_EXPECTED = 256
PUBLISH_SOON_S = 0.2
ROUTINE_S = 5.0
NUMBERS_PER_S = 10

NOBODY_KEEPS_IT = "no peer of the DHT keeps this peer's record"
"""What a peer says then; `experiments.restarts` counts it."""


async def read_view(dht: Records, run: RunRecord) -> NetworkView:
    """All records of this very model."""
    records = await _read(dht, run)
    return NetworkView.of(records, run.stages, run.activation_bytes, None, run.gradient_bytes, run.end_bytes)


def asking_record(
    me: PeerId, run: RunRecord, stage: Stage, sequence_number: int, reachability: Reachability | None
) -> StageRecord:
    """Of a peer that takes no part, or not yet: in no plan, and no commit waits for it; it may ask (`trust/state_access`)."""
    record = StageRecord(
        peer=me,
        run_id=run.run_id,
        stage=stage,
        state=PeerState.ASKING,
        capacity=0,
        model_hash=run.model_hash,
        sequence_number=sequence_number,
    )
    if reachability is None:
        return record
    return replace(record, path=reachability.path, maddrs=reachability.maddrs)


async def _read(dht: Records, run: RunRecord) -> list[StageRecord]:
    stages = [Stage(number) for number in range(run.stages + 1)]
    return [record for record in await dht.read_stages(run.run_id, stages) if record.model_hash == run.model_hash]


@dataclass(frozen=True, slots=True)
class KeptAlive:
    """What data peers publish besides their own record: the run record, and the orders of its owner and admins."""

    run: OwnedRun
    orders: OrderBook


class RecordKeeper:
    """Of one peer. `keep_publishing`, `keep_looking` and `keep_obeying` run until cancelled."""

    def __init__(
        self, dht: Records, kept_alive: KeptAlive, place: Place, probes: LinkProbes, reachability: Reachability | None = None
    ) -> None:
        self._dht, self._kept_alive, self._place, self._probes = dht, kept_alive, place, probes
        self._run, self.orders = kept_alive.run.record, kept_alive.orders
        self._reachability = reachability
        self.progress = Progress()
        self._due = asyncio.Event()
        self._due.set()
        self._changed = asyncio.Event()
        self._is_wanted = False
        self._expected: dict[PeerId, float] = {}
        self.on_read: Callable[[float], None] = lambda began_at: None
        self._own: StageRecord | None = None
        # Newer than what this peer published before it started again, or in another stage; it publishes less often than that.
        self._sequence = int(time.time() * NUMBERS_PER_S)
        self.resent_bytes: Callable[[], int] = lambda: 0
        self.signing_key = ""
        self.copied: Callable[[], tuple[int, ...]] = lambda: ()
        self.public_name = ""
        self.contributions: Callable[[], Contributions] = Contributions

    def publish_soon(self) -> None:
        self._due.set()

    def look_soon(self) -> None:
        """Somebody is waiting for the records to be read: sooner than they would be."""
        self._is_wanted = True
        self._changed.set()

    def said(self, peer: PeerId, standing: Standing) -> None:
        """Where another one stands: of one that serves, a record that says so is expected (`keep_looking`)."""
        serves = not (standing.joining or standing.syncing or standing.leaving)
        if serves and standing.stage != DATA_STAGE and len(self._expected) < MOST_EXPECTED:
            self._expected[peer] = asyncio.get_running_loop().time() + EXPECTED_FOR_S
            self._changed.set()

    def _is_expecting(self, others: Sequence[StageRecord], liveness: Liveness) -> bool:
        """Whether somebody serves whose record does not say so, or is the one with which it was lost."""
        states, now = {record.peer: record.state for record in others}, asyncio.get_running_loop().time()
        self._expected = {
            peer: until
            for peer, until in self._expected.items()
            if now < until and (states.get(peer) is not PeerState.ONLINE or liveness.is_lost(peer) or peer in liveness.back)
        }
        return bool(self._expected)

    async def announce(self, me: PeerId) -> None:
        """Before this peer takes part: a record that says that it does not, so that it may ask."""
        record = asking_record(me, self._run, self._place.stage, self._sequence, self._reachability)
        if not await self._dht.publish_stage(record):
            logger.warning("%s; others may not tell what they keep", NOBODY_KEEPS_IT)

    async def keep_publishing(self, machine: StagePeer | DataPeer) -> None:
        run_due_at, clock = 0.0, asyncio.get_running_loop().time
        told: tuple[float, Contributions] = 0.0, Contributions()
        while True:
            await self._until_due(machine)
            self._sequence += 1
            self._own = stage_record(machine, self._own_measurements(), self._sequence)
            self._changed.set()  # a router plans on this peer's own record too: it must not lag behind
            if not await self._dht.publish_stage(self._own):
                logger.warning("%s; it is published again in a moment", NOBODY_KEEPS_IT)
            view = machine.ctx.view
            keeps_alive = self._place.stage == DATA_STAGE or view is None or not view.data_peers
            if keeps_alive and clock() >= run_due_at:
                run_due_at = clock() + RECORD_PERIOD_S
                # By every data peer, so that it outlives its first owner; by all when there is none, so that one can come.
                await self._dht.publish_run(self._kept_alive.run)
                for order in self.orders.newest:
                    await self._dht.publish_order(order)
            contributions, since_s = self.contributions(), clock() - told[0]
            if contributions and (since_s >= RECORD_PERIOD_S or (since_s >= ROUTINE_S and contributions is not told[1])):
                told = clock(), contributions
                position = self._own.epoch, machine.participant.weights
                me, run_id = machine.ctx.me, self._run.run_id
                await self._dht.publish_contributions(pages_of(me, run_id, position, contributions, self._sequence))

    async def keep_obeying(self, on_orders: Callable[[tuple[Order, ...]], object]) -> None:
        """Read the orders of the run's owner and admins again and again; on news, `on_orders` hears all that count."""
        while True:
            if self.orders.hear(await self._dht.read_orders(self.orders.terms)):
                on_orders(tuple(signed.order for signed in self.orders.newest))
                self.publish_soon()
            await asyncio.sleep(ORDERS_PERIOD_S)

    async def _until_due(self, machine: StagePeer | DataPeer) -> None:
        """Return when the record is to go out (again)."""
        clock = asyncio.get_running_loop().time
        published_at, pause_s = clock(), RECORD_PERIOD_S
        while self._own is not None and (left_s := published_at + pause_s - clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._due.wait()
            except TimeoutError:
                return
            self._due.clear()
            now = stage_record(machine, self._own_measurements(), self._sequence)
            pause_s = min(pause_s, PUBLISH_SOON_S if news_of(now) != news_of(self._own) else ROUTINE_S)

    def _own_measurements(self) -> OwnMeasurements:
        here = OwnMeasurements(
            resent_bytes=self.resent_bytes(),
            run_id=self._run.run_id,
            model_hash=self._run.model_hash,
            signing_key=self.signing_key,
            links=self._probes.measurements(),
            line_bytes_per_s=self._probes.line_bytes_per_s,
            shard=self._place.shard,
            copied=self.copied(),
            release=VERSION,
            progress=self.progress.figures(),
            route_seconds=self.progress.route_seconds(),
            public_name=self.public_name,
        )
        reach = self._reachability
        if reach is None:
            return here
        return replace(here, path=reach.path, maddrs=reach.maddrs, circuit_bytes=reach.circuit_bytes, circuit_s=reach.circuit_s)

    async def keep_looking(self, machine: StagePeer | DataPeer, on_change: Callable[[NetworkView], object]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began_at, self._is_wanted = clock(), False
            others = await _read(self._dht, self._run)
            assembling = not machine.membership.serves or (isinstance(machine, DataPeer) and not machine.begun)
            until = clock() + (ASSEMBLING_PERIOD_S if assembling else VIEW_PERIOD_S)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until) as limit:
                    while True:
                        self._changed.clear()
                        self._see(others, machine.ctx.view, on_change)
                        self.on_read(began_at)
                        if self._is_expecting(others, machine.ctx.liveness):
                            limit.reschedule(min(until, began_at + EXPECTING_PERIOD_S))
                        elif self._is_wanted:
                            limit.reschedule(min(until, began_at + LEAST_PERIOD_S))
                        await self._changed.wait()

    def _see(
        self, others: Sequence[StageRecord], former: NetworkView | None, on_change: Callable[[NetworkView], object]
    ) -> None:
        """This peer's own record comes from itself, since the DHT may not have it yet."""
        run, own = self._run, self._own
        seen = [*others, *([own] if own else [])]
        view = NetworkView.of(seen, run.stages, run.activation_bytes, former, run.gradient_bytes, run.end_bytes)
        if view != former:
            on_change(view)
