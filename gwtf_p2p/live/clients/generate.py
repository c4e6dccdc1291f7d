"""Goes on with a text by the current weights of a running swarm, through its stage peers, forwards only.

It joins as a peer that is no participant: its record says ASKING, so it is in no plan and no commit waits for it. Embedding and
head are fetched from data peers, as a newcomer's state is; what lies between is computed by the stage peers, each with the
weights that it has at that moment. While a run trains, a text may therefore begin with the weights of one iteration and end
with those of a later one: the versions are told, and embedding and head are fetched again when they are old.

Who may not take part in the run is not asked, and streams are taken of those alone whose records this peer sees.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.forward_only import ForwardOnly, NotAnswered
from gwtf_p2p.live.compute.memory_errors import memory_errors
from gwtf_p2p.live.discovery.kept_runs import KeptRuns
from gwtf_p2p.live.discovery.order_book import OrderBook
from gwtf_p2p.live.exchange.exchanging import RecordExchange
from gwtf_p2p.live.libp2p.daemon import until
from gwtf_p2p.live.measure.join_times import JoinTimes
from gwtf_p2p.live.nat.paths import Paths
from gwtf_p2p.live.peer.assembly import check_config, check_model
from gwtf_p2p.live.peer.config import RECORD_PERIOD_S, NotServed, OnReport, PeerConfig
from gwtf_p2p.live.peer.join import find_run, read_orders, refuse_unless_admitted
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.live.peer.record_keeper import NUMBERS_PER_S, asking_record, read_view
from gwtf_p2p.live.peer.transport import connect_transport
from gwtf_p2p.live.rpc.api import Header
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.live.state.transfer import Pace, StateDownload, StateUnavailable
from gwtf_p2p.live.text.sampling import Sampler, Sampling
from gwtf_p2p.live.text.through_stages import Swarm, ThroughStages
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.pace import LOOK_S, ORDERS_S
from gwtf_p2p.protocol.ids import DATA_STAGE, PeerId
from gwtf_p2p.protocol.view.data_weights import Position, positions_to_take
from gwtf_p2p.protocol.view.network_view import NetworkView
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.compute.thin_executor import data_executor
from gwtf_p2p.training.data.held_out import prompt_ids
from gwtf_p2p.training.data.local_files import OF_CLIENTS, refuse_unasked
from gwtf_p2p.training.data.tokenizer import load_tokenizer
from gwtf_p2p.training.model.split import PartSpec, build_data_part
from gwtf_p2p.training.state.tensors import load_weights, most_state_bytes
from gwtf_p2p.training.turns import Turns

logger = logging.getLogger(__name__)

FRESH_S = 10.0
"""How old embedding and head may be, when the swarm has gone on meanwhile."""

LOOK_AGAIN_S = 0.5
TRIES = 60
"""Of a stage; the first peers see who asks only when they look at the records next."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A text to go on with, and how."""

    prompt: str
    how: Sampling


async def generate(
    config: PeerConfig,
    network: Network,
    kept: KeptRuns,
    on_report: OnReport,
    stop: asyncio.Event,
    times: JoinTimes,
    *,
    asked: Asked,
) -> None:
    """Reports `text_so_far` with every token and `text` at the end. Raises InputError, RunMismatch, RunConflict, NotServed."""
    owned = await find_run(config, network, kept, stop, on_report)
    if owned is None:
        return
    run = owned.record
    check_config(config, run)
    refuse_unasked(run, config.local_files, OF_CLIENTS)
    network = replace(network, run=owned, orders=await read_orders(network, run))
    times.mark("run")
    async with AsyncExitStack() as stack:
        client = await _Client.start(config, run, network, stack)
        times.mark("weights")
        work = asyncio.ensure_future(client.sample(asked, on_report, config.join_timeout_s))
        stack.callback(work.cancel)
        try:
            await until(stop, network.daemon, work, *client.tasks)
        except NotAnswered as error:
            raise NotServed(f"run {run.run_id}: {error}") from error


