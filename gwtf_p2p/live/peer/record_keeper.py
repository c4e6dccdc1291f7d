"""Keeps this peer's record in the DHT fresh, and the peer's view of all others' records.

A record goes out every period, and when the protocol asks for it: soon when others route, plan or join by what has changed in
it (`exchange.news_of`); what only accounts for the peer (its figures, its links, a stage peer's version) waits for a few
seconds. The others' records come by the exchange (`live/exchange`), news at once. The DHT is read besides: all of it, and
often, while nothing is exchanged, as before this peer is known; then one stage after the other, rarely. This peer's own record
enters its view as it is published, without another reading.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from gwtf_p2p.live.discovery.dht import Records
from gwtf_p2p.live.discovery.order_book import OrderBook, SignedOrder
from gwtf_p2p.live.discovery.signing import OwnedRun
from gwtf_p2p.live.exchange.exchanging import RecordExchange
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.measure.run_progress import Progress
from gwtf_p2p.live.nat.reachability import Reachability
from gwtf_p2p.live.peer.assembly import Place
from gwtf_p2p.protocol.exchange.news import news_of, store_wait_s
from gwtf_p2p.protocol.exchange.pace import LIFETIME_PERIODS, LOOK_S, RECORD_PERIOD_S, fallback_s, mixed_s, orders_s, routine_s
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId, Stage
from gwtf_p2p.protocol.peer.data_peer import DataPeer
from gwtf_p2p.protocol.peer.own_record import OwnMeasurements, stage_record
from gwtf_p2p.protocol.peer.stage_peer import StagePeer
from gwtf_p2p.protocol.trust.state_access import LEAST_PERIOD_S
from gwtf_p2p.protocol.view.contributions import Contributions
from gwtf_p2p.protocol.view.contributions_told import pages_of
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import PeerState, RunRecord, StageRecord
from gwtf_p2p.protocol.wire.signed import Order
from gwtf_p2p.version import VERSION

logger = logging.getLogger(__name__)

ASSEMBLING_PERIOD_S = 0.5
PUBLISH_SOON_S = 0.2
NUMBERS_PER_S = 10
UNCHANGED_S = 1.9 * RECORD_PERIOD_S
"""Between two stores of what has not changed, such as the run: with every second record of this peer's own."""

SIGNS_S = 5.0
"""Between two looks at records of which nothing is news but that their owners live."""


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
    model_hash = run.model_hash
    return [record for record in await dht.read_stages(run.run_id, stages) if record.model_hash == model_hash]


@dataclass(frozen=True, slots=True)
class KeptAlive:
    """What data peers publish besides their own record: the run record, and the orders of its owner and admins."""

    run: OwnedRun
    orders: OrderBook


