"""What `gwtf doctor` finds out about the network: who answers, the NAT (`doctor_nat`), circuit relays, megabytes, clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gwtf_p2p.live.discovery.clock_skew import ClockCheck, check_clock
from gwtf_p2p.live.discovery.dht import DhtOptions, start_dht
from gwtf_p2p.live.discovery.run_trust import ANYBODY, RunConflict, Trusted
from gwtf_p2p.live.doctor.nat import (
    ANSWER_S,
    KnownPeer,
    MappingTrial,
    cold_dial,
    free_port,
    listen_on,
    meet,
    quiet_daemon,
    try_mapping,
    warm_dials,
)
from gwtf_p2p.live.libp2p.control import Reservation, ReservationRefused, StreamFailed, reserve
from gwtf_p2p.live.libp2p.daemon import Daemon, NetworkUnreachable, probe
from gwtf_p2p.live.libp2p.dialling import connect
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.libp2p.maddrs import InitialPeer
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.measure.bandwidth import Speed, SpeedUnknown, measure_speed, serve_speed
from gwtf_p2p.live.nat.nat_kind import Evidence
from gwtf_p2p.live.nat.nat_pmp import own_address
from gwtf_p2p.live.nat.port_mapping import is_public
from gwtf_p2p.live.nat.traceroute import first_hops
from gwtf_p2p.protocol.errors import OtherWireVersion
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.records import RunRecord

SPEED_S = 15.0
MOST_RELAYS = 2
"""So many circuit relays are asked for a slot; megabytes go through the first that takes them."""


@dataclass(frozen=True, slots=True)
class RelayTrial:
    """A circuit relay and what it gave: a slot with its budget, and the speed through it (from this machine, through the
    circuit relay, back to this machine: the slower of both directions counts)."""

    relay: PeerId
    maddr: str
    slot: Reservation | None = None
    speed: Speed | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class AskedRun:
    """The run whose record is to be read, whose it is, and its `token` if it is secret."""

    run_id: RunId
    trusted: Trusted = ANYBODY
    token: str = field(default="", repr=False)


@dataclass
class NetworkFindings:
    """`joined`: initial peers that answer, one address each. `failed`: addresses that do not, with the reason.

    `mapping` None: not tried, this machine has a public address. `run`: the record of the run that was asked for; without
    one, `run_why` says what is known of the reason.
    """

    port: int
    asked: int = 0
    joined: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    mapping: MappingTrial | None = None
    relays: list[RelayTrial] = field(default_factory=list)
    best: Speed | None = None
    best_why: str = ""
    clock: ClockCheck | None = None
    dht_why: str = ""
    run: RunRecord | None = None
    run_why: str = ""


async def examine_network(
    initial: Sequence[InitialPeer], port: int, folder: Path, asked: AskedRun | None = None
) -> NetworkFindings:
    """Everything about the network, in about 10-25 s. `folder` takes the identities for the moment. Raises DaemonFailed."""
    findings = NetworkFindings(port or free_port(), len({peer.peer for peer in initial}))
    direct = [peer for peer in initial if peer.relay is None]
    findings.failed = {
        peer.text: "behind a relay: the doctor needs the circuit relay's own address" for peer in initial if peer.relay
    }
    findings.failed.update(await probe(direct))
    known, failed = await meet([peer for peer in direct if peer.text not in findings.failed])
    findings.failed.update(failed)
    findings.joined = tuple(peer.initial.text for peer in known)
    own_ip = own_address(known[0].host if known else "192.0.2.1")
    mapping = asyncio.ensure_future(_mapping(known, own_ip, folder))
    try:
        if known:
            await _examine_with_peers(findings, known, own_ip, folder, asked)
        findings.mapping = await mapping
    finally:
        mapping.cancel()
        await asyncio.gather(mapping, return_exceptions=True)
    if findings.mapping is not None:
        findings.evidence = replace(findings.evidence, own_ip=own_ip, outside_ip=findings.mapping.outside_ip)
    return findings


async def _mapping(known: Sequence[KnownPeer], own_ip: str, folder: Path) -> MappingTrial | None:
    """Not tried from a public address, nor from one that has no router, such as the loopback's."""
    needless = not own_ip or is_public(own_ip) or own_ip.startswith("127.")
    return None if needless else await try_mapping(known, folder)