class _Client:
    """Connected, and known to the run's peers by its record."""

    def __init__(self, run: RunRecord, network: Network, compute: Compute, rpc: Rpc) -> None:
        self.run, self.network, self.compute = run, network, compute
        self.forward = ForwardOnly(rpc, compute)
        self.stages = ThroughStages(compute, self.forward, Swarm(lambda: self.view, tries=TRIES))
        self.download = StateDownload(rpc)
        self._exchange = RecordExchange(rpc, network.identity, run.run_id)
        self.view: NetworkView | None = None
        self.tasks: list[asyncio.Future[None]] = []
        self._fetched_at = 0.0
        self._position: Position = (-1, -1)

    @staticmethod
    async def start(config: PeerConfig, run: RunRecord, network: Network, stack: AsyncExitStack) -> _Client:
        compute = await asyncio.to_thread(_make_compute, config, run)
        stack.callback(compute.close)
        if network.reachability is not None:
            network = replace(network, paths=Paths(network.daemon, network.reachability))
        transport = await connect_transport(config, network, run, compute)
        rpc = transport.real_rpc
        if network.paths is not None:
            network.paths.attach(rpc, lambda peer, path: None)
            stack.push_async_callback(network.paths.stop)
        client = _Client(run, network, compute, rpc)
        rpc.admits = client.admits
        stack.callback(client.forward.stop)
        stack.push_async_callback(rpc.stop)
        await rpc.start(_NoPart())
        for work in (client._keep_publishing(), client._keep_looking(), client._keep_obeying(), client._exchange.run()):
            client._spawn(work, stack)
        return client

    async def sample(self, asked: Asked, on_report: OnReport, patience_s: float) -> None:
        """Fetch embedding and head, then go on with the text."""
        run = self.run
        tokenizer = await asyncio.to_thread(load_tokenizer, run.tokenizer)
        prompt = prompt_ids(run, tokenizer, asked.prompt)
        sampler = Sampler(run, tokenizer, self.stages)
        await self._fetch(patience_s)

        def told(text: str) -> None:
            on_report({"name": "text_so_far", "text": text})

        found = await sampler.sample(prompt, asked.how, on_text=told, before=self._refresh)
        on_report(
            {
                "name": "text",
                "prompt": asked.prompt,
                "text": found.text,
                "tokens": list(found.tokens),
                "ended": found.ended,
                "versions": sorted(self.stages.versions | {self._position[1]}),
                "seconds": found.seconds,
                "tokens_per_s": found.tokens_per_s,
            }
        )

    def admits(self, peer: PeerId) -> bool:
        """Whose streams are taken: of those that take part."""
        return self.view is not None and peer in self.view.records

    async def _refresh(self) -> None:
        """Newer embedding and head, where there are any and those at hand are old."""
        view = self.view
        to_take = positions_to_take(view) if view is not None else ()
        if to_take and to_take[0][0] > self._position and time.monotonic() - self._fetched_at > FRESH_S:
            with suppress(NotServed):  # the old ones do as well
                await self._fetch(0.0)

    async def _fetch(self, patience_s: float) -> None:
        """Raises NotServed when no data peer gives its weights in that time."""
        end, reason = time.monotonic() + patience_s, "no data peer is online"
        parameters = self.compute.executor.part.parameters
        pace = Pace(most_bytes=most_state_bytes(parameters))
        while True:
            view = self.view
            for (epoch, version), donors in positions_to_take(view) if view is not None else ():
                if (epoch, version) < self._position:
                    break
                try:
                    state = await self.download.fetch(version, donors, pace=pace)
                    await self.compute.in_thread(partial(load_weights, parameters, state))
                except (StateUnavailable, RemoteProtocolError) as error:
                    reason = str(error)
                    continue
                self._position, self._fetched_at = (epoch, version), time.monotonic()
                return
            if time.monotonic() > end:
                raise NotServed(f"run {self.run.run_id}: embedding and head cannot be had: {reason}")
            await asyncio.sleep(LOOK_AGAIN_S)

    def _spawn(self, work: Coroutine[Any, Any, None], stack: AsyncExitStack) -> None:
        task = asyncio.ensure_future(work)
        stack.callback(task.cancel)
        self.tasks.append(task)

    async def _keep_publishing(self) -> None:
        run, reach = self.run, self.network.reachability
        while True:
            sequence = int(time.time() * NUMBERS_PER_S)
            record = asking_record(self.network.daemon.peer_id, run, DATA_STAGE, sequence, reach)
            self._exchange.publish(record)  # whom it asks is to know of it before a reading of the DHT
            await self.network.dht.publish_stage(record)
            await asyncio.sleep(RECORD_PERIOD_S)

    async def _keep_looking(self) -> None:
        orders = self._orders
        while True:
            self.view = orders.entry.visible(await read_view(self.network.dht, self.run))
            self.network.saw(self.view)
            self._exchange.can_ask(list(self.view.records.values()))
            await asyncio.sleep(LOOK_S if self.view.data_peers else LOOK_AGAIN_S)

    async def _keep_obeying(self) -> None:
        """Whom the owner bans is asked no more. Raises RunMismatch when that is this peer."""
        orders = self._orders
        while True:
            await asyncio.sleep(ORDERS_S)
            if orders.hear(await self.network.dht.read_orders(orders.terms)):
                refuse_unless_admitted(orders, self.network.daemon.peer_id)
                if self.view is not None:
                    self.view = orders.entry.visible(self.view)

    @property
    def _orders(self) -> OrderBook:
        assert self.network.orders is not None, "they are read before the client starts"
        return self.network.orders


class _NoPart:
    """Whatever concerns training is refused."""

    def on_offer(self, sender: PeerId, header: Header, payload_bytes: int) -> Header:
        return {"accepted": False, "reason": "takes no part"}

    def on_delivery(self, sender: PeerId, header: Header, payload: memoryview) -> None:
        raise RemoteProtocolError("takes no part")

    def on_broken(self, sender: PeerId, header: Header, reason: str) -> None:
        """Nothing was accepted."""

    def on_message(self, sender: PeerId, header: Header) -> Header:
        raise RemoteProtocolError("takes no part")

    def on_watch_broken(self, peer: PeerId, reason: str) -> None:
        """Nobody is watched."""


def _make_compute(config: PeerConfig, run: RunRecord) -> Compute:
    """A data part without data or optimizer state. Raises InputError, OutOfMemory, RunMismatch."""
    check_model(run)
    with memory_errors("hold embedding and head"):
        executor = data_executor(build_data_part(PartSpec.of(run, DATA_STAGE)), config.executor, run.loss)
        return Compute(run, Turns(executor, PartOptimizer({}, run.optimizer)))
