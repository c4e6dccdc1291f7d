"""Parts of a run record (what travels between peers, what the model computes where the run was started, who may take part), and
of a stage record (a peer's state, how it is reached, what it has measured and computed)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, MaxLen, MinLen

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import PEER_ID, PeerId
from gwtf_p2p.protocol.wire.bounds import Bytes, Count, Counts, Peer, Rate, Seconds
from gwtf_p2p.protocol.wire.ranges import PLAIN_NAME
from gwtf_p2p.protocol.wire.tensor_formats import AVERAGES, TensorFormat, format_of


@dataclass(frozen=True, slots=True)
class WireSpec:
    """The formats in which a run's tensors travel, by name (`tensor_formats`); every peer of the run writes and reads them.

    `activations` go forwards, `gradients` back. A tensor is kept in the bytes in which it came or goes, so what is sent again
    or redone has the same bytes, and `recovery = "exact"` redoes an iteration as the undisturbed run with the same formats does
    it, but for the order in which gradients are added up, which depends on who computed what. That is the last bit of float32;
    formats that round can make a step of the format out of it in later iterations (tiny model, int8: weights 2e-7 apart after
    the iteration itself, 4e-5 after the next one, 1e-3 after five more; float32: 1e-5).
    `averages` are the parts of a stage's gradient. With int8 there each peer adds what rounding took from its last share to
    its next one (error feedback); that residual is the peer's own, is lost with it, and rounding depends on who averages with
    whom: all members still end with the same bits, but after a loss not with those of a run without one.
    With powersgd matrices are averaged as products of two thin ones of this `rank`; what a product leaves over is such a
    residual, too.
    """

    activations: Annotated[str, MinLen(1), MaxLen(64), "format of activations between stages"] = "float32"
    gradients: Annotated[str, MinLen(1), MaxLen(64), "format of gradients between stages"] = "float32"
    averages: Annotated[str, MinLen(1), MaxLen(64), "format of the parts of an average"] = "float32"
    rank: Annotated[int, Ge(1), Le(1024), "columns of the thin matrices, where averages are powersgd"] = 32

    @staticmethod
    def named(name: str, averages: str) -> WireSpec:
        """Both directions in one format; with int4 gradients go as int8, as they bear less."""
        return WireSpec(name, "int8" if name == "int4" else name, averages)

    def validate(self, where: str) -> None:
        """Raises InputError that names the first field that is no format."""
        for name in ("activations", "gradients"):
            format_of(getattr(self, name), where, f"wire.{name}")
        if self.averages not in AVERAGES:
            expected = f"expected one of {', '.join(AVERAGES)}, got {self.averages!r:.40}"
            raise InputError(where, "wire.averages", expected)


@dataclass(frozen=True, slots=True)
class ToleranceSpec:
    """By how much the results of two honest peers of a stage may differ: norm of the difference as a share of what the stage
    changes, of outputs and of gradients. The bfloat16 ones hold where either peer computes in it.

    The defaults are far above what CPUs of one kind differ by (`experiments.audits.tolerance`); kinds of devices were never
    compared.
    """

    float32: Annotated[float, Gt(0), Le(1), "outputs of two peers that compute in float32"] = 1e-3
    float32_gradients: Annotated[float, Gt(0), Le(1), "their gradients"] = 1e-3
    bfloat16: Annotated[float, Gt(0), Le(1), "outputs where one of two peers computes in bfloat16"] = 7.5e-2
    bfloat16_gradients: Annotated[float, Gt(0), Le(1), "gradients where one of two peers computes in bfloat16"] = 7.5e-2


@dataclass(frozen=True, slots=True)
class AuditTerms:
    """What a peer goes by when work is done again: the run's share of hops and its tolerance, and what this peer computes
    in."""

    share: float = 0.0
    tolerance: ToleranceSpec = field(default_factory=ToleranceSpec)
    precision: str = "float32"


@dataclass(frozen=True, slots=True)
class BoundaryTensor:
    """One of the tensors that cross every boundary between parts of the model, forward, and as its gradient backward.

    Values are floats in the run's formats or, with `is_integer` (token ids; they have no gradient, and nothing of them comes
    back), 32-bit integers. With `is_exact` they are float32 whatever the run's formats are.
    """

    name: str
    shape: tuple[int, ...]
    is_integer: bool = False
    is_exact: bool = False

    @property
    def values(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    def encoded_bytes(self, form: TensorFormat) -> int:
        """Size on the wire, in bytes, where floats travel in this format."""
        return 4 * self.values if self.is_integer or self.is_exact else form.encoded_bytes(self.values)


def floats_of(boundary: Sequence[BoundaryTensor]) -> tuple[BoundaryTensor, ...]:
    """Those that have a gradient, which are all that comes back over a boundary."""
    return tuple(each for each in boundary if not each.is_integer)


HIDDEN, COEFFICIENTS = "hidden_state", "coefficients"
TOKENS, LABELS, POSITIONS, LOSS = "tokens", "labels", "positions", "loss"
"""Names of boundary tensors. Token ids cross where parts need them, labels where the last stage has the loss. Where `positions`
begin again within a row another document begins, which the library masks; data peers alone know it, so they travel last."""

LOSS_VALUES = 3
"""The loss with all that the run adds, whose gradient comes back; the sum of the plain cross entropy; of how many tokens."""

LOSS_GRADIENT = (1.0, 0.0, 0.0)
"""That of the loss by itself: a thin data peer that sends another one scales what all stages learn from its microbatches."""


def at_ends(between: Sequence[BoundaryTensor], batch: tuple[int, int]) -> tuple[tuple[BoundaryTensor, ...], ...]:
    """(What goes out from a thin data peer, what comes back to it), where the others' boundaries are `between`."""
    last = tuple(each for each in between if each.name == POSITIONS)
    out = (BoundaryTensor(TOKENS, batch, is_integer=True), BoundaryTensor(LABELS, batch, is_integer=True), *last)
    return out, (BoundaryTensor(LOSS, (LOSS_VALUES,), is_exact=True),)


