"""A real router daemon that grants less than it is asked for: what it grants is read, and counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from experiments.lab.lab import Lab
from experiments.lab.programs.miniupnpd import start_miniupnpd, why_no_miniupnpd
from experiments.lab.topology import load_topology
from gwtf_p2p.live.nat import port_mapping
from gwtf_p2p.live.nat.nat_pmp import Gateway, NoGateway
from gwtf_p2p.live.nat.port_mapping import LEASE_S, PortMapper, renewal_s
from tests.lab.test_port_mapping import PORT, in_host, pmp

pytestmark = [pytest.mark.netns, pytest.mark.skipif(bool(why_no_miniupnpd()), reason=why_no_miniupnpd())]

GRANTED_S = 121


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(load_topology("nat_upnp")) as made:
        start_miniupnpd(made, "router", tmp_path_factory.mktemp("miniupnpd"), longest_s=GRANTED_S)
        yield made


def test_what_a_router_grants_is_read_and_half_of_it_is_the_time_to_the_next_request(lab: Lab) -> None:
    """By PCP: this daemon grants any time by the two others."""

    async def use() -> None:
        gateway = await pmp()
        granted = await gateway.map(PORT, PORT, LEASE_S)
        assert granted.lifetime_s == GRANTED_S
        assert renewal_s(granted.lifetime_s) == GRANTED_S / 2
        await gateway.unmap(PORT, granted.external_port)

    in_host(lab, "home", use)


def test_the_mapper_goes_by_it(lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of two routers that answer it takes the first; here the one that grants little is the only one."""

    async def use() -> None:
        mapper = PortMapper()
        with caplog.at_level("INFO"):
            assert await mapper.map_port(PORT)
        assert mapper.mapped is not None and mapper.mapped.granted.lifetime_s == GRANTED_S
        await mapper.close()

    async def nobody(limit_s: float) -> Gateway:
        raise NoGateway("UPnP: not asked")

    monkeypatch.setattr(port_mapping, "find_upnp_gateway", nobody)
    in_host(lab, "home", use)
    assert f"for {GRANTED_S} s at a time" in caplog.text
