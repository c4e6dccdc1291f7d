"""The doctor on loopback: alone, with a peer beside it, and with addresses that do not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gwtf_p2p.cli.main import main
from gwtf_p2p.live.discovery.clock_skew import ClockVerdict
from gwtf_p2p.live.discovery.dht import DhtOptions, start_dht
from gwtf_p2p.live.doctor import network as doctor_network
from gwtf_p2p.live.doctor.machine import examine_machine, why_port_taken
from gwtf_p2p.live.doctor.network import examine_network
from gwtf_p2p.live.doctor.report import RoleVerdict
from gwtf_p2p.live.doctor.rules import diagnose
from gwtf_p2p.live.libp2p.daemon import start_daemon
from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions
from gwtf_p2p.live.measure.bandwidth import serve_speed
from gwtf_p2p.live.nat.nat_kind import NatKind, kind_of_nat

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


async def test_a_port_that_is_taken_is_noticed() -> None:
    daemon = await start_daemon(P2POptions(nat_port_map=False, check_identity=False))
    try:
        port = int((await daemon.maddrs())[0].split("/")[4])
        assert "in use" in why_port_taken(port)
    finally:
        await daemon.stop()
