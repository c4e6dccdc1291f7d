"""The parts of a peer in a run, made and connected: what computes, what talks, what keeps state, what measures."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gwtf_p2p.live.compute.all_reduce import Averager
from gwtf_p2p.live.compute.audit_work import AuditWork
from gwtf_p2p.live.compute.compute import Compute
from gwtf_p2p.live.compute.forward_only import ForwardOnly
from gwtf_p2p.live.exchange.exchanging import RecordExchange
from gwtf_p2p.live.libp2p.audit_signing import signer
from gwtf_p2p.live.libp2p.signing import Signing
from gwtf_p2p.live.measure.idle_probe import IdleProber, Traffic
from gwtf_p2p.live.measure.link_estimates import LinkProbes
from gwtf_p2p.live.measure.path_probe import LinkProbe
from gwtf_p2p.live.peer.assembly import Place, Prepared
from gwtf_p2p.live.peer.config import OnReport
from gwtf_p2p.live.peer.record_keeper import KeptAlive, RecordKeeper
from gwtf_p2p.live.peer.transport import Transport
from gwtf_p2p.live.state.checkpoints import Checkpoints
from gwtf_p2p.live.state.donor import StateDonor
from gwtf_p2p.live.state.replication import Replication
from gwtf_p2p.live.state.store import StateStore
from gwtf_p2p.live.state.transfer import StateDownload
from gwtf_p2p.protocol.wire.records import RunRecord

STATE_SHARE = 0.5
"""Of a capped line, for newcomers: training has the rest."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a running peer connects to its state machine. Each part is its room's; none decides anything."""

    place: Place
    compute: Compute
    transport: Transport
    averager: Averager
    checkpoints: Checkpoints
    donor: StateDonor
    forward_only: ForwardOnly
    audits: AuditWork
    state_download: StateDownload
    replication: Replication
    probes: LinkProbes
    link_probe: LinkProbe
    prober: IdleProber
    records: RecordKeeper
    signing: Signing


def connect_parts(prepared: Prepared, run: RunRecord, transport: Transport, on_report: OnReport) -> Parts:
    """Every service is registered with the data plane by the end of it."""
    config, place, compute, checkpoints = prepared.config, prepared.place, prepared.compute, prepared.checkpoints
    network, rpc = transport.network, transport.rpc
    scratch = config.memory.folder or config.checkpoints.folder
    averager = Averager(rpc, run.wire.averages, run.wire.rank, scratch)
    donor = StateDonor(rpc, StateStore(compute, checkpoints), place.stage, STATE_SHARE * network.line.up.bytes_per_s, scratch)
    if config.emulation is not None:
        donor.chunk_bytes = config.emulation.chunk_bytes
    state_download = StateDownload(rpc, scratch)
    replication = Replication(checkpoints, state_download, network.daemon.peer_id)
    probes = LinkProbes(time.monotonic, network.line)
    link_probe = LinkProbe(transport.real_rpc, probes, on_report)
    traffic = Traffic(lambda: not transport.real_rpc.is_idle(), transport.real_rpc.is_receiving)
    prober = IdleProber(rpc, probes, place.stage, traffic)
    assert network.run is not None and network.orders is not None, "a peer connects its parts when it has found its run"
    kept_alive = KeptAlive(network.run, network.orders)
    exchange = RecordExchange(rpc, network.identity, run.run_id)
    records = RecordKeeper((transport.dht, exchange), kept_alive, place, probes, network.reachability)
    signing = Signing(network.identity, run.run_id)
    records.signing_key = signing.key
    donor.on_unseen = records.look_soon
    records.copied = lambda: replication.copied
    records.public_name = config.public_name
    records.contributions = lambda: compute.contributions
    return Parts(
        place=place,
        compute=compute,
        transport=transport,
        averager=averager,
        checkpoints=checkpoints,
        donor=donor,
        forward_only=ForwardOnly(rpc, compute),
        audits=AuditWork(rpc, compute, signer(network.identity, run.run_id)),
        state_download=state_download,
        replication=replication,
        probes=probes,
        link_probe=link_probe,
        prober=prober,
        records=records,
        signing=signing,
    )
