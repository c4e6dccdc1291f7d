"""By how much honest peers of a stage differ, and cheats: what `audit_tolerance` of a run is chosen by.

`python -m experiments.audits.tolerance --pairs 10000 --json` takes stages of a tiny model, one honest peer that works and
another that does it again, in every pair of precisions and every wire format, with other numbers of threads (another order of
summing); and every cheat of `emulation/cheats`. One line for each: largest and median difference of outputs and gradients, as
shares of what the stage changes, and how many of the audits were judged wrongly. Exit code 1 if an honest pair was. `--run
RUN.toml` takes the model, formats and tolerance of a run file instead.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from gwtf_p2p.cli.shared.run_file import read_run_file, run_from_plain
from gwtf_p2p.live.emulation.cheats import CHEATS, STALE_STEPS, CheatingExecutor
from gwtf_p2p.protocol.audit.judge import agrees, difference
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId
from gwtf_p2p.protocol.wire.records import RunRecord
from gwtf_p2p.training.codecs.codec import Codec
from gwtf_p2p.training.codecs.payload import decode_gradient, decode_payload, encode_gradient, encode_payload
from gwtf_p2p.training.codecs.table import CODECS, codec_of
from gwtf_p2p.training.compute.config import ExecutorConfig
from gwtf_p2p.training.compute.difference import relative_difference
from gwtf_p2p.training.compute.executor import StageExecutor
from gwtf_p2p.training.compute.optimizer import PartOptimizer
from gwtf_p2p.training.model.doors import Payload
from gwtf_p2p.training.model.split import PartSpec, build_stage_part

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Line:
    """Audits of one kind of worker. `judged_wrong`: honest ones that were not agreed with, or cheats that were."""

    worker: str
    precisions: str
    wire: str
    audits: int
    output_median: float
    output_most: float
    gradient_median: float
    gradient_most: float
    judged_wrong: int


def a_run() -> RunRecord:
    """Two stages of two layers each."""
    plain = {"run_id": "tolerance", "stages": 2, "model": "tiny-llama", "dataset": "stdlib", "seed": 0}
    return run_from_plain({**plain, "sequence_length": 16, "microbatch_size": 1, "microbatches_per_data_peer": 1}, "tolerance")


class Pair:
    """A worker and an auditor of stage 1, with the same weights, which take a step now and then."""

    def __init__(self, run: RunRecord, precisions: tuple[str, str], cheat: str = "") -> None:
        self.run, self.precisions = run, precisions
        spec = PartSpec.of(run, 1)
        own, other = (ExecutorConfig("cpu", precision) for precision in precisions)
        part = build_stage_part(spec)
        self.worker = CheatingExecutor(part, own, run.loss, cheat) if cheat else StageExecutor(part, own)
        self.auditor = StageExecutor(build_stage_part(spec), other)
        self._optimizers = [PartOptimizer(each.part.parameters, run.optimizer) for each in (self.worker, self.auditor)]
        self._random = torch.Generator().manual_seed(run.seed)

    def audit(self, number: int, codecs: tuple[Codec, Codec], other_kernels: bool) -> tuple[float, float]:
        """The differences that an auditor finds in one hop; with other kernels than the worker's, if that is wanted."""
        forwards, backwards = codecs
        given, got = self._travelled(self._drawn(0.5), forwards), self._handed_back(self._drawn(1e-3), backwards)
        microbatch = MicrobatchId(PeerId("data"), 0, number)
        made = self._travelled(self.worker.forward(microbatch, given), forwards)
        handed = self._handed_back(self.worker.backward(microbatch, got), backwards)
        kernels = torch.backends.mkldnn.flags(enabled=False) if other_kernels else nullcontext()
        with kernels:
            own, own_gradient = self.auditor.repeat(given, got)
        output = relative_difference(made, own, self._travelled(own, forwards), given)
        return output, relative_difference(handed, own_gradient, self._handed_back(own_gradient, backwards), got)

    def step(self, iteration: int) -> None:
        """Both take one step by the same gradient, of the size that training has."""
        gradient = {
            name: torch.randn(p.shape, generator=self._random) * 1e-2 for name, p in self.auditor.part.parameters.items()
        }
        for optimizer, executor in zip(self._optimizers, (self.worker, self.auditor), strict=True):
            optimizer.step(gradient, iteration)
            executor.reset_gradients()

    def _drawn(self, scale: float) -> Payload:
        found = []
        for each in self.worker.part.boundaries.input:
            if each.is_integer:
                found.append(torch.randint(0, 100, each.shape, generator=self._random))
            else:
                found.append(torch.randn(each.shape, generator=self._random) * scale)
        return tuple(found)

    def _travelled(self, payload: Payload, codec: Codec) -> Payload:
        boundary = self.worker.part.boundaries.input
        return decode_payload(encode_payload(payload, boundary, codec), boundary, codec)

    def _handed_back(self, gradient: Payload, codec: Codec) -> Payload:
        boundary = self.worker.part.boundaries.input
        return decode_gradient(encode_gradient(gradient, boundary, codec), boundary, codec)


def measured(run: RunRecord, worker: str, precisions: tuple[str, str], wire: tuple[str, str], audits: int) -> Line:
    """So many audits; `worker`: honest, or its cheat."""
    cheat = "" if worker == "honest" else worker
    pair, codecs = Pair(run, precisions, cheat), (codec_of(wire[0]), codec_of(wire[1]))
    outputs, gradients, wrong = [], [], 0
    for warm in range(STALE_STEPS + 1):
        pair.step(warm)
    for number in range(audits):
        found = [difference(each) for each in pair.audit(number, codecs, number % 2 == 1)]
        outputs.append(found[0])
        gradients.append(found[1])
        good = agrees(found[0], found[1], precisions, run.audit_tolerance)
        wrong += good if cheat else not good
        if number % 50 == 49:
            pair.step(STALE_STEPS + 1 + number // 50)
    middle = statistics.median
    name = "+".join(precisions)
    return Line(worker, name, "/".join(wire), audits, middle(outputs), max(outputs), middle(gradients), max(gradients), wrong)


def lines(run: RunRecord, audits: int, wires: Sequence[tuple[str, str]]) -> Iterator[Line]:
    """Honest pairs share `audits` among them, half of them in the first format; each cheat gets a hundredth."""
    for wire, precisions in product(wires, product(PRECISIONS, PRECISIONS)):
        share = 1.0 if len(wires) == 1 else 0.5 if wire == wires[0] else 0.5 / (len(wires) - 1)
        yield measured(run, "honest", precisions, wire, max(1, math.ceil(audits * share / 4)))
    for cheat, precision in product(CHEATS, PRECISIONS):
        yield measured(run, cheat, (precision, precision), wires[0], max(5, audits // 100))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=600, help="audits of honest peers, in all")
    parser.add_argument("--run", type=Path, help="a run file")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = a_run() if chosen.run is None else read_run_file(chosen.run)
    same = [(name, name) for name in CODECS]
    wires = same if chosen.run is None else [(run.wire.activations, run.wire.gradients)]
    alarms = audits = 0
    for line in lines(run, chosen.pairs, wires):
        print(json.dumps(asdict(line)) if chosen.json else line, flush=True)
        if line.worker == "honest":
            audits, alarms = audits + line.audits, alarms + line.judged_wrong
    print(
        json.dumps({"honest_audits": audits, "false_alarms": alarms})
        if chosen.json
        else f"{audits} honest, {alarms} false alarms"
    )
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