@dataclass(frozen=True, slots=True)
class BoundarySpec:
    """What a run file says of the boundaries between parts. With a subspace the model is parametrised so that a token has so
    many times fewer values there than it is wide (`training/model/subspace`); its id travels with them."""

    subspace: Annotated[int, Ge(0), Le(4096), "a token has so many times fewer values there than the model is wide"] = 0

    def validate(self, where: str, weights: WeightsSpec) -> None:
        """Raises InputError: no subspace at all, or one for pre-trained weights."""
        if self.subspace == 1:
            raise InputError(where, "boundary.subspace", "expected 0 or at least 2: how many times fewer values cross")
        if self.subspace and weights.source:
            why = "pre-trained weights write to all dimensions of the residual stream, and no subspace holds that"
            raise InputError(where, "boundary.subspace", f"expected a run from scratch: {why}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the publisher's installation computes for a small copy of the run's model (`training/model/preflight`).

    `numbers` are a loss, and norms and projections of gradients and of tables; another installation has to come near them.
    `versions` maps the libraries that decide it to their releases.
    """

    numbers: tuple[float, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WeightsSpec:
    """The pre-trained model that a run starts from; without a source the initial weights are drawn from the run's seed.

    The files are safetensors. Each peer reads its own part's tensors alone and compares them with the run's `weight_hashes`.
    """

    source: Annotated[str, MaxLen(1024), PLAIN_NAME, "folder or hub id of the model whose weights the run starts from"] = ""
    revision: Annotated[str, MaxLen(64), PLAIN_NAME, "commit of the hub's repository (default: the newest at the start)"] = ""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Low-rank adapters (LoRA, arXiv 2106.09685): they alone are trained, averaged, checkpointed and downloaded.

    `targets` are names of linear layers or embeddings, as `peft` takes them: the end of a module's name.
    """

    rank: Annotated[int, Ge(0), Le(4096), "rank of the adapters (0: none, all weights are trained)"] = 0
    alpha: Annotated[float, Gt(0), Le(1e6), "adapters count alpha / rank times"] = 16.0
    targets: Annotated[tuple[str, ...], MaxLen(64), "modules that get an adapter, by the end of their names"] = ()

    def validate(self, where: str) -> None:
        """Raises InputError: a rank without modules, or modules without a rank."""
        if self.rank and not (self.targets and all(self.targets)):
            raise InputError(where, "adapters.targets", 'expected names of modules, like ["q_proj", "v_proj"], got none')
        if self.targets and not self.rank:
            raise InputError(where, "adapters.rank", "expected a whole number above 0, or no targets")


ATTENTION = "attn_implementation"
"""How a config that a model is built from names the kernel of attention."""

AttentionImplementation = Literal["auto", "eager", "sdpa"]
"""Of `transformers`: matrix by matrix, or torch's one kernel; auto is the second where a family has it."""

Admission = Literal["open", "listed", "secret"]
"""Who may take part in a run."""


def check_admission(where: str, admission: Admission, members: Sequence[PeerId], admins: Sequence[PeerId]) -> None:
    """Raises InputError for what is no peer id, and for members of a run that lists none."""
    for name, peers in (("members", members), ("admins", admins)):
        if len(set(peers)) < len(peers) or any(re.fullmatch(PEER_ID, peer) is None for peer in peers):
            raise InputError(where, name, "expected peer ids, as `gwtf id` prints them, each once")
    if members and admission != "listed":
        raise InputError(where, "members", f'expected admission = "listed" with it, got {admission!r}')


class PeerState(Enum):
    """Life of a peer in a stage. Only ONLINE peers are routed to; ASKING ones take no part, and ask for forwards alone."""

    JOINING = "JOINING"
    SYNCING = "SYNCING"
    ONLINE = "ONLINE"
    DRAINING = "DRAINING"
    ASKING = "ASKING"


class PathType(Enum):
    """How others reach a peer."""

    PUBLIC = "public"
    PUNCHED = "punched"
    RELAYED = "relayed"


class Completion(Enum):
    """How far a run is, as a peer tells: the peer has more to do; it has done, and keeps, the last iteration; so has every
    stage."""

    RUNS = "runs"
    HERE = "here"
    EVERYWHERE = "everywhere"


class LinkSource(Enum):
    """Where a link figure comes from. A guess is never published as a measurement."""

    TRAFFIC = "traffic"
    PROBE = "probe"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Timing:
    """A measured duration: median over `count` samples, the newest `age_s` old when it was published."""

    median_s: Seconds
    count: Count
    age_s: Seconds


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """One directed link as its sender measured it."""

    to: Peer
    round_trip_s: Seconds
    bandwidth_bytes_per_s: Rate
    source: LinkSource
    samples: Count
    age_s: Seconds
    path: PathType = PathType.PUBLIC


Links = Annotated[tuple[LinkMeasurement, ...], Len(0, 64)]


@dataclass(frozen=True, slots=True)
class Account:
    """What a peer has computed since its start, and what crashes of others cost it.

    `useful_s` of `computed_s` went into committed gradients, or may still. `recoveries` by kind; `recovery` is how long a
    microbatch stood still, from when a lost peer was missed to when another one had it.
    """

    computed_s: Seconds = 0.0
    useful_s: Seconds = 0.0
    recoveries: Counts = field(default_factory=dict)
    recovery: Timing | None = None
    resent_bytes: Bytes = 0


def data_peers_until(before: Sequence[tuple[int, int]], now: int, iteration: int) -> tuple[tuple[int, int], ...]:
    """Of a run that has `now` data peers, and earlier what `before` says (`RunRecord.data_peers_until`)."""
    known = [*before, (max(iteration, *(until for until, _ in before), 0), now)]
    found: list[tuple[int, int]] = []
    for until, data_peers in known:
        until = min(until, iteration)
        if found and found[-1][1] == data_peers:
            found[-1] = (until, data_peers)
        elif until > (found[-1][0] if found else 0):
            found.append((until, data_peers))
    return tuple(found)
