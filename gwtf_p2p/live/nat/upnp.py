"""Ports mapped by the router on request: UPnP IGD, through async-upnp-client (SSDP, device description, SOAP).

The library is imported on first use: it brings aiohttp, which a peer on a public address never needs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gwtf_p2p.live.nat.nat_pmp import Gateway, Granted, MappingRefused, NoGateway, own_address

if TYPE_CHECKING:
    from async_upnp_client.client import UpnpDevice, UpnpService
    from async_upnp_client.utils import CaseInsensitiveDict

_DEVICES = ("urn:schemas-upnp-org:device:InternetGatewayDevice:1", "urn:schemas-upnp-org:device:InternetGatewayDevice:2")
_SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
_HTTP_S = 3
_CONFLICT, _SAME_PORT_ONLY, _PERMANENT_ONLY = 718, 724, 725
_PORTS_TRIED = 8
_ENTRY_AGE_S = 10
"""What an entry says is left of its lease may be less than what was granted by so much."""


class UpnpGateway:
    """A router that maps ports by UPnP. A port that another machine has mapped already gives way to the next one."""

    kind = "UPnP"

    def __init__(self, service: UpnpService, address: str) -> None:
        self.address = address
        self._service = service
        self._own_ip = own_address(address)

    async def map(self, port: int, external_port: int, lifetime_s: int) -> Granted:
        told = await self._call("GetExternalIPAddress")
        for offset in range(_PORTS_TRIED):
            wanted = external_port + offset
            try:
                granted_s = await self._add(port, wanted, lifetime_s)
            except _Refused as refusal:
                if refusal.code == _CONFLICT:
                    continue
                raise MappingRefused(f"UPnP: {refusal}") from refusal
            given_s = await self._lease_s(wanted, granted_s)
            return Granted(str(told.get("NewExternalIPAddress") or ""), wanted, given_s)
        raise MappingRefused(f"UPnP: ports {external_port} to {external_port + _PORTS_TRIED - 1} are mapped to others")

    async def unmap(self, port: int, external_port: int) -> None:
        try:
            await self._call("DeletePortMapping", NewRemoteHost="", NewExternalPort=external_port, NewProtocol="TCP")
        except _Refused as refusal:
            raise MappingRefused(f"UPnP: {refusal}") from refusal

    async def _add(self, port: int, external_port: int, lifetime_s: int) -> int:
        """Returns the lease; 0 from routers that know permanent mappings only."""
        for lease_s in (lifetime_s, 0):
            try:
                await self._call(
                    "AddPortMapping",
                    NewRemoteHost="",
                    NewExternalPort=external_port,
                    NewProtocol="TCP",
                    NewInternalPort=port,
                    NewInternalClient=self._own_ip,
                    NewEnabled=True,
                    NewPortMappingDescription="gwtf",
                    NewLeaseDuration=lease_s,
                )
            except _Refused as refusal:
                if refusal.code != _PERMANENT_ONLY or not lease_s:
                    raise
            else:
                return lease_s
        raise AssertionError("the last attempt returns or raises")

    async def _lease_s(self, external_port: int, asked_s: int) -> int:
        """Seconds that the router gave, which `AddPortMapping` does not say: as its entry has it, else as asked."""
        try:
            entry = await self._call(
                "GetSpecificPortMappingEntry", NewRemoteHost="", NewExternalPort=external_port, NewProtocol="TCP"
            )
        except (_Refused, NoGateway):
            return asked_s
        return read_lease_s(entry.get("NewLeaseDuration"), asked_s)

    async def _call(self, name: str, **arguments: Any) -> dict[str, object]:
        """Raises _Refused, NoGateway."""
        from async_upnp_client.exceptions import UpnpActionError, UpnpError

        try:
            return dict(await self._service.action(name).async_call(**arguments))
        except UpnpActionError as error:
            raise _Refused(int(error.error_code or 0), error.error_desc or str(error)) from error
        except (UpnpError, KeyError) as error:
            raise NoGateway(f"UPnP: {self.address}: {error}") from error


def read_lease_s(told: object, asked_s: int) -> int:
    """What an entry's lease is worth. One that was asked for a time and has 0 has no end, or is told by a router that does not
    count (both are seen): it is renewed as if it had been granted as asked, which suits either."""
    return told if isinstance(told, int) and 0 < told < asked_s - _ENTRY_AGE_S else asked_s


class _Refused(MappingRefused):
    """The router's error code (UPnP WANIPConnection, section 2.4) and text."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(f"{text} ({code})")


async def find_upnp_gateway(limit_s: float) -> Gateway:
    """The first gateway that answers to a search on the local network and maps ports. Raises NoGateway."""
    from async_upnp_client.aiohttp import AiohttpRequester
    from async_upnp_client.client_factory import UpnpFactory
    from async_upnp_client.exceptions import UpnpError

    try:
        async with asyncio.timeout(limit_s):
            location = await _search(limit_s)
            device = await UpnpFactory(AiohttpRequester(_HTTP_S), non_strict=True).async_create_device(location)
    except TimeoutError as error:
        raise NoGateway("UPnP: no router answers on the local network") from error
    except (UpnpError, OSError) as error:
        raise NoGateway(f"UPnP: {error}") from error
    service = _connection_service(device)
    if service is None:
        raise NoGateway(f"UPnP: {location} maps no ports")
    return UpnpGateway(service, urlsplit(location).hostname or "")


def _connection_service(device: UpnpDevice) -> UpnpService | None:
    by_type = {service.service_type: service for service in device.all_services}
    return next((by_type[kind] for kind in _SERVICES if kind in by_type), None)


async def _search(limit_s: float) -> str:
    """Where the description of the first gateway that answers is. Waits without end when nobody does."""
    from async_upnp_client.search import SsdpSearchListener

    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def heard(headers: CaseInsensitiveDict) -> None:
        location = headers.get("location")
        if isinstance(location, str) and not found.done():
            found.set_result(location)

    mx_s = max(1, int(limit_s) - 1)
    listeners = [SsdpSearchListener(heard, search_target=device, timeout=mx_s) for device in _DEVICES]
    try:
        for listener in listeners:
            await listener.async_start()
            listener.async_search()
        return await found
    finally:
        for listener in listeners:
            listener.async_stop()
