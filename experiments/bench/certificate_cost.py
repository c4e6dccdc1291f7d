"""What certificates cost: the same simulated run with and without them, and signing and verifying on this machine.

`python -m experiments.bench.certificate_cost --json` prints one line per size of swarm: {"stages", "stage_peers", "iterations",
"iteration_s": [without, with], "control_bytes": [without, with] per iteration, "share_of_all_bytes" (what certificates add, of
all bytes that travel, tensors of `MICROBATCH_BYTES` included), "sign_s", "verify_s" of one signature here}. Times are virtual,
so equal runs take equal times; bytes are those of the messages as they are packed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gwtf_p2p.live.libp2p.identity import create_identity
from gwtf_p2p.live.libp2p.signing import Signing
from gwtf_p2p.live.rpc.api import pack
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.messages import ControlMessage, to_header
from gwtf_p2p.simulation.world.small_swarm import MICROBATCH_BYTES, SmallConfig, small_swarm

ITERATIONS = 20
SIZES = ((2, 2), (3, 4), (4, 8))
"""Stages, and peers in each."""

TRIALS = 500


def control_bytes(config: SmallConfig) -> tuple[float, float]:
    """(Virtual seconds, bytes of small messages between different peers) of one iteration, from the second on."""
    swarm, sent = small_swarm(config), 0
    signature = "A" * 88  # as long as a live one

    def count(sender: PeerId, to: PeerId, message: ControlMessage) -> None:
        nonlocal sent
        sent += len(pack(lengthened(to_header(message), signature))) if sender != to else 0

    swarm.run(1)
    began = swarm.world.kernel.now
    swarm.world.messages.on_send = count
    swarm.run(ITERATIONS + 1)
    return (swarm.world.kernel.now - began) / ITERATIONS, sent / ITERATIONS


def lengthened(plain: Any, signature: str) -> Any:
    """The same with signatures of their real length."""
    if isinstance(plain, dict):
        return {k: signature if k == "signature" and v else lengthened(v, signature) for k, v in plain.items()}
    if isinstance(plain, list | tuple):
        is_signatures = plain and all(isinstance(each, str) and len(each) == 16 for each in plain)
        return [signature if is_signatures else lengthened(each, signature) for each in plain]
    return plain


def signing_seconds() -> tuple[float, float]:
    """Of one signature, and of looking at one, with a real key."""
    with tempfile.TemporaryDirectory() as folder:
        signing = Signing(create_identity(Path(folder) / "key"), RunId("run"))
    text = "prepared 12 34 5 " + "a" * 32 + " " + "b" * 64 + " 0.123456789 " + "c" * 64
    began = time.perf_counter()
    for _ in range(TRIALS):
        signature = signing.sign(text)
    turned = time.perf_counter()
    assert all(signing.verify(signing.key, text, signature) for _ in range(TRIALS))
    return (turned - began) / TRIALS, (time.perf_counter() - turned) / TRIALS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    sign_s, verify_s = signing_seconds()
    for stages, stage_peers in SIZES:
        config = SmallConfig(stages=stages, stage_peers=stage_peers, microbatches=8)
        without = control_bytes(replace(config, certifies=False))
        with_them = control_bytes(config)
        tensors = 2 * (stages + 1) * 8 * MICROBATCH_BYTES
        line = {
            "stages": stages,
            "stage_peers": stage_peers,
            "iterations": ITERATIONS,
            "iteration_s": [round(without[0], 4), round(with_them[0], 4)],
            "control_bytes": [round(without[1]), round(with_them[1])],
            "share_of_all_bytes": round((with_them[1] - without[1]) / (tensors + without[1]), 6),
            "sign_s": round(sign_s, 6),
            "verify_s": round(verify_s, 6),
        }
        print(json.dumps(line) if chosen.json else line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
