"""CPU seconds of a live swarm's processes, from /proc: what the emulated run really cost this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gwtf_p2p.live.peer.local_swarm import LocalSwarm

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 when it is gone or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


class CpuBooks:
    """From the first iteration's begin to the end. Peers that came later count from their start; killed ones are missed."""

    def __init__(self) -> None:
        self._p2pd: dict[str, int] = {}
        self._before: dict[int, float] = {}
        self._began = time.monotonic()
        self._told: dict[str, float] = {}

    def know(self, name: str, p2pd: int) -> None:
        self._p2pd[name] = p2pd

    def begin(self, processes: LocalSwarm) -> None:
        self._began = time.monotonic()
        pids = [*self._p2pd.values(), *(peer.pid for peer in processes.peers.values())]
        self._before = {pid: cpu_seconds(pid) for pid in pids}

    def end(self, processes: LocalSwarm) -> None:
        wall_s = time.monotonic() - self._began
        peers = [peer.pid for peer in processes.peers.values() if peer.exit_code is None]
        python_s, p2pd_s = self._since(peers), self._since(list(self._p2pd.values()))
        cores = os.cpu_count() or 1
        share = (python_s + p2pd_s) / (wall_s * cores)
        self._told = {"peers_s": python_s, "p2pd_s": p2pd_s, "wall_s": wall_s, "cores": cores, "share": share}

    def told(self, compute_s: float, real_s: float, device_s: float) -> dict[str, float]:
        """`compute_s`: CPU of the model's computations, `real_s` their wall time, `device_s` the emulated devices' time."""
        return {**self._told, "compute_s": compute_s, "computing_wall_s": real_s, "device_s": device_s}

    def _since(self, pids: list[int]) -> float:
        return sum(max(0.0, cpu_seconds(pid) - self._before.get(pid, 0.0)) for pid in pids)
