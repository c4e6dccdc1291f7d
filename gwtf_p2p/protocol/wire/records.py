"""What peers publish: the run record and one stage record per peer.

Inside the program these are frozen dataclasses; on the wire they are msgpack maps under 8 KiB with string keys. Readers
ignore keys that they do not know, so a newer peer can add fields; a different `wire_version` is refused by name.
Times in records are durations (an age, a median), never the publisher's wall clock: ages are judged by the receiver.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgpack
from annotated_types import Ge, Le, Len, Lt, MaxLen, MinLen

from gwtf_p2p.protocol.elastic_shares import wrong_in
from gwtf_p2p.protocol.errors import InputError, OtherWireVersion, RemoteProtocolError
from gwtf_p2p.protocol.ids import NOBODY, RunId
from gwtf_p2p.protocol.replica_sync import MOST_EVERY, ReplicaSync
from gwtf_p2p.protocol.replica_sync import wrong_in as wrong_in_sync
from gwtf_p2p.protocol.wire.bounds import (
    Addresses,
    Admins,
    Bytes,
    Costs,
    Count,
    Counts,
    Digest,
    Epoch,
    Figures,
    Flows,
    Index,
    Members,
    Name,
    NoPeer,
    Peer,
    PublicName,
    Rate,
    Release,
    StageNumber,
    Versions,
    WeightsVersion,
)
from gwtf_p2p.protocol.wire.codec import from_plain, to_plain
from gwtf_p2p.protocol.wire.dataset import STDLIB, DatasetSpec, check_dataset
from gwtf_p2p.protocol.wire.ranges import PLAIN_NAME, Matches, check_ranges
from gwtf_p2p.protocol.wire.recipe import BYTE_TOKENIZER, MOST_ITERATIONS
from gwtf_p2p.protocol.wire.recipe import EvaluationSpec as EvaluationSpec
from gwtf_p2p.protocol.wire.recipe import LossSpec as LossSpec
from gwtf_p2p.protocol.wire.recipe import OptimizerSpec as OptimizerSpec
from gwtf_p2p.protocol.wire.run_parts import (
    ATTENTION,
    AttentionImplementation,
    at_ends,
    check_admission,
    data_peers_until,
    floats_of,
)
from gwtf_p2p.protocol.wire.run_parts import Account as Account
from gwtf_p2p.protocol.wire.run_parts import AdapterSpec as AdapterSpec
from gwtf_p2p.protocol.wire.run_parts import Admission as Admission
from gwtf_p2p.protocol.wire.run_parts import BoundarySpec as BoundarySpec
from gwtf_p2p.protocol.wire.run_parts import BoundaryTensor as BoundaryTensor
from gwtf_p2p.protocol.wire.run_parts import Completion as Completion
from gwtf_p2p.protocol.wire.run_parts import Fingerprint as Fingerprint
from gwtf_p2p.protocol.wire.run_parts import LinkMeasurement as LinkMeasurement
from gwtf_p2p.protocol.wire.run_parts import Links as Links
from gwtf_p2p.protocol.wire.run_parts import LinkSource as LinkSource
from gwtf_p2p.protocol.wire.run_parts import PathType as PathType
from gwtf_p2p.protocol.wire.run_parts import PeerState as PeerState
from gwtf_p2p.protocol.wire.run_parts import Timing as Timing
from gwtf_p2p.protocol.wire.run_parts import ToleranceSpec as ToleranceSpec
from gwtf_p2p.protocol.wire.run_parts import WeightsSpec as WeightsSpec
from gwtf_p2p.protocol.wire.run_parts import WireSpec as WireSpec
from gwtf_p2p.protocol.wire.tensor_formats import FLOAT32, TensorFormat, format_of

SCHEMA_VERSION = 1
WIRE_VERSION = 2
"""Raised whenever the bytes of a message or record change so that a peer of the version before would misread them. Peers of
different versions refuse each other's streams and records by this number (`tests/protocol/wire/golden_bytes.txt`)."""

MAX_RECORD_BYTES = 8192
MOST_DATA_PEERS = 4096

