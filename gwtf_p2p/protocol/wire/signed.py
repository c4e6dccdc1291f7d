"""Records that others pass on: their bytes, with the key and the signature of the peer that stands by them.

A DHT record is signed by whoever publishes it. What must be the word of one peer, and outlive it, carries its own signature, so
that anybody may publish it. What it says is believed as that peer's word, whoever brought it (`live/discovery/signing` checks).

Besides the run record these are the orders: what a run's owner and its admins say about who may take part, one record of each
of them, which replaces the one before. At the end, a run's line in
the list of runs, and the keys under which the DHT has its records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, Len, MaxLen, MinLen

from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import NOBODY, PeerId, RunId, Stage
from gwtf_p2p.protocol.limits import Distinct
from gwtf_p2p.protocol.wire.bounds import Admins, Count, Members, NoPeer, Peer
from gwtf_p2p.protocol.wire.receipts import MOST_PAGES, contributions_key
from gwtf_p2p.protocol.wire.recipe import MOST_ITERATIONS
from gwtf_p2p.protocol.wire.records import MAX_RECORD_BYTES, RUN_ID, WIRE_VERSION, RunRecord, decode, encode
from gwtf_p2p.protocol.wire.run_parts import Admission

ENVELOPE_BYTES = 900
"""Most that key, signature and names take beside the bytes that are signed, and sealing beside them, with RSA of 2048 bits."""
MOST_SIGNED_BYTES = MAX_RECORD_BYTES - ENVELOPE_BYTES


@dataclass(frozen=True, slots=True)
class Signed:
    """`body` is the msgpack of a record, `key` the signer's public key as OpenSSH writes it, `signature` RSA-PSS over both the
    kind of record and the body."""

    body: Annotated[bytes, Len(1, MAX_RECORD_BYTES)]
    key: Annotated[bytes, Len(1, 1024)]
    signature: Annotated[bytes, Len(1, 1024)]
    wire_version: int = WIRE_VERSION


def check_size(record: object) -> bytes:
    """The bytes of a record that is to be signed. Raises ValueError when they are too many."""
    body = encode(record)
    if len(body) > MOST_SIGNED_BYTES:
        raise ValueError(f"record of {len(body)} bytes is over the bound of {MOST_SIGNED_BYTES}")
    return body


def decode_signed(data: bytes) -> Signed:
    """Not checked yet: see the module. Raises RemoteProtocolError, OtherWireVersion."""
    return decode(Signed, data)


ORDER = "order"
"""The kind of record that its issuer has signed (`live/discovery/signing`)."""

MOST_ORDERED = 64
"""Peers that one record bans, and as many that it allows: what fits into a record beside its signature."""

NO_RUN = RunId("")

Ordered = Annotated[tuple[Peer, ...], Len(0, MOST_ORDERED), Distinct()]


@dataclass(frozen=True, slots=True)
class Order:
    """`issuer` is who has signed it. Of several of one issuer the one with the highest `sequence_number` counts."""

    run_id: RunId
    issuer: Peer
    sequence_number: Count
    banned: Ordered = ()
    allowed: Ordered = ()
    wire_version: int = WIRE_VERSION


@dataclass(frozen=True, slots=True)
class EntryTerms:
    """What the run record says about who may take part."""

    run_id: RunId = NO_RUN
    owner: NoPeer = NOBODY
    admins: Admins = ()
    admission: Admission = "open"
    members: Members = ()

    @property
    def issuers(self) -> tuple[PeerId, ...]:
        """Those whose orders count, the owner first."""
        return tuple(dict.fromkeys(peer for peer in (self.owner, *self.admins) if peer))


def terms_of(run: RunRecord) -> EntryTerms:
    """Of this run."""
    return EntryTerms(run.run_id, run.owner, run.admins, run.admission, run.members)


def decode_order(data: bytes, signer: PeerId) -> Order:
    """Raises RemoteProtocolError for what is no order, or names another issuer than its signer; OtherWireVersion."""
    order = decode(Order, data)
    if order.issuer != signer:
        raise RemoteProtocolError(f"Order: names the issuer {order.issuer}, signed by {signer}")
    return order


RUNS_KEY = "_gwtf.runs"
"""Where the DHT has the list of its runs. No run's own keys begin like this."""


@dataclass(frozen=True, slots=True)
class RunNotice:
    """One line of the list of runs that a DHT has: what a newcomer chooses by. Every data peer publishes its run's."""

    run_id: Annotated[RunId, MinLen(1), MaxLen(64), RUN_ID]
    model: Annotated[str, MaxLen(64)]
    stages: Annotated[int, Ge(1), Le(4096)]
    total_iterations: Annotated[int, Ge(0), Le(MOST_ITERATIONS)] = 0
    admission: Admission = "open"
    wire_version: int = WIRE_VERSION


def notice_of(run: RunRecord) -> RunNotice:
    """The run's line in the list of runs, which anybody can read."""
    model = "?" if run.admission == "secret" else str(run.model_config.get("model_type", "?"))[:64]
    return RunNotice(run.run_id, model, run.stages, run.total_iterations, run.admission)


def decode_notice(data: bytes) -> RunNotice:
    """Raises RemoteProtocolError when the bytes are no line of that list, OtherWireVersion when of another version."""
    return decode(RunNotice, data)


MAX_STAGES = 128
"""Most stages of a run: for so many the keys of a run are known before its record is."""


def run_key(run_id: RunId) -> str:
    """Where the DHT has the run record."""
    return f"{run_id}.run"


def stage_key(run_id: RunId, stage: Stage) -> str:
    """Where the DHT has the records of a stage's peers; data peers are under stage 0."""
    return f"{run_id}.stage.{stage}"


def keys_of_run(run_id: RunId) -> list[str]:
    """Every key under which peers of the run publish."""
    stages = [stage_key(run_id, Stage(k)) for k in range(MAX_STAGES + 1)]
    return [run_key(run_id), *stages, *(contributions_key(run_id, page) for page in range(MOST_PAGES))]


def orders_key(run_id: RunId, issuer: PeerId) -> str:
    """Where the DHT has the orders of one issuer, under the subkeys of all that pass them on."""
    return f"{run_id}.orders.{issuer}"
