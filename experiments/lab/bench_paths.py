"""How long until a stranger can call a peer behind each NAT, and how fast each kind of path is.

    python -m experiments.lab.bench_paths [--repeats 3]

Joining: a peer starts behind each kind of router with one public bootstrap (unforced, stock p2pd flags) and reserves a slot
there; a stranger behind another NAT then calls it through the circuit. Seconds run from the start of p2pd, in a process that
has imported everything. Punching is tried for every ordered pair of NAT kinds, once. Speed: pushes of 50 MB with no line limit,
median and range; direct, punched and relayed in one run, so that their ratios can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from experiments.lab.lab import Lab
from experiments.lab.programs.agent import Agent, AgentError, Agents
from experiments.lab.topology import load_topology
from gwtf_p2p.live.libp2p.maddrs import parse_initial_peers
from gwtf_p2p.live.libp2p.options import P2POptions

KINDS = ("full_cone", "addr_restr", "port_restr", "symmetric", "firewalled", "double_nat")
PORT, BOOT_PORT = 31330, 31337
PUSH_BYTES = 50_000_000
BUFFERS = ("-relayBufferSize=262144",)


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with Lab(load_topology("nat_kinds")) as lab:
        bench = _Bench(lab, Path(tempfile.mkdtemp(prefix="gwtf-lab-")), repeats)
        bench.joining()
        bench.punching()
        bench.speed()


class _Bench:
    def __init__(self, lab: Lab, folder: Path, repeats: int) -> None:
        self._lab, self._repeats = lab, repeats
        self._agents = Agents(lab, folder)
        self._boot = self._start("first", f"/ip4/{lab.public_address('first')}/tcp/{BOOT_PORT}", flags=())
        self._stranger = self._nated("forwarded")

    def _start(self, host: str, listen: str, *, flags: tuple[str, ...] = (), join: Agent | None = None) -> Agent:
        initial = parse_initial_peers(join.maddrs, {}) if join else ()
        mode = "client" if "0.0.0.0" in listen else "server"
        options = P2POptions(initial, (listen,), dht_mode=mode, check_identity=False, nat_port_map=False, lending=None)
        return self._agents.start(host, options, flags)

    def _nated(self, host: str) -> Agent:
        return self._start(host, f"/ip4/0.0.0.0/tcp/{PORT}", join=self._boot)

    def _circuit(self, callee: Agent) -> str:
        return f"{self._boot.maddrs[0]}/p2p-circuit/p2p/{callee.peer}"

    # ---- tables

    def joining(self) -> None:
        print("behind        p2pd up s   callable by a stranger s   path      (one public bootstrap)")
        for host in KINDS:
            up, callable_s, path = [], [], ""
            for _ in range(self._repeats):
                begin = time.monotonic()
                peer = self._nated(host)
                up.append(peer.ready_s)
                peer.ask("reserve", self._boot.peer)
                self._stranger.ask("connect", peer.peer, self._circuit(peer))
                self._stranger.ask("call", peer.peer)
                callable_s.append(time.monotonic() - begin)
                path = _path(self._stranger, peer)
                peer.stop()
            print(f"{host:12} {_span(up):>12} {_span(callable_s):>18}            {path}", flush=True)

    def punching(self) -> None:
        print("\ndials -> waits: seconds of the dial, or why not")
        for dials, waits in itertools.permutations(KINDS, 2):
            one, other = self._nated(dials), self._nated(waits)
            try:
                print(f"{dials:12} -> {waits:12} {self._punch(one, other)}", flush=True)
            finally:
                one.stop()
                other.stop()

    def speed(self) -> None:
        print(f"\nMB/s of {PUSH_BYTES / 1e6:.0f} MB pushes, no line limit: median (range)")
        second = self._start("second", f"/ip4/{self._lab.public_address('second')}/tcp/{BOOT_PORT}", join=self._boot)
        self._row("direct, public to public", second, self._boot)
        second.stop()
        one, other = self._nated("port_restr"), self._nated("double_nat")
        self._row("direct, NAT to public", one, self._boot)
        self._punch(one, other)
        self._row("punched, dialler to waiting", one, other)
        self._row("punched, waiting to dialler", other, one)
        one.ask("disconnect", other.peer)
        self._relayed("relayed, buffers of 16 MiB", one, other)
        for peer in (one, other, self._boot):
            peer.stop()
        self._boot = self._start("first", f"/ip4/{self._lab.public_address('first')}/tcp/{BOOT_PORT}", flags=BUFFERS)
        one, other = self._nated("port_restr"), self._nated("double_nat")
        self._relayed("relayed, buffers of 256 KiB", one, other)

    # ---- steps

    def _punch(self, dials: Agent, waits: Agent) -> str:
        at_dialler = str(dials.ask("identify", self._boot.peer)[0]).split("/")
        at_waiting = waits.ask("identify", self._boot.peer)[0]
        waits.ask("wait_at_door", PORT, at_dialler[2], int(at_dialler[4]))
        begin = time.monotonic()
        reason = dials.ask("connect", waits.peer, f"{at_waiting}/p2p/{waits.peer}", 3.0)
        seconds = time.monotonic() - begin
        if not reason:
            return f"{seconds:.2f} {_path(dials, waits)}"
        return f"no: {reason[:60]}; {waits.ask('punch_result')[:60]}"

    def _relayed(self, label: str, one: Agent, other: Agent) -> None:
        """Another public peer makes AutoNAT call the bootstrap public: only then does its circuit relay grant more than 128
        KiB."""
        helper = self._start("second", f"/ip4/{self._lab.public_address('second')}/tcp/{BOOT_PORT}", join=self._boot)
        budget = self._wait_for_generous_relay(other)
        reason = one.ask("connect", other.peer, self._circuit(other))
        if reason:
            raise AgentError(reason)
        self._row(f"{label} ({budget})", one, other)
        helper.stop()

    def _wait_for_generous_relay(self, peer: Agent) -> str:
        end = time.monotonic() + 20
        while True:
            _, size, seconds = peer.ask("reserve", self._boot.peer)
            if size > PUSH_BYTES * 8 or time.monotonic() > end:
                return f"{size / 2**20:.3g} MiB, {seconds} s per circuit"
            time.sleep(0.2)

    def _row(self, label: str, one: Agent, other: Agent) -> None:
        speeds = [one.ask("push", other.peer, PUSH_BYTES) for _ in range(self._repeats + 2)]
        span = f"{statistics.median(speeds):6.0f} ({min(speeds):.0f}-{max(speeds):.0f})"
        print(f"{label:60} {span}  {_path(one, other)}", flush=True)


def _path(one: Agent, other: Agent) -> str:
    """Of the connections of `one` to `other`."""
    kinds = {"relayed" if "p2p-circuit" in path else "direct" for path in one.ask("paths", other.peer)}
    return "+".join(sorted(kinds))


def _span(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
