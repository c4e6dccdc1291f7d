"""The doctor on loopback: alone, with a peer beside it, and with addresses that do not answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.live.discovery.clock_skew import ClockVerdict
from gwtf_p2p.live.discovery.dht import DhtOptions, start_dht
from gwtf_p2p.live.discovery.run_trust import Trusted
from gwtf_p2p.live.discovery.signing import own
from gwtf_p2p.live.doctor import network as doctor_network
from gwtf_p2p.live.doctor.machine import examine_machine, why_port_taken
from gwtf_p2p.live.doctor.nat import meet, quiet_daemon
from gwtf_p2p.live.doctor.network import AskedRun, NetworkFindings, _join_dht, examine_network
from gwtf_p2p.live.doctor.report import RoleVerdict
from gwtf_p2p.live.doctor.rules import diagnose
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.libp2p.run_secret import RunSecret
from gwtf_p2p.live.measure.bandwidth import serve_speed
from gwtf_p2p.live.nat.nat_kind import NatKind, kind_of_nat
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.records import RunRecord
from tests.protocol.wire.golden import sample

pytestmark = pytest.mark.live

NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


@pytest.fixture(autouse=True)
def _no_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests has a router, which is left alone."""
    monkeypatch.setattr(doctor_network, "own_address", lambda towards: "127.0.0.1")


def test_alone_it_judges_the_machine_and_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json", "--port", "0"])
    printed = capsys.readouterr()
    lines = [json.loads(text) for text in printed.out.splitlines()]
    by_check = {fields["check"]: fields for fields in lines[:-1]}
    assert by_check["initial_peers"]["status"] == "unknown"
    assert "--initial_peers" in by_check["initial_peers"]["remedy"]
    assert by_check["nat"]["kind"] == "unknown"
    assert by_check["stage"]["tokens_per_s"] > 0
    assert by_check["disk"]["free_bytes"] > 0
    assert lines[-1]["exit_code"] == code
    assert set(lines[-1]["roles"]) == {"bootstrap", "stage", "data"}


def test_an_address_that_does_not_answer_is_told_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", "0", "--initial_peers", NOBODY]) == 3
    table = capsys.readouterr().out
    assert "[NO] initial_peers" in table
    assert "Connection refused" in table or "Connect call failed" in table
    assert "stage      unfit (see initial_peers)" in table


@pytest.mark.parametrize("ours", [True, False], ids=["a peer of ours", "a stock libp2p peer"])
async def test_beside_a_peer_of_the_same_network(tmp_path: Path, ours: bool) -> None:
    identity = create_identity(tmp_path / "other.key")
    other = await start_daemon(P2POptions(nat_port_map=False, check_identity=False), identity)
    dht = await start_dht(other, identity, DhtOptions())
    if ours:
        await serve_speed(other)
    try:
        found = await examine_network(parse_initial_peers(await other.maddrs(), {}), 0, tmp_path)
    finally:
        await dht.stop()
        await other.stop()
    assert kind_of_nat(found.evidence)[0] is NatKind.LOCAL
    assert found.clock is not None
    assert found.clock.verdict is ClockVerdict.GOOD
    assert found.best is not None, found.best_why
    assert found.best.echoed is not ours
    assert found.best.moved_bytes >= 1 << 20
    diagnosis = diagnose(found, examine_machine(tmp_path, 0, "cpu"), None)
    assert diagnosis.roles["stage"][0] is RoleVerdict.FIT
    assert diagnosis.exit_code == 0


async def test_a_run_is_read_with_its_token_and_of_its_owner_or_it_is_told_why_not(tmp_path: Path) -> None:
    token, secret, open_run = "sixteen characters of a token", RunId("secret"), RunId("open")
    *identities, me = [create_identity(tmp_path / f"{number}.key") for number in range(4)]
    options = [DhtOptions(), DhtOptions(secret, secret=RunSecret(token, secret)), DhtOptions(open_run)]
    daemons = [await start_daemon(P2POptions(nat_port_map=False, check_identity=False), identities[0])]
    initial = parse_initial_peers(await daemons[0].maddrs(), {})
    on_this = P2POptions.on_this_machine(*(peer.text for peer in initial))
    daemons += [await start_daemon(on_this, identity) for identity in identities[1:]]
    dhts = [await start_dht(*of) for of in zip(daemons, identities, options, strict=True)]
    await dhts[1].publish_run(own(identities[1], replace(sample(RunRecord), run_id=secret, admission="secret", members=())))
    for dht, owner in ((dhts[0], identities[1]), (dhts[2], identities[2])):
        await dht.publish_run(own(owner, replace(sample(RunRecord), run_id=open_run)))
    known, _ = await meet(initial)
    try:
        for asked, why in (
            (AskedRun(secret), "run secret: it is secret: expected its token"),
            (AskedRun(secret, token=token), ""),
            (AskedRun(open_run), "owner"),
            (AskedRun(open_run, Trusted(identities[2].peer_id)), ""),
            (AskedRun(RunId("nowhere")), "run nowhere: no such run"),
        ):
            found = NetworkFindings(0)
            async with quiet_daemon(me, ()) as home:
                await _join_dht(found, home, me, known, asked)
            assert why in found.run_why and (found.run is None) == bool(why) == bool(found.run_why)
            assert not found.dht_why and found.clock is not None
    finally:
        for dht in dhts:
            await dht.stop()
        for daemon in daemons:
            await daemon.stop()


async def test_a_port_that_is_taken_is_noticed() -> None:
    daemon = await start_daemon(P2POptions(nat_port_map=False, check_identity=False))
    try:
        port = int((await daemon.maddrs())[0].split("/")[4])
        assert "in use" in why_port_taken(port)
    finally:
        await daemon.stop()
