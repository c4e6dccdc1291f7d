"""The processes of the official swarm.

`bootstrap` is a node of its DHT, `server` one stage peer (their Server, ExpertBackend and Runtime around a stage of our model),
`trainer` a client whose microbatches go through three BalancedRemoteExperts, some in flight at once. Each says what it has done
through a pipe, and is ended from outside.
"""

from __future__ import annotations

import multiprocessing as mp
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.bench.official_swarm.loading import load
from experiments.bench.official_swarm.shape import Shape
from gwtf_p2p.protocol.wire.records import LossSpec, RunRecord
from gwtf_p2p.training.compute.loss import loss_of
from gwtf_p2p.training.model.split import PartSpec, build_stage_part, build_whole_model

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
P2PD_S = 120.0
"""How long a p2pd may take to start."""

HANDLERS = 4
"""Processes of a server that take requests; its documentation recommends four for each expert."""

TIMEOUT_S = 120.0
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Arguments:
    """Of a process."""

    source: Path
    messages: Path
    shape: Shape
    record: RunRecord
    initial_peers: tuple[str, ...] = ()
    stage: int = 0
    number: int = 0

    def load(self) -> Any:
        """Their package; its processes are forked."""
        torch.set_num_threads(1)
        mp.set_start_method("fork", force=True)
        return load(self.source, self.messages)


class StageModule(nn.Module):
    """A stage of the run as a module of tensors: ids come into the first one, the last one gives the loss, for each row."""

    def __init__(self, record: RunRecord, stage: int) -> None:
        super().__init__()
        self.part = build_stage_part(PartSpec.of(record, stage))
        self.own = nn.ParameterList(self.part.parameters.values())

    def forward(self, first: Tensor, labels_BT: Tensor | None = None) -> Tensor:
        labels = torch.empty(0) if labels_BT is None else labels_BT
        hidden = self.part.forward((first, labels))[0]
        if labels_BT is None:
            return hidden
        return loss_of(self.part.logits(hidden), labels_BT, LossSpec()).expand(len(first))


def examples(record: RunRecord, stage: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """What goes into a stage and comes out, as empty tensors."""
    ids = torch.zeros(record.microbatch_size, record.sequence_length, dtype=torch.int64)
    hidden = torch.zeros(*ids.shape, int(record.built_config["hidden_size"]))
    first = ids if stage == 1 else hidden
    if stage == record.stages:
        return (first, ids), torch.zeros(record.microbatch_size)
    return (first,), hidden


def bootstrap(pipe: Connection, arguments: Arguments) -> None:
    dht = arguments.load().DHT(start=True, host_maddrs=[LOOPBACK], startup_timeout=P2PD_S)
    pipe.send({"maddrs": [str(maddr) for maddr in dht.get_visible_maddrs()]})
    pipe.recv()


def server(pipe: Connection, arguments: Arguments) -> None:
    src, shape, name = arguments.load(), arguments.shape, f"stage{arguments.stage}.0.{arguments.number}"
    module = StageModule(arguments.record, arguments.stage)
    dht = src.DHT(start=True, initial_peers=list(arguments.initial_peers), host_maddrs=[LOOPBACK], startup_timeout=P2PD_S)
    inputs, output = examples(arguments.record, arguments.stage)
    describe = src.BatchTensorDescriptor.from_tensor
    backend = src.ExpertBackend(
        name,
        module,
        torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE),
        device=torch.device("cpu"),
        args_schema=tuple(describe(each) for each in inputs),
        outputs_schema=describe(output),
        target_batch_size=shape.per_step * shape.microbatch_size // shape.peers_per_stage,
        max_batch_size=shape.microbatch_size,
    )
    src.Server(dht, {name: backend}, listen_on="127.0.0.1:*", num_connection_handlers=HANDLERS, device="cpu", start=True)
    pipe.send({"online": name})
    pipe.recv()


class Pipeline(nn.Module):
    """The stages as a trainer sees them."""

    def __init__(self, src: Any, arguments: Arguments, dht: Any) -> None:
        super().__init__()
        self.stages = [
            src.BalancedRemoteExpert(
                dht=dht,
                uid_prefix=f"stage{stage}.",
                grid_size=(1, arguments.shape.peers_per_stage),
                forward_timeout=TIMEOUT_S,
                backward_timeout=TIMEOUT_S,
            )
            for stage in range(1, arguments.shape.stages + 1)
        ]

    def forward(self, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
        hidden = tokens_BT
        for stage in self.stages[:-1]:
            hidden = stage(hidden)
        return self.stages[-1](hidden, labels_BT).mean()


def batch(record: RunRecord, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and the ids after them: drawn, which costs a trainer less than reading text does."""
    vocabulary = int(record.built_config["vocab_size"])
    drawn = torch.randint(vocabulary, (record.microbatch_size, record.sequence_length + 1), generator=generator)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


def trainer(pipe: Connection, arguments: Arguments) -> None:
    src, record = arguments.load(), arguments.record
    dht = src.DHT(
        start=True,
        initial_peers=list(arguments.initial_peers),
        host_maddrs=[LOOPBACK],
        startup_timeout=P2PD_S,
        client_mode=True,
    )
    pipeline = Pipeline(src, arguments, dht)
    tokens_BT, labels_BT = batch(record, torch.Generator().manual_seed(1000 + arguments.number))
    whole = build_whole_model(record.built_config, record.seed)
    with torch.no_grad():
        remote = float(pipeline(tokens_BT, labels_BT))
        local = float(loss_of(whole(tokens_BT).logits, labels_BT, LossSpec()))
    pipe.send({"online": f"trainer{arguments.number}", "remote": remote, "local": local})
    pipe.recv()
    saying = threading.Lock()

    def keep_training(number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        while True:
            pipeline(*batch(record, generator)).backward()
            with saying:
                pipe.send({"done": 1})

    for number in range(arguments.shape.in_flight):
        threading.Thread(target=keep_training, args=(number,), daemon=True).start()
    pipe.recv()