class RecordKeeper:
    """Of one peer. `keep_publishing`, `keep_looking` and `keep_obeying` run until cancelled, and so does `exchange`."""

    def __init__(
        self,
        sources: tuple[Records, RecordExchange],
        kept_alive: KeptAlive,
        place: Place,
        probes: LinkProbes,
        reachability: Reachability | None = None,
    ) -> None:
        self._dht, self.exchange = sources
        self._kept_alive, self._place, self._probes = kept_alive, place, probes
        self._run, self.orders = kept_alive.run.record, kept_alive.orders
        self._model_hash = self._run.model_hash  # of the whole model config: not once for each record that is looked at
        self._reachability = reachability
        self.progress = Progress()
        self._due = asyncio.Event()
        self._due.set()
        self._changed = asyncio.Event()
        self._is_wanted = False
        self.on_read: Callable[[float], None] = lambda began_at: None
        self._own: StageRecord | None = None
        self._stored: tuple[StageRecord | None, float] = None, 0.0
        self._from_dht = _FromDht()
        self._seen: object = None
        self._seen_at = 0.0
        self._view: NetworkView | None = None
        self._peers = 0
        self.exchange.on_news = self._changed.set
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
            self.exchange.publish(self._own)
            self._changed.set()  # a router plans on this peer's own record too: it must not lag behind
            await self._store(self._own, machine)
            view = machine.ctx.view
            keeps_alive = self._place.stage == DATA_STAGE or view is None or not view.data_peers
            if keeps_alive and clock() >= run_due_at:
                # By every data peer, so that it outlives its first owner; by all when there is none, so that one can come.
                if await self._dht.publish_run(self._kept_alive.run):
                    run_due_at = clock() + UNCHANGED_S
                for order in self.orders.newest:
                    await self._dht.publish_order(order)
            contributions, since_s = self.contributions(), clock() - told[0]
            due_s = UNCHANGED_S if contributions is told[1] else min(RECORD_PERIOD_S, routine_s(self._peers))
            if contributions and since_s >= due_s:
                told = clock(), contributions
                position = self._own.epoch, machine.participant.weights
                me, run_id = machine.ctx.me, self._run.run_id
                await self._dht.publish_contributions(pages_of(me, run_id, position, contributions, self._sequence))

    async def keep_obeying(self, on_orders: Callable[[tuple[Order, ...]], object]) -> None:
        """Read the orders of the run's owner and admins again and again; on news, `on_orders` hears all that count."""

        def hear(orders: Sequence[SignedOrder]) -> None:
            if self.orders.hear(orders):
                self.exchange.order(self.orders.newest)
                on_orders(tuple(signed.order for signed in self.orders.newest))
                self.publish_soon()

        self.exchange.order(self.orders.newest)
        self.exchange.on_orders = hear
        while True:
            hear(await self._dht.read_orders(self.orders.terms))
            await asyncio.sleep(orders_s(self._peers, exchanges=not self.exchange.is_alone()))

    async def _store(self, own: StageRecord, machine: StagePeer | DataPeer) -> None:
        """In the DHT, if it is time."""
        if self._store_wait_s(own, machine) > 0:
            return
        at = asyncio.get_running_loop().time()
        if await self._dht.publish_stage(own):
            self._stored = own, at
        else:
            self._stored = None, at
            logger.warning("%s; it is published again in a moment", NOBODY_KEEPS_IT)

    def _store_wait_s(self, own: StageRecord, machine: StagePeer | DataPeer) -> float:
        view, (stored, at) = machine.ctx.view, self._stored
        others = view.records.values() if view is not None else ()
        exchanges = not self.exchange.is_alone() and all(r.exchanges or r.state is PeerState.ASKING for r in others)
        return store_wait_s(own, stored, asyncio.get_running_loop().time() - at, exchanges=exchanges)

    async def _until_due(self, machine: StagePeer | DataPeer) -> None:
        """Return when the record is to go out (again)."""
        clock = asyncio.get_running_loop().time
        published_at, pause_s = clock(), RECORD_PERIOD_S
        if self._own is not None and self._stored[0] is not None:
            pause_s = min(pause_s, self._store_wait_s(self._own, machine) or pause_s)
        while self._own is not None and (left_s := published_at + pause_s - clock()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._due.wait()
            except TimeoutError:
                return
            self._due.clear()
            now = stage_record(machine, self._own_measurements(), self._sequence)
            pause_s = min(pause_s, PUBLISH_SOON_S if news_of(now) != news_of(self._own) else routine_s(self._peers))

    def _own_measurements(self) -> OwnMeasurements:
        here = OwnMeasurements(
            resent_bytes=self.resent_bytes(),
            run_id=self._run.run_id,
            model_hash=self._model_hash,
            signing_key=self.signing_key,
            links=self._probes.measurements(),
            line_bytes_per_s=self._probes.line_bytes_per_s,
            shard=self._place.shard,
            copied=self.copied(),
            release=VERSION,
            progress=self.progress.figures(),
            route_seconds=self.progress.route_seconds(),
            public_name=self.public_name,
            exchanges=True,
        )
        reach = self._reachability
        if reach is None:
            return here
        return replace(here, path=reach.path, maddrs=reach.maddrs, circuit_bytes=reach.circuit_bytes, circuit_s=reach.circuit_s)

    async def keep_looking(self, machine: StagePeer | DataPeer, on_change: Callable[[NetworkView], object]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began_at, reads_all = clock(), self._is_wanted or self.exchange.is_alone() or not self._from_dht.is_whole(self._run)
            self._is_wanted = False
            await self._read_dht(reads_all=reads_all)
            until = clock() + self._pause_s(machine)
            while (now := clock()) < until:
                self._changed.clear()
                if self._may_differ(machine, now):
                    self._see(machine.ctx.view, on_change)
                    self._view = machine.ctx.view
                if reads_all:
                    self.on_read(began_at)
                if self._is_wanted:
                    until = min(until, began_at + LEAST_PERIOD_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, min(until - now, LOOK_S))):
                        await self._changed.wait()

    async def _read_dht(self, *, reads_all: bool) -> None:
        """The records of all stages, or of the next one."""
        stages = [Stage(number) for number in range(self._run.stages + 1)]
        chosen = stages if reads_all else [self._from_dht.oldest(stages)]
        read = await self._dht.read_stages(self._run.run_id, chosen)
        self._from_dht.note(chosen, read, asyncio.get_running_loop().time())

    def _pause_s(self, machine: StagePeer | DataPeer) -> float:
        """Until the DHT is read again."""
        assembling = not machine.membership.serves or (isinstance(machine, DataPeer) and not machine.begun)
        if self.exchange.is_alone():
            return ASSEMBLING_PERIOD_S if assembling else LOOK_S
        if self._is_mixed():
            return mixed_s(self._peers)
        return fallback_s(self._from_dht.last_read)

    def _known(self) -> list[StageRecord]:
        """The others' records of this very model; of some peers there are two, the newer one last."""
        alone, now = self.exchange.is_alone(), asyncio.get_running_loop().time()
        known = [*self._from_dht.living(now, alone=alone), *self.exchange.records()]
        return sorted((r for r in known if r.model_hash == self._model_hash), key=lambda r: r.sequence_number)

    def _may_differ(self, machine: StagePeer | DataPeer, now: float) -> bool:
        """Not when nothing was told since the last look but signs of life, which are looked at more rarely unless somebody is
        missed that might have given one."""
        view, lost = machine.ctx.view, machine.ctx.liveness.lost
        seen = self.exchange.stated_times(), self._from_dht.readings, self._own.sequence_number if self._own is not None else 0
        is_same = seen == self._seen and view is self._view and now < self._seen_at + SIGNS_S
        is_heard = not self.exchange.is_alone() and not self._is_mixed()
        if is_same and is_heard and view is not None and lost.isdisjoint(view.records):
            return False
        self._seen, self._seen_at = seen, now
        return True

    def _is_mixed(self) -> bool:
        """Some peers of the swarm tell of themselves in the DHT alone."""
        return any(not r.exchanges and r.state is not PeerState.ASKING for r in self._from_dht.records)

    def _see(self, former: NetworkView | None, on_change: Callable[[NetworkView], object]) -> None:
        """This peer's own record comes from itself, since the others may not have it yet."""
        run, own, seen = self._run, self._own, self._known()
        self.exchange.can_ask(seen)
        seen += [own] if own else []
        view = NetworkView.of(seen, run.stages, run.activation_bytes, former, run.gradient_bytes, run.end_bytes)
        self._peers = len(view.records)
        if view != former:
            on_change(view)


class _FromDht:
    """Records as the DHT had them, by stage. They are believed for a lifetime after they were first seen: who lives tells of
    itself by the exchange, and the DHT is read too rarely to see that somebody does not."""

    def __init__(self) -> None:
        self._read: dict[Stage, tuple[float, Sequence[StageRecord]]] = {}
        self._seen: dict[PeerId, tuple[int, float]] = {}
        self.last_read = self.readings = 0

    @property
    def records(self) -> list[StageRecord]:
        return [record for _, records in self._read.values() for record in records]

    def is_whole(self, run: RunRecord) -> bool:
        """Every stage has been read."""
        return len(self._read) > run.stages

    def oldest(self, stages: Sequence[Stage]) -> Stage:
        """The stage that was read longest ago."""
        return min(stages, key=lambda stage: (self._read.get(stage, (-1.0, ()))[0], stage))

    def note(self, stages: Sequence[Stage], read: Sequence[StageRecord], now: float) -> None:
        self.last_read, self.readings = len(read), self.readings + 1
        for stage in stages:
            self._read[stage] = now, [record for record in read if record.stage == stage]
        seen = {}
        for record in self.records:
            number, at = self._seen.get(record.peer, (-1, now))
            seen[record.peer] = (number, at) if number >= record.sequence_number else (record.sequence_number, now)
        self._seen = seen

    def living(self, now: float, *, alone: bool) -> list[StageRecord]:
        """`alone`: all that the DHT had, since it is read often then."""
        read_s = mixed_s(len(self.records))
        lifetime_s = LIFETIME_PERIODS * RECORD_PERIOD_S
        lasts = {False: max(lifetime_s, LIFETIME_PERIODS * read_s), True: lifetime_s}
        return [r for r in self.records if alone or now - self._seen[r.peer][1] < lasts[r.exchanges]]