async def _examine_with_peers(
    findings: NetworkFindings, known: Sequence[KnownPeer], own_ip: str, folder: Path, asked: AskedRun | None
) -> None:
    first = known[0]
    second = next((peer for peer in known if peer.host != first.host), None)
    hops, cold = await asyncio.gather(first_hops(first.host), cold_dial(first, findings.port, folder))
    identity = create_identity(folder / "warm.key")
    async with quiet_daemon(identity, listen_on(findings.port)) as home:
        await serve_speed(home)
        warm = await warm_dials(home, identity, first, second)
        findings.evidence = Evidence(own_ip, warm.observed, cold, warm.stranger, warm.known, hops)
        for relay in [peer for peer in known if peer.says.is_relay][:MOST_RELAYS]:
            measured = any(trial.speed for trial in findings.relays)
            findings.relays.append(await _try_relay(home, relay, measure=not measured))
        try:
            findings.best = await measure_speed(home, first.initial.peer, SPEED_S)
        except SpeedUnknown as error:
            findings.best_why = str(error)
        await _join_dht(findings, home, identity, known, asked)


async def _try_relay(home: Daemon, peer: KnownPeer, measure: bool) -> RelayTrial:
    """A slot at this circuit relay, and, to `measure`, megabytes through it to home from another p2pd of this machine."""
    relay, maddr = peer.initial.peer, peer.initial.text
    if why := await connect(home.control_path, relay, [maddr], ANSWER_S):
        return RelayTrial(relay, maddr, why=why)
    try:
        slot = await reserve(home.control_path, relay, ANSWER_S)
    except (StreamFailed, ReservationRefused) as error:
        return RelayTrial(relay, maddr, why=str(error))
    if not measure:
        return RelayTrial(relay, maddr, slot)
    async with quiet_daemon(None, ()) as caller:
        why = await connect(caller.control_path, home.peer_id, [f"{maddr}/p2p-circuit/p2p/{home.peer_id}"], ANSWER_S)
        if why:
            return RelayTrial(relay, maddr, slot, why=f"the slot is given, but the circuit relay does not connect: {why}")
        try:
            return RelayTrial(relay, maddr, slot, await measure_speed(caller, home.peer_id, SPEED_S))
        except SpeedUnknown as error:
            return RelayTrial(relay, maddr, slot, why=str(error))


async def _join_dht(
    findings: NetworkFindings, home: Daemon, identity: Identity, known: Sequence[KnownPeer], asked: AskedRun | None
) -> None:
    """The clocks are compared over the DHT, and it must answer at all. A run that cannot be read is nothing against it."""
    home.options = replace(home.options, initial_peers=tuple(peer.initial for peer in known))
    await asyncio.gather(*(connect(home.control_path, of.initial.peer, [of.initial.text], ANSWER_S) for of in known))
    run_id = asked.run_id if asked is not None else None
    secret = await asyncio.to_thread(RunSecret, asked.token, asked.run_id) if asked is not None and asked.token else None
    try:
        dht = await start_dht(home, identity, DhtOptions(run_id, client_mode=True, secret=secret))
    except NetworkUnreachable as error:
        findings.dht_why = str(error)
        return
    try:
        findings.clock = await check_clock(dht, [peer.initial.peer for peer in known])
        if asked is not None:
            run = await dht.read_run(asked.run_id, asked.trusted)
            findings.run = run.record if run is not None else None
            findings.run_why = "" if run is not None else f"run {asked.run_id}: no such run on this DHT"
    except (RunConflict, OtherWireVersion) as error:
        findings.run_why = str(error)
    finally:
        await dht.stop()
