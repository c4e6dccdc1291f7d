"""The bytes of one message of every kind and one record of every kind, kept in `golden_bytes.txt`.

After a change that is meant: raise `WIRE_VERSION` in `gwtf_p2p/protocol/wire/records.py`, and write the file anew with

    python -m tests.protocol.wire.golden

which refuses to change bytes under a version that has been written already.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import count
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack

from gwtf_p2p.protocol.exchange.stated import Stated, decode_stated
from gwtf_p2p.protocol.ids import PeerId, RunId
from gwtf_p2p.protocol.wire.codec import to_plain
from gwtf_p2p.protocol.wire.contribution_record import ContributionRecord, decode_contributions
from gwtf_p2p.protocol.wire.dataset import DatasetSpec
from gwtf_p2p.protocol.wire.messages import ControlMessage, TensorMessage, Verdict, from_header, to_header
from gwtf_p2p.protocol.wire.records import (
    SCHEMA_VERSION,
    WIRE_VERSION,
    AdapterSpec,
    BoundaryTensor,
    EvaluationSpec,
    Fingerprint,
    LossSpec,
    OptimizerSpec,
    RunRecord,
    StageRecord,
    ToleranceSpec,
    WeightsSpec,
    WireSpec,
    decode_run,
    decode_stage,
    encode,
)
from gwtf_p2p.protocol.wire.signed import Order, RunNotice, Signed, decode_notice, decode_order, decode_signed

FILE = Path(__file__).with_name("golden_bytes.txt")
MESSAGES: tuple[type[Any], ...] = (*get_args(TensorMessage), *get_args(ControlMessage))
RECORDS: tuple[type[Any], ...] = (RunRecord, StageRecord, RunNotice, ContributionRecord, Signed, Order, Stated)
DECODERS: dict[str, Any] = {
    "RunRecord": decode_run,
    "StageRecord": decode_stage,
    "RunNotice": decode_notice,
    "ContributionRecord": decode_contributions,
    "Signed": decode_signed,
    "Stated": decode_stated,
    "Order": lambda data: decode_order(data, sample(Order).issuer),
}
VERSION = "WIRE_VERSION"


_RUN = RunRecord(
    RunId("run"),
    {"model_type": "llama", "hidden_size": 64},
    ((0, 2), (2, 4)),
    seed=1,
    sequence_length=2,
    microbatch_size=3,
    microbatches_per_data_peer=4,
    dataset=(DatasetSpec("owner/name", "config", "split", ("*.parquet",), "column", weight=0.5, bos=True, streaming=True),),
    tokenizer="owner/tokenizer",
    attention="document",
    attention_implementation="eager",
    recompute=True,
    end_token=2,
    data_peers=5,
    data_peers_before=((6, 1),),
    peers_per_stage=7,
    wire=WireSpec("bfloat16", "int8", "bfloat16", 17),
    router="swarm",
    recovery="fast",
    audit=0.125,
    audit_tolerance=ToleranceSpec(0.25, 0.375, 0.5, 0.625),
    optimizer=OptimizerSpec("adafactor", 0.1, 0.2, 0.3, 0.4, 0.5, ("*norm*",), "wsd", 0.05, 8, 7000, 90, 20, 0.6),
    loss=LossSpec(0.7, 0.8),
    evaluation=EvaluationSpec(13, 14, 0.25, prompts=("prompt",), text_tokens=15, patience=16, keep_best=True),
    weights=WeightsSpec("owner/model", "commit"),
    weight_hashes=("hash0", "hash1", "hash2"),
    adapters=AdapterSpec(12, 13.5, ("q_proj",)),
    total_iterations=10,
    checkpoint_every=12,
    keep_checkpoints=13,
    max_skipped_steps=14,
    boundary=(BoundaryTensor("hidden", (3, 2, 64)), BoundaryTensor("ids", (3, 2), is_integer=True)),
    subspace=16,
    elastic_shares=(3, 5, 4, 4, 4),
    thin_data_peers=True,
    delay_optimizer_step=True,
    replica_sync=8,
    fingerprint=Fingerprint((0.7, 0.8), {"torch": "version"}),
    admission="listed",
    members=(PeerId("Qm" + "a" * 44),),
    admins=(PeerId("Qm" + "b" * 44),),
    owner=PeerId("owner"),
    sequence_number=11,
    schema_version=SCHEMA_VERSION,
)
_STATED = Stated(b"record", 1.5, 2.5, b"an anchor's hash")
"""The fields of these must fit together, so they are not made of their annotations."""


def sample(kind: Any) -> Any:
    """One object of this type, every field filled with a value of its own; equal at every call."""
    return {RunRecord: _RUN, Stated: _STATED}.get(kind) or _fill(kind, "it", count(1))


def _fill(kind: Any, name: str, numbers: count[int]) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fill(args[0], name, numbers)
    if origin is Literal:
        return args[-1]
    if origin in (Union, UnionType):
        return _fill(next(a for a in args if a is not NoneType), name, numbers)
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind, include_extras=True)
        names = [f.name for f in fields(kind)]
        return kind(**{n: WIRE_VERSION if n == "wire_version" else _fill(hints[n], n, numbers) for n in names})
    if origin is tuple:
        return tuple(_fill(a, name, numbers) for a in (args[:1] * 2 if args[-1] is Ellipsis else args))
    if origin is not None and issubclass(origin, Mapping):
        return {f"{name}_{n}": _fill(args[1], name, numbers) for n in "ab"}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind)[next(numbers) % len(kind)]
    plain = getattr(kind, "__supertype__", kind)
    number = next(numbers)
    values: dict[Any, Any] = {
        str: f"{name}{number}",
        bytes: b"bytes",
        int: number,
        float: number + 0.5,
        bool: True,
        Any: f"any{number}",
    }
    return values[plain]


def lines() -> dict[str, str]:
    """Hex of the bytes as they travel, by kind. A verdict travels as its name."""
    found = {kind.__name__: msgpack.packb(to_header(sample(kind))).hex() for kind in MESSAGES}
    found |= {kind.__name__: encode(sample(kind)).hex() for kind in RECORDS}
    found["Verdict"] = msgpack.packb([to_plain(verdict) for verdict in Verdict]).hex()
    return dict(sorted(found.items()))


def read_back(name: str, data: bytes) -> Any:
    """What a peer makes of the bytes. Raises RemoteProtocolError."""
    if name in DECODERS:
        return DECODERS[name](data)
    plain = msgpack.unpackb(data)
    return [Verdict(value) for value in plain] if name == "Verdict" else from_header(plain)


def written() -> dict[str, str]:
    """What the file says, `WIRE_VERSION` included."""
    return dict(line.split() for line in FILE.read_text().splitlines() if line and not line.startswith("#"))


def write() -> str:
    """Writes the file anew; returns what is wrong if that must not be."""
    former = written() if FILE.exists() else {}
    now = lines()
    changed = sorted(name for name in former.keys() & now.keys() if former[name] != now[name])
    changed += sorted(former.keys() - now.keys() - {VERSION})
    if changed and int(former[VERSION]) >= WIRE_VERSION:
        return f"raise WIRE_VERSION above {former[VERSION]} first: the bytes of {', '.join(changed)} have changed"
    head = "# Bytes of one message or record of each kind; written by `python -m tests.protocol.wire.golden`.\n"
    FILE.write_text(head + f"{VERSION} {WIRE_VERSION}\n" + "".join(f"{name} {data}\n" for name, data in now.items()))
    return ""


if __name__ == "__main__":
    sys.exit(write() or None)
