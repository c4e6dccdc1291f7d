"""What the doctor concludes from what it found: kinds of NAT, obstacles of each role, remedies, exit codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gwtf_p2p.cli.verbs import doctor
from gwtf_p2p.live.discovery.clock_skew import ClockCheck, ClockVerdict
from gwtf_p2p.live.doctor.machine import MachineFindings, StageSpeed
from gwtf_p2p.live.doctor.nat import MappingTrial
from gwtf_p2p.live.doctor.network import NetworkFindings, RelayTrial
from gwtf_p2p.live.doctor.report import Line, RoleVerdict, Status
from gwtf_p2p.live.doctor.rules import Diagnosis, diagnose
from gwtf_p2p.live.libp2p.control import Reservation
from gwtf_p2p.live.measure.bandwidth import Speed
from gwtf_p2p.live.nat.nat_kind import Evidence, NatKind, kind_of_nat, second_nat
from gwtf_p2p.live.nat.nat_pmp import Granted
from gwtf_p2p.live.nat.port_mapping import Mapped
from gwtf_p2p.protocol.ids import PeerId
from gwtf_p2p.protocol.view.memory_plan import StageMemory

GB = 1 << 30
RELAY = PeerId("QmRelay")
SEEN = "/ip4/8.8.4.4/tcp/31330"
OTHER = "/ip4/8.8.4.4/tcp/40000"
HOME = Evidence(
    own_ip="192.168.1.7", observed=(SEEN, SEEN), cold=False, stranger=False, known=False, hops=("192.168.1.1", "8.8.0.1")
)
OPEN = replace(HOME, own_ip="8.8.4.4", cold=True, stranger=True, known=True)
SLOT = Reservation(RELAY, 2e9, 4 * GB, 1800)
FAST = Speed(5e6, 6e6, 1 << 22)
MACHINE = MachineFindings(65536, 65536, 8 * GB, 50 * GB, Path("/home"), 31330, "", "cpu", ())
STAGE = StageSpeed("a stage", 256, 0.1, 0.2, 100 << 20)
GOOD_CLOCK = ClockCheck(ClockVerdict.GOOD, 0.1, 2)


def network(evidence: Evidence = HOME, slot: Reservation | None = SLOT, **changes: object) -> NetworkFindings:
    trial = RelayTrial(RELAY, "/ip4/8.8.8.8/tcp/31337/p2p/QmRelay", slot, FAST if slot else None, "" if slot else "it is full")
    found = NetworkFindings(31330, 2, ("/ip4/8.8.8.8/tcp/31337/p2p/QmRelay",), {}, evidence)
    found.relays, found.best, found.clock = [trial], FAST, GOOD_CLOCK
    for name, value in changes.items():
        assert hasattr(found, name)
        setattr(found, name, value)
    return found


def line(diagnosis: Diagnosis, check: str) -> Line:
    return next(line for line in diagnosis.lines if line.check == check)


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (OPEN, NatKind.NONE),
        (replace(OPEN, cold=False, stranger=False, known=False), NatKind.FIREWALL),
        (replace(HOME, cold=True), NatKind.FORWARDED),
        (replace(HOME, stranger=True, known=True), NatKind.FULL_CONE),
        (replace(HOME, known=True), NatKind.ADDRESS_RESTRICTED),
        (HOME, NatKind.PORT_RESTRICTED),
        (replace(HOME, observed=(SEEN, OTHER)), NatKind.SYMMETRIC),
        (replace(HOME, observed=("/ip4/192.168.1.7/tcp/31330",)), NatKind.LOCAL),
        (replace(HOME, observed=(SEEN,), stranger=None), NatKind.UNKNOWN),
        (replace(HOME, stranger=None), NatKind.UNKNOWN),
        (replace(HOME, cold=None, stranger=None, known=None), NatKind.UNKNOWN),
        (Evidence(), NatKind.UNKNOWN),
    ],
)
def test_kinds_of_nat(evidence: Evidence, kind: NatKind) -> None:
    found, reason = kind_of_nat(evidence)
    assert found is kind
    assert reason


@pytest.mark.parametrize(
    ("known", "words"), [(True, "full cone or address-restricted"), (False, "port-restricted or symmetric")]
)
def test_one_observer_says_what_is_missing(known: bool, words: str) -> None:
    _, reason = kind_of_nat(replace(HOME, observed=(SEEN,), stranger=None, known=known))
    assert words in reason
    assert "a second public peer on another address is missing" in reason


@pytest.mark.parametrize(
    ("evidence", "double"),
    [
        (HOME, False),
        (replace(HOME, hops=("192.168.1.1",)), False),
        (replace(HOME, hops=("192.168.1.1", "100.64.0.1")), True),
        (replace(HOME, hops=("192.168.1.1", "", "192.168.0.1")), True),
        (replace(HOME, hops=("192.168.1.1", "10.0.0.1", "8.8.0.1")), None),
        (replace(HOME, hops=("192.168.1.1", "", "")), None),
        (replace(HOME, hops=()), None),
        (replace(HOME, outside_ip="100.64.0.9"), True),
        (replace(HOME, outside_ip="8.8.4.4"), False),
        (replace(HOME, own_ip="100.64.0.9"), True),
        (OPEN, False),
        (replace(OPEN, hops=("10.0.0.1",)), False),
    ],
)
def test_a_second_nat_is_told_where_something_tells(evidence: Evidence, double: bool | None) -> None:
    assert second_nat(evidence)[0] is double


def test_a_home_with_relays_is_fit_to_train_and_not_to_be_a_bootstrap() -> None:
    found = diagnose(network(), MACHINE, STAGE)
    assert found.exit_code == 0
    assert found.roles["stage"] == found.roles["data"] == (RoleVerdict.FIT, ())
    assert found.roles["bootstrap"] == (RoleVerdict.UNFIT, ("way_in",))
    assert "forward TCP port 31330 there to 192.168.1.7" in line(found, "nat").remedy
    assert "192.168.1.1" in line(found, "nat").remedy


def test_who_is_fit_to_train_reads_no_no(capsys: pytest.CaptureFixture[str]) -> None:
    """Though it could be no bootstrap peer."""
    doctor.print_table(diagnose(network(), MACHINE, STAGE))
    table = capsys.readouterr().out
    assert "[--] way_in" in table
    assert "[NO]" not in table
    assert "a circuit carries 4.3 GB each way, for 30 minutes" in table
    doctor.print_table(diagnose(network(slot=None), MACHINE, STAGE))
    assert "[NO] way_in" in capsys.readouterr().out


def test_a_public_machine_is_fit_for_everything() -> None:
    found = diagnose(network(OPEN), MACHINE, STAGE)
    assert {verdict for verdict, _ in found.roles.values()} == {RoleVerdict.FIT}


@pytest.mark.parametrize(
    ("dialled", "bootstrap"), [(True, RoleVerdict.FIT), (False, RoleVerdict.UNFIT), (None, RoleVerdict.UNFIT)]
)
def test_a_mapped_port_counts_when_somebody_got_in(dialled: bool | None, bootstrap: RoleVerdict) -> None:
    mapped = Mapped(40000, "UPnP", "192.168.1.1", Granted("8.8.4.4", 40000, 3600))
    found = diagnose(network(mapping=MappingTrial(mapped, "", "8.8.4.4", dialled)), MACHINE, STAGE)
    assert found.roles["bootstrap"][0] is bootstrap
    assert found.roles["stage"][0] is RoleVerdict.FIT


@pytest.mark.parametrize("kind", ["port", "full", "symmetric"])
def test_nobody_can_call_a_home_without_relay(kind: str) -> None:
    evidence = {
        "port": HOME,
        "full": replace(HOME, stranger=True, known=True),
        "symmetric": replace(HOME, observed=(SEEN, OTHER)),
    }
    found = diagnose(network(evidence[kind], slot=None), MACHINE, STAGE)
    assert found.roles["stage"] == (RoleVerdict.UNFIT, ("way_in",))
    assert found.exit_code == 3
    assert "it is full" in line(found, "relay").text


def test_initial_peers_that_do_not_answer_are_listed_with_the_reason() -> None:
    found = diagnose(NetworkFindings(31330, 1, (), {"/ip4/8.8.8.8/tcp/1/p2p/QmRelay": "refused"}), MACHINE, STAGE)
    assert found.exit_code == 3
    assert line(found, "initial_peers").text == "/ip4/8.8.8.8/tcp/1/p2p/QmRelay: refused"
    assert {verdict for verdict, _ in found.roles.values()} == {RoleVerdict.UNFIT}


@pytest.mark.parametrize(
    ("machine", "check", "unfit"),
    [
        (replace(MACHINE, memory_bytes=GB // 2), "memory", {"bootstrap", "stage", "data"}),
        (replace(MACHINE, memory_bytes=GB + 1), "memory", {"stage", "data"}),
        (replace(MACHINE, disk_bytes=GB), "disk", {"stage", "data"}),
        (replace(MACHINE, hard_files=512), "open_files", {"bootstrap", "stage", "data"}),
        (replace(MACHINE, hard_files=2048), "open_files", {"bootstrap"}),
    ],
)
def test_what_the_machine_lacks_stands_against_roles(machine: MachineFindings, check: str, unfit: set[str]) -> None:
    found = diagnose(network(OPEN), machine, STAGE)
    assert {role for role, (verdict, _) in found.roles.items() if verdict is RoleVerdict.UNFIT} == unfit
    assert line(found, check).status is Status.BAD
    assert line(found, check).remedy
    assert found.exit_code == (6 if "stage" in unfit else 0)


def test_a_device_that_cannot_compute_a_stage_is_an_obstacle_to_training_only() -> None:
    found = diagnose(network(OPEN), MACHINE, "CUDA out of memory")
    assert found.exit_code == 6
    assert found.roles["bootstrap"][0] is RoleVerdict.FIT
    assert "CUDA out of memory" in line(found, "stage").text


def test_the_network_comes_before_the_machine_in_the_exit_code() -> None:
    assert diagnose(network(slot=None), replace(MACHINE, disk_bytes=0), STAGE).exit_code == 3


def test_a_clock_that_is_far_off_is_refused_and_a_little_off_remarked() -> None:
    wrong = diagnose(network(clock=ClockCheck(ClockVerdict.REFUSE, 100.0, 2)), MACHINE, STAGE)
    assert wrong.exit_code == 6
    assert "100.0 s behind" in line(wrong, "clock").text
    assert "NTP" in line(wrong, "clock").remedy
    assert diagnose(network(clock=ClockCheck(ClockVerdict.WARN, 3.0, 2)), MACHINE, STAGE).exit_code == 0


def test_a_cut_circuit_and_a_slow_line_are_remarked() -> None:
    cut = RelayTrial(
        RELAY, "/ip4/8.8.8.8/tcp/31337/p2p/QmRelay", replace(SLOT, circuit_bytes=128 << 10), replace(FAST, cut_after=131000)
    )
    found = diagnose(network(relays=[cut], best=Speed(2e5, 2e5, 1 << 20)), MACHINE, STAGE)
    assert line(found, "relay").status is Status.REMARK
    assert "0.1 MB each way" in line(found, "relay").text
    assert "cut after 0.13 MB" in line(found, "speed_relay").text
    assert line(found, "speed_direct").status is Status.REMARK
    assert found.exit_code == 0


def test_a_port_that_is_taken_and_an_idle_gpu_are_remarked() -> None:
    found = diagnose(network(), replace(MACHINE, port_why="Address already in use", cuda=("H200",)), STAGE)
    assert "already in use" in line(found, "port").text
    assert "--device cuda" in line(found, "device").remedy
    assert found.exit_code == 0


@pytest.mark.parametrize(("allowed", "fit", "code"), [(0, [1, 2], 0), (2_000_000_000, [2], 0), (1_000_000_000, [], 6)])
def test_which_stages_of_the_run_fit_is_said(allowed: int, fit: list[int], code: int) -> None:
    stages = [StageMemory(1, 2_000_000_000, 0, 0, 1), StageMemory(2, 1_000_000_000, 0, 0, 1)]
    found = diagnose(network(OPEN), replace(MACHINE, allowed_bytes=allowed), STAGE, stages)
    line = next(line for line in found.lines if line.check == "run_memory")
    assert (line.values["fit"], found.exit_code) == (fit, code)
    assert "1,450 to 2,450 MB" in line.text
