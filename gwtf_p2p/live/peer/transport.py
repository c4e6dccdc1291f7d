"""Where a peer meets the network and its device: the real ones, or over them those of a comparison (`emulation`)."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.direct.direct import DirectOptions, DirectStreams, hosts_of
from gwtf_p2p.live.discovery.dht import Records
from gwtf_p2p.live.emulation.emulation import EmulatedDht, EmulatedRpc
from gwtf_p2p.live.emulation.timed_router import timed, timed_call
from gwtf_p2p.live.emulation.wire_client import Stretch, WireClient, connect_wire
from gwtf_p2p.live.peer.config import PeerConfig
from gwtf_p2p.live.peer.driver import Driver
from gwtf_p2p.live.peer.network import Network
from gwtf_p2p.live.rpc.api import DataPlane
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.membership.swarm_rebalancing import IN_QUEUE
from gwtf_p2p.protocol.wire.records import RunRecord


@dataclass(frozen=True, slots=True)
class Transport:
    """`rpc` and `dht` are the emulated ones where there is an emulation, with `real_rpc` below; `wire` is None without."""

    network: Network
    real_rpc: Rpc
    rpc: DataPlane
    dht: Records
    wire: WireClient | None = None

    def started(self, driver: Driver) -> None:
        """The peer takes part from now on."""
        machine = driver.machine
        if self.wire is not None:
            self.wire.note({"op": "online"})
            machine.ctx.use_router(timed(machine.ctx.router, time.thread_time, self._planned))
            driver.make_plan = timed_call(driver.make_plan, time.thread_time, self._planned)
            self.wire.queue_length = lambda: sum(held.phase in IN_QUEUE for held in machine.ctx.held.values())

    def _planned(self, seconds: float) -> None:
        assert self.wire is not None, "routers are timed for the wire"
        self.wire.planning_s += seconds

    async def close(self) -> None:
        if self.wire is not None:
            await self.wire.close()


async def connect_transport(config: PeerConfig, network: Network, run: RunRecord, compute: Compute) -> Transport:
    """Raises OSError when the wire of an emulation is not there."""
    me, dht, emulation = network.daemon.peer_id, network.dht, config.emulation
    direct = None
    listens = network.daemon.options
    if listens.data_port is not None:
        options = DirectOptions(hosts_of(listens.host_maddrs), listens.data_port)
        direct = DirectStreams(network.identity, network.daemon.control_path, options)
    rpc = Rpc(network.daemon, run.run_id, ways=network.paths, line=network.line, secret=network.secret, direct=direct)
    if emulation is None:
        return Transport(network, rpc, rpc, dht)
    wire = await connect_wire(emulation.socket, me, emulation.links)
    compute.device = Stretch(emulation.work_s, wire)
    return Transport(network, rpc, EmulatedRpc(rpc, emulation, wire), EmulatedDht(dht, emulation.lookup_s(me)), wire)