SHARES = "microbatches of each data peer in an iteration, by shard, where they are not the same (none: they are)"
_NAMED = ("subspace", "thin_data_peers", "delay_optimizer_step", "replica_sync")
SYNC = "iterations between two averages of a stage's copies, which differ in between (0: gradients are averaged in each)"
RUN_ID = Matches(r"[^_./\\\s][^./\\\s]*", "without dots, slashes or spaces, not beginning with _")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that a joining peer needs besides an initial peer and the run id; signed by the run's owner.

    `layer_split[k - 1]` is the half-open range of decoder layers that stage k holds. `data_peers` is among how many the windows
    of an iteration are dealt, `data_peers_before` what it was earlier: (25, 1) says one before iteration 25. So many data
    peers, and `peers_per_stage` in each stage, must be online before iteration 0 begins.
    `boundary` is what crosses each boundary between parts, microbatch x sequence x hidden if it is empty; with a `subspace` the
    model is parametrised so that this is less (`BoundarySpec`). `owner` is the peer that has signed the record (empty: not
    signed yet).
    """

    run_id: Annotated[RunId, MinLen(1), MaxLen(64), RUN_ID, "names the run on its DHT"]
    model_config: Annotated[Mapping[str, Any], "config of the model, as transformers writes it"]
    layer_split: Annotated[tuple[tuple[int, int], ...], MinLen(1), MaxLen(4096), "layers of each stage, half-open ranges"]
    seed: Annotated[int, Ge(0), Lt(2**63), "draws the initial weights and the order of the data"]
    sequence_length: Annotated[int, Ge(1), Le(2**24), "tokens in a sequence"]
    microbatch_size: Annotated[int, Ge(1), Le(2**20), "sequences in a microbatch"]
    microbatches_per_data_peer: Annotated[int, Ge(1), Le(2**20), "microbatches of one data peer in an iteration"]
    weights: Annotated[WeightsSpec, "pre-trained weights that the run starts from"] = field(default_factory=WeightsSpec)
    weight_hashes: Annotated[tuple[str, ...], MaxLen(4097), "what each part's pre-trained weights hash to"] = ()
    adapters: Annotated[AdapterSpec, "low-rank adapters, if they alone are trained"] = field(default_factory=AdapterSpec)
    dataset: Annotated[str | tuple[DatasetSpec, ...], MinLen(1), "what the run trains on"] = STDLIB
    tokenizer: Annotated[str, MinLen(1), MaxLen(1024), PLAIN_NAME, "byte, or a tokenizer's name or folder"] = BYTE_TOKENIZER
    attention: Annotated[Literal["window", "document"], "what a token may see: the whole window, or its document"] = "window"
    attention_implementation: Annotated[AttentionImplementation, "kernel of attention (auto: the library's choice)"] = "auto"
    recompute: Annotated[bool, "stage peers keep no activations, and compute each forward again for its backward"] = False
    end_token: Annotated[int, Ge(-1), Lt(2**31), "the id that ends a document, where attention goes by documents"] = -1
    data_peers: Annotated[int, Ge(1), Le(MOST_DATA_PEERS), "data peers that share the dataset"] = 1
    data_peers_before: Annotated[tuple[tuple[int, int], ...], MaxLen(256), "up to which iteration there were how many"] = ()
    peers_per_stage: Annotated[int, Ge(1), Le(4096), "peers in each stage that iteration 0 waits for"] = 1
    wire: Annotated[WireSpec, "formats of what is sent"] = field(default_factory=WireSpec)
    router: Annotated[str, MinLen(1), MaxLen(64), "how microbatches find their way"] = "gwtf"
    recovery: Annotated[Literal["exact", "fast"], "what a crash may cost: nothing, or a microbatch"] = "exact"
    optimizer: Annotated[OptimizerSpec, "optimizer and its schedule"] = field(default_factory=OptimizerSpec)
    loss: Annotated[LossSpec, "what is added to the cross entropy"] = field(default_factory=LossSpec)
    evaluation: Annotated[EvaluationSpec, "loss on text that is not trained on"] = field(default_factory=EvaluationSpec)
    total_iterations: Annotated[int, Ge(0), Le(MOST_ITERATIONS), "iterations in all (0: without end)"] = 0
    audit: Annotated[float, Ge(0), Le(1), "share of hops that another peer of the stage does again (0: none)"] = 0.0
    audit_tolerance: Annotated[ToleranceSpec, "what honest results may differ by"] = field(default_factory=ToleranceSpec)
    checkpoint_every: Annotated[int, Ge(1), Le(MOST_ITERATIONS), "iterations between two checkpoints of every peer"] = 10
    keep_checkpoints: Annotated[int, Ge(1), Le(1000), "newest checkpoints that every peer keeps"] = 3
    max_skipped_steps: Annotated[int, Ge(0), Le(1_000_000), "skipped in a row before the run pauses (0: never)"] = 10
    boundary: Annotated[tuple[BoundaryTensor, ...], MaxLen(16), "what crosses each boundary between parts"] = ()
    subspace: Annotated[int, Ge(0), Le(4096), "a token has so many times fewer values there than the model is wide"] = 0
    elastic_shares: Annotated[tuple[Annotated[int, Ge(1), Le(2**20)], ...], MaxLen(MOST_DATA_PEERS), SHARES] = ()
    thin_data_peers: Annotated[bool, "data peers hold no weights: embedding in the first stage, head in the last"] = False
    delay_optimizer_step: Annotated[bool, "the next iteration is computed while one is averaged, with older weights"] = False
    replica_sync: Annotated[int, Ge(0), Le(MOST_EVERY), SYNC] = 0
    fingerprint: Annotated[Fingerprint, "what the model computes where it was started"] = field(default_factory=Fingerprint)
    admission: Annotated[Admission, "who may take part: everybody, whom the owner lists, or whoever has the token"] = "open"
    members: Annotated[Members, "peer ids that may take part in a listed run; `gwtf allow` adds more"] = ()
    admins: Annotated[Admins, "peer ids that may ban and allow peers, as the owner may"] = ()
    owner: NoPeer = NOBODY
    sequence_number: int = 0
    schema_version: int = SCHEMA_VERSION
    wire_version: int = WIRE_VERSION

    @property
    def stages(self) -> int:
        """Number of stage peer stages S."""
        return len(self.layer_split)

    def data_peers_until(self, iteration: int) -> tuple[tuple[int, int], ...]:
        """How many data peers shared the iterations before this one: pairs (iteration, data peers before it), no two alike."""
        return data_peers_until(self.data_peers_before, self.data_peers, iteration)

    def boundary_after(self, part: int) -> tuple[BoundaryTensor, ...]:
        """What crosses the boundary behind a part (0: the data peers', k: stage k's)."""
        ends = at_ends(self.boundary, (self.microbatch_size, self.sequence_length))
        return ends[part > 0] if self.thin_data_peers and part in (0, self.stages) else self.boundary

    def share_of(self, shard: int) -> int:
        """Microbatches in an iteration of the data peer that holds this shard."""
        return self.elastic_shares[shard] if self.elastic_shares else self.microbatches_per_data_peer

    @property
    def largest_share(self) -> int:
        """The most that a data peer has."""
        return max(self.elastic_shares, default=self.microbatches_per_data_peer)

    @property
    def sync(self) -> ReplicaSync:
        """When the copies of a stage are averaged."""
        return ReplicaSync(self.replica_sync, self.total_iterations)

    @property
    def end_bytes(self) -> int | None:
        """The most that crosses to or from thin data peers, whatever the formats; None where they are not thin."""
        sizes = [sum(4 * each.values for each in self.boundary_after(part)) for part in (0, self.stages)]
        return max(sizes) if self.thin_data_peers else None

    @property
    def built_config(self) -> dict[str, Any]:
        """What the model is built from: its config, and how attention is computed."""
        kernel = self.attention_implementation
        return {**self.model_config, **({} if kernel == "auto" else {ATTENTION: kernel})}

    @property
    def model_hash(self) -> str:
        """Names the model, its split, its start and what is trained: peers whose hashes differ cannot train together."""
        named: list[object] = [dict(self.model_config), self.layer_split, self.seed]
        if self.weight_hashes or self.adapters.rank:
            named += [self.weight_hashes, self.adapters.rank, self.adapters.alpha, self.adapters.targets]
        named += [{name: getattr(self, name)} for name in _NAMED if getattr(self, name)]
        canonical = json.dumps(named, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def tokens_per_iteration(self) -> int:
        """Tokens of all data peers' microbatches."""
        return self.data_peers * self.microbatches_per_data_peer * self.microbatch_size * self.sequence_length

    @property
    def boundary_values(self) -> int:
        """Number of values that cross one boundary forwards."""
        hidden = int(self.model_config.get("hidden_size") or self.model_config.get("n_embd") or 0)
        return sum(each.values for each in self.boundary) or self.microbatch_size * self.sequence_length * hidden

    @property
    def activation_bytes(self) -> int:
        """Size of what crosses one boundary in its format. Raises InputError when the format is unknown here."""
        return self._encoded_bytes(self.boundary, format_of(self.wire.activations, "run record", "wire.activations"))

    @property
    def gradient_bytes(self) -> int:
        """Size of the gradient of a boundary activation in its format; integers have none. Raises InputError like
        `activation_bytes`."""
        return self._encoded_bytes(floats_of(self.boundary), format_of(self.wire.gradients, "run record", "wire.gradients"))

    def _encoded_bytes(self, boundary: Sequence[BoundaryTensor], form: TensorFormat) -> int:
        return sum(tensor.encoded_bytes(form) for tensor in boundary) or form.encoded_bytes(self.boundary_values)

    def validate(self, where: str = "run record") -> None:
        """Raises InputError that names the first field that is out of range."""
        check_ranges(self, where)
        check_admission(where, self.admission, self.members, self.admins)
        if any(b <= a for a, b in self.layer_split):
            raise InputError(where, "layer_split", "expected at least one stage, each with at least one layer")
        until = [0, *(iteration for iteration, _ in self.data_peers_before)]
        rises = all(a < b for a, b in itertools.pairwise(until))
        if not rises or any(not 1 <= count <= MOST_DATA_PEERS for _, count in self.data_peers_before):
            expected = "expected pairs [iteration, data peers before it], iterations rising from above 0"
            raise InputError(where, "data_peers_before", f"{expected}, got {[list(pair) for pair in self.data_peers_before]}")
        wrong = wrong_in(self.elastic_shares, self.data_peers, self.microbatches_per_data_peer)
        if wrong:
            raise InputError(where, "elastic_shares", wrong)
        check_dataset(self.dataset, where)
        self.optimizer.validate(where)
        self.adapters.validate(where)
        self.evaluation.validate(where)
        if self.tokenizer == BYTE_TOKENIZER:  # of others nobody knows here how many tokens a text has
            self.evaluation.check_room(where, self.sequence_length)
        if self.adapters.rank and not self.weights.source:
            raise InputError(where, "adapters.rank", "expected weights, too: adapters change a pre-trained model")
        if self.weight_hashes and len(self.weight_hashes) != self.stages + 1:
            raise InputError(where, "weight_hashes", f"expected one for each of {self.stages + 1} parts")

    def check_together(self, where: str = "run record") -> None:
        """What does not go together. An audit knows of one iteration at a time. Where copies are averaged: weights bear no
        rounding, an audit compares what equal copies compute, and what a run may go back to, or end with, is a version at which
        copies are equal. Raises InputError."""
        if self.delay_optimizer_step and self.audit > 0:
            raise InputError(where, "audit", "expected 0 with delay_optimizer_step: audits know of one iteration at a time")
        needs = (
            ("wire.averages", self.wire.averages == FLOAT32.name, "float32"),
            ("optimizer.kind", self.optimizer.kind != "adamw_8bit", "adamw or adafactor"),
            ("audit", self.audit == 0, "0"),
            ("delay_optimizer_step", not self.delay_optimizer_step, "false"),
            ("evaluation.patience", self.evaluation.patience == 0, "0"),
        )
        best_of = self.evaluation.every if self.evaluation.keep_best else 0
        intervals = {"checkpoint_every": self.checkpoint_every, "evaluation.every": best_of}
        wrong = wrong_in_sync(self.replica_sync, needs, intervals)
        if wrong is not None:
            raise InputError(where, *wrong)


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One peer's record under `<run_id>.stage.<k>`; data peers publish theirs under stage 0.

    `capacity` is the most microbatches the peer holds at once, and `occupancy` how many it held when it wrote this: its load,
    as old as the record. What came since is not in it, so a router adds what it has sent there itself (`SpareCapacity` of
    `protocol/routers/spare` does). For a data peer `capacity` is its demand, the microbatches that it keeps in flight, and
    `shard` the part of the dataset that it holds. `kept_bytes` is what it keeps of microbatches until the iteration commits,
    of at most `memory_limit_bytes` (0: no limit), beyond which it is BUSY. `recomputes`: it takes more than `capacity`
    microbatches, and computes those forwards again whose activations it has no room for; `backward` is without
    that. `moves_to` are the stages that it may change to; empty for all. `flows_held` and
    `cost_to_sink_us` are what others need to plan around this peer; the latter and `takeover_us` are what it offers when flows
    are negotiated (`negotiation_offers`). Of a data peer, `forward` is its head and loss, `backward` its embedding, `finish`
    the gradient of its embedding, `flows` the share of the plan by which it goes in `flows_iteration` (`iteration_plan`).
    `maddrs` are its addresses, best first, without its own id; a circuit relay cuts each circuit to it after `circuit_bytes`
    each way or `circuit_s` (0: never). `copied` are versions of its stage that it has a checkpoint of and that a neighbouring
    stage has a copy of (`view/replica_choice`). `completion`: whether it has done the last iteration.
    `release` is the release of this package that it runs, for a word to its users (`view/releases`). `signing_key`: by which
    others know what it signs (`certificates`). `progress` (microbatches, loss, iteration_s) and `route_seconds` are measured
    figures of the run for observers; nobody plans on them. `public_name` is what the peer's user wants to be called, which
    proves nothing.
    `precision` is what it computes in, by which its work is judged (`audit`). `exchanges`: it answers those that exchange
    records with it (`protocol/exchange`). `averages_in_rows`: it can (`averages/rows`). `lacks_moments`: it serves, but nobody
    could have its stage's state from it yet (`commit/progress`). `lost`: whom a data peer holds for lost (`view.said_lost`).
    """

    peer: Peer
    run_id: RunId
    stage: StageNumber
    state: PeerState
    capacity: Index
    occupancy: Index = 0
    forward: Timing | None = None
    backward: Timing | None = None
    finish: Timing | None = None
    weights_version: WeightsVersion = 0
    epoch: Epoch = 0
    path: PathType = PathType.PUBLIC
    maddrs: Addresses = ()
    circuit_bytes: Bytes = 0
    circuit_s: Count = 0
    links: Links = ()
    line_bytes_per_s: Rate = 0.0
    kept_bytes: Bytes = 0
    memory_limit_bytes: Bytes = 0
    recomputes: bool = False
    moves_to: Annotated[tuple[StageNumber, ...], Len(0, 64)] = ()
    flows_held: Counts = field(default_factory=dict)
    flows: Flows = ()
    flows_iteration: WeightsVersion = -1
    spare_flows: Index = 0
    cost_to_sink_us: Costs = field(default_factory=dict)
    takeover_us: Costs = field(default_factory=dict)
    model_hash: Digest = ""
    signing_key: Digest = ""
    shard: WeightsVersion = -1
    precision: Name = "float32"
    copied: Versions = ()
    account: Account | None = None
    completion: Completion = Completion.RUNS
    release: Release = ""
    progress: Figures = field(default_factory=dict)
    route_seconds: Figures = field(default_factory=dict)
    public_name: PublicName = ""
    exchanges: bool = False
    averages_in_rows: bool = False
    lacks_moments: bool = False
    lost: Counts = field(default_factory=dict)
    sequence_number: Count = 0
    schema_version: int = SCHEMA_VERSION
    wire_version: int = WIRE_VERSION

    @property
    def is_routable(self) -> bool:
        return self.state is PeerState.ONLINE

    @property
    def forward_s(self) -> float:
        """Median forward seconds of one microbatch, 0.0 while unmeasured."""
        return self.forward.median_s if self.forward else 0.0

    @property
    def backward_s(self) -> float:
        """Median backward seconds of one microbatch, 0.0 while unmeasured."""
        return self.backward.median_s if self.backward else 0.0


def encode(record: Any) -> bytes:
    """Msgpack of a record. Raises ValueError above 8 KiB: the publisher must send fewer links."""
    packed: bytes = msgpack.packb(to_plain(record))
    if len(packed) > MAX_RECORD_BYTES:
        raise ValueError(f"record of {len(packed)} bytes is over the bound of {MAX_RECORD_BYTES}")
    return packed


def decode_run(data: bytes) -> RunRecord:
    """Raises RemoteProtocolError when the bytes are no run record or one that is out of range, OtherWireVersion when they are
    of another wire version."""
    run = decode(RunRecord, data)
    try:
        run.validate(RunRecord.__name__)
    except InputError as error:  # the owner's mistake, not that of the user who reads it here
        raise RemoteProtocolError(str(error)) from error
    return run


def decode_stage(data: bytes) -> StageRecord:
    """Raises RemoteProtocolError when the bytes are no stage record, OtherWireVersion when of another version."""
    return decode(StageRecord, data)


def decode(kind: type[T], data: bytes) -> T:
    """A record of any kind. Raises RemoteProtocolError, OtherWireVersion."""
    if len(data) > MAX_RECORD_BYTES:
        raise RemoteProtocolError(f"{kind.__name__}: {len(data)} bytes, over the bound of {MAX_RECORD_BYTES}")
    try:
        plain = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"{kind.__name__}: not msgpack ({error})") from error
    if not isinstance(plain, dict):
        raise RemoteProtocolError(f"{kind.__name__}: expected a map, got {type(plain).__name__}")
    if plain.get("wire_version") != WIRE_VERSION:
        raise OtherWireVersion(kind.__name__, WIRE_VERSION, plain.get("wire_version"))
    record: T = from_plain(kind, plain, kind.__name__)
    return record
