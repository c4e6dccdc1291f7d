"""The doctor's verdict in each situation of the lab, all at the same time, with two `gwtf bootstrap` as the public peers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.doctor import Doctors, start_bootstraps
from experiments.lab.programs.miniupnpd import start_miniupnpd, why_no_miniupnpd
from experiments.lab.programs.warm import LabSwarm
from experiments.lab.topology import load_topology
from gwtf_p2p.live.doctor.report import Line, RoleVerdict, Status
from gwtf_p2p.live.doctor.rules import Diagnosis

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]  # the first test waits for eight doctors

KINDS = {
    "public": "none",
    "full_cone": "full_cone",
    "addr_restr": "address_restricted",
    "port_restr": "port_restricted",
    "symmetric": "symmetric",
    "double_nat": "port_restricted",
    "firewalled": "firewall",
    "forwarded": "forwarded",
}
STRANGERS_GET_IN = {"public", "forwarded"}
LIMIT_S = 300.0
AT_ONCE = 4
"""Each doctor starts a handful of p2pd."""


def line(diagnosis: Diagnosis, check: str) -> Line:
    return next(line for line in diagnosis.lines if line.check == check)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, list[str], dict[str, Diagnosis]]]:
    """Two bootstrap peers, and the diagnosis of each host."""
    folder: Path = tmp_path_factory.mktemp("doctor")
    with Lab(load_topology("nat_kinds")) as lab:
        swarm = LabSwarm(lab, folder)
        maddrs = start_bootstraps(lab, swarm, ("first", "second"))
        doctors, hosts = Doctors(lab, folder), list(KINDS)
        found: dict[str, Diagnosis] = {}
        for some in (hosts[:AT_ONCE], hosts[AT_ONCE:]):
            for host in some:
                doctors.start(host, maddrs)
            found.update({host: doctors.diagnosis(host) for host in some})
        yield lab, maddrs, found
        swarm.stop()


Swarm = tuple[Lab, list[str], dict[str, Diagnosis]]


@pytest.mark.parametrize("host", KINDS)
def test_the_kind_of_nat_is_told(swarm: Swarm, host: str) -> None:
    nat = line(swarm[2][host], "nat")
    assert nat.values["kind"] == KINDS[host], nat.text
    assert nat.values["second_nat"] is (host == "double_nat"), nat.text
    assert bool(nat.remedy) is (host not in STRANGERS_GET_IN)


@pytest.mark.parametrize("host", KINDS)
def test_each_role_has_its_verdict(swarm: Swarm, host: str) -> None:
    diagnosis = swarm[2][host]
    story = "\n".join(f"{line.check}: {line.status.value}: {line.text}" for line in diagnosis.lines)
    assert diagnosis.roles["stage"] == (RoleVerdict.FIT, ()), story
    assert diagnosis.roles["data"] == (RoleVerdict.FIT, ()), story
    if host in STRANGERS_GET_IN:
        assert diagnosis.roles["bootstrap"] == (RoleVerdict.FIT, ()), story
    else:
        assert diagnosis.roles["bootstrap"] == (RoleVerdict.UNFIT, ("way_in",)), story
    assert diagnosis.exit_code == 0


@pytest.mark.parametrize("host", KINDS)
def test_megabytes_go_both_ways_directly_and_through_the_relay(swarm: Swarm, host: str) -> None:
    diagnosis = swarm[2][host]
    for check in ("speed_direct", "speed_relay"):
        values = line(diagnosis, check).values
        up, down = (values[f"{way}_bytes_per_s"] / 1e6 for way in ("up", "down"))
        print(f"{host:12} {check:12} {up:7.1f} up {down:7.1f} down MB/s")
        assert values["moved_bytes"] >= 1 << 20
        assert not values["echoed"]
        assert values["cut_after"] == 0
    slots = line(diagnosis, "relay").values["relays"]
    assert len(slots) == 2
    assert all(slot["circuit_bytes"] >= 1 << 30 for slot in slots)


@pytest.mark.parametrize("host", KINDS)
def test_the_dht_answers_and_the_clocks_agree(swarm: Swarm, host: str) -> None:
    diagnosis = swarm[2][host]
    assert line(diagnosis, "dht").status is Status.GOOD
    assert line(diagnosis, "clock").status is Status.GOOD
    assert line(diagnosis, "clock").values["peers"] == 2


def run_verb(lab: Lab, host: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """`gwtf doctor --json` in a host, as its user runs it."""
    ran = lab.run(host, [sys.executable, "-m", "gwtf_p2p", "doctor", "--json", *arguments], LIMIT_S)
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.returncode, [json.loads(text) for text in ran.stdout.splitlines()]


def test_with_one_public_peer_nothing_is_claimed(swarm: Swarm) -> None:
    lab, maddrs, _ = swarm
    code, lines = run_verb(lab, "port_restr", "--initial_peers", maddrs[0])
    by_check = {fields["check"]: fields for fields in lines[:-1]}
    assert code == lines[-1]["exit_code"] == 0
    assert by_check["nat"]["status"] == "unknown"
    assert "port-restricted or symmetric; a second public peer" in by_check["nat"]["text"]
    assert by_check["stage"]["tokens_per_s"] > 0
    assert lines[-1]["roles"]["stage"]["verdict"] == "fit"
    assert lines[-1]["roles"]["bootstrap"]["verdict"] == "unknown"


def test_without_a_way_to_anybody_the_network_is_against_it(swarm: Swarm) -> None:
    lab, maddrs, _ = swarm
    lab.set_up("full_cone", False)
    code, lines = run_verb(lab, "full_cone", "--initial_peers", *maddrs)
    lab.set_up("full_cone", True)
    assert code == lines[-1]["exit_code"] == 3
    failed = next(fields for fields in lines if fields.get("check") == "initial_peers")["failed"]
    assert set(failed) == set(maddrs)
    assert all(failed.values())
    assert {role["verdict"] for role in lines[-1]["roles"].values()} == {"unfit"}


@pytest.mark.skipif(bool(why_no_miniupnpd()), reason=why_no_miniupnpd())
def test_a_router_that_maps_ports_makes_a_bootstrap_peer_possible(tmp_path: Path) -> None:
    with Lab(load_topology("nat_upnp")) as lab:
        swarm = LabSwarm(lab, tmp_path)
        maddrs = start_bootstraps(lab, swarm, ("first", "second"))
        start_miniupnpd(lab, "router", tmp_path)
        start_miniupnpd(lab, "router_inner", tmp_path, outside="")
        doctors = Doctors(lab, tmp_path)
        for host in ("home", "double"):
            doctors.start(host, maddrs)
        home, double = doctors.diagnosis("home"), doctors.diagnosis("double")
        swarm.stop()
    mapping = line(home, "port_mapping")
    assert mapping.values["maps"]
    assert mapping.values["dialled"], mapping.text
    assert line(home, "nat").values["kind"] == "port_restricted"
    assert home.roles["bootstrap"][0] is RoleVerdict.FIT
    assert not line(double, "port_mapping").values["maps"]
    assert line(double, "nat").values["second_nat"]
    assert double.roles["bootstrap"][0] is RoleVerdict.UNFIT
