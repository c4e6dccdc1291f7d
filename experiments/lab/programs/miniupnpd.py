"""A router of the lab that maps ports on request: the real daemon, miniupnpd, in the router's namespace.

It serves UPnP IGD, PCP and NAT-PMP. Debian has it as `miniupnpd-nftables`. It does no mapping at an outside address that it
takes for reserved, as the lab's are, so it is told another one, `OUTSIDE`; that address shows up in its answers only.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from experiments.lab.lab import Lab
from experiments.lab.nat_rules import BRIDGE, OUTER_DEVICE
from experiments.lab.processes import HostProcess
from experiments.lab.wiring import COMMAND_S, LabFailed
from gwtf_p2p.live.nat.nat_pmp import PORT as NAT_PMP_PORT

OUTSIDE = "11.22.33.44"
PACKAGE = "miniupnpd-nftables"

_READY = "HTTP listening on port"
_LOOK_S = 0.02
_CHAINS = """
table inet miniupnpd {
  chain forward { type filter hook forward priority -10; policy accept; }
  chain prerouting { type nat hook prerouting priority -101; policy accept; }
  chain postrouting { type nat hook postrouting priority 99; policy accept; }
}
"""
_OPTIONS = f"""ext_ifname={OUTER_DEVICE}
listening_ip={BRIDGE}
enable_upnp=yes
enable_natpmp=yes
secure_mode=yes
min_lifetime=120
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=forward
upnp_nat_chain=prerouting
upnp_nat_postrouting_chain=postrouting
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


def why_no_miniupnpd() -> str:
    """Empty when it is installed."""
    return "" if shutil.which("miniupnpd") else f"needs the Debian package {PACKAGE}"


def start_miniupnpd(lab: Lab, router: str, folder: Path, outside: str = OUTSIDE, longest_s: int = 86400) -> HostProcess:
    """Returns when it serves. `outside` empty: it uses the router's own address, and refuses to map if that is private.
    `longest_s`: what is granted by PCP at most.

    Raises LabFailed.
    """
    config, rules, log = (folder / f"{router}.{kind}" for kind in ("conf", "nft", "miniupnpd.log"))
    config.write_text(_OPTIONS + f"max_lifetime={longest_s}\n" + (f"ext_ip={outside}\n" if outside else ""))
    rules.write_text(_CHAINS)
    made = lab.run(router, ["nft", "-f", str(rules)])
    if made.returncode:
        raise LabFailed(f"{router}: {made.stderr.strip()}")
    daemon = lab.start(router, ["miniupnpd", "-d", "-f", str(config), "-P", str(folder / f"{router}.pid")], log)
    end = time.monotonic() + COMMAND_S
    while _READY not in daemon.read_log() or not _takes_mappings(lab, router):
        if daemon.exit_code is not None or time.monotonic() > end:
            raise LabFailed(f"{router}: miniupnpd does not serve: {daemon.read_log()[-500:]}")
        time.sleep(_LOOK_S)
    return daemon


def _takes_mappings(lab: Lab, router: str) -> bool:
    """By NAT-PMP and PCP: it opens that port after it has said that it listens for UPnP."""
    sockets = lab.run(router, ["cat", "/proc/net/udp", "/proc/net/udp6"]).stdout
    return f":{NAT_PMP_PORT:04X} " in sockets


def mappings(lab: Lab, router: str) -> str:
    """The kernel's rules that the daemon has made; empty when it has made none."""
    listed = lab.run(router, ["nft", "list", "chain", "inet", "miniupnpd", "prerouting"]).stdout
    return "\n".join(line.strip() for line in listed.splitlines() if "dnat" in line)
