"""How large, how many, how long: what a field of a message or a record may hold, as part of its type.

A field says it where it is declared (`iteration: Iteration`), `codec` checks it when a message or a record is read. So every
value that a state machine sees is one that the rest of the program can work with. What is out of bounds is the sender's fault
and costs the whole message; free text is the exception, it is cut.

Types only: nothing here says who may send what (`trust/authorisation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from annotated_types import Interval, Len

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.limits import (
    MOST_ITEMS,
    MOST_ITERATIONS,
    MOST_MICROBATCHES,
    MOST_PEERS,
    MOST_STAGES,
    WHOLE,
    Cut,
    Distinct,
)

Iteration = Annotated[int, Interval(ge=0, le=MOST_ITERATIONS)]
"""An iteration, or a weights version."""

WeightsVersion = Annotated[int, Interval(ge=-1, le=MOST_ITERATIONS)]
"""-1 are weights that belong to no committed iteration."""

Epoch = Annotated[int, Interval(ge=0, le=1 << 20)]
AttemptNumber = Annotated[int, Interval(ge=0, le=1 << 50)]
StageNumber = Annotated[Stage, Interval(ge=0, le=MOST_STAGES + 1)]
"""S + 1 is the data peer's place at the end of the forward pass."""

Index = Annotated[int, Interval(ge=0, le=MOST_MICROBATCHES)]
Count = Annotated[int, Interval(ge=0, le=1 << 40)]
Sum = Annotated[int, Interval(ge=0, le=WHOLE)]
"""Of counts; where it would be more, it stays at that."""

Bytes = Annotated[int, Interval(ge=0, le=1 << 60)]
Seconds = Annotated[float, Interval(ge=0.0, le=1e9)]
Rate = Annotated[float, Interval(ge=0.0, le=1e15)]
"""Bytes per second."""

Number = Annotated[float, Interval(ge=-1e30, le=1e30)]
GradientNorm = Annotated[float, Interval(ge=-1.0, le=1e30)]
"""Norm of a gradient, or its square; -1 for one that is not finite."""

Microseconds = Annotated[int, Interval(ge=-(1 << 60), le=1 << 60)]
Name = Annotated[str, Len(0, 256)]
Text = Annotated[str, Cut(500)]
PublicName = Annotated[str, Cut(40)]
"""Anybody may call itself anything: shown, never gone by, and only its printable characters."""

Digest = Annotated[str, Len(0, 128)]
Release = Annotated[str, Len(0, 32)]
"""Of this package, as its user installed it."""

Signature = Annotated[str, Len(0, 1024)]
"""A signature in base64, or a public key in OpenSSH's form."""


ShortSignature = Annotated[str, Len(0, 128)]
Signatures = Annotated[tuple[ShortSignature, ...], Len(0, MOST_PEERS)]

Peer = Annotated[PeerId, Len(1, 128)]
NoPeer = Annotated[PeerId, Len(0, 128)]
"""Empty where a place in a list has nobody."""

MOST_ADMINS, MOST_MEMBERS = 8, 64
Admins = Annotated[tuple[Peer, ...], Len(0, MOST_ADMINS), Distinct()]
Members = Annotated[tuple[Peer, ...], Len(0, MOST_MEMBERS), Distinct()]
Peers = Annotated[tuple[Peer, ...], Len(0, MOST_PEERS), Distinct()]
Route = Annotated[tuple[Peer, ...], Len(0, MOST_STAGES)]
Credited = Annotated[tuple[NoPeer, ...], Len(0, MOST_STAGES)]
Microbatches = Annotated[tuple[MicrobatchId, ...], Len(0, MOST_MICROBATCHES), Distinct()]
Stages = Annotated[tuple[StageNumber, ...], Len(0, MOST_STAGES), Distinct()]
Versions = Annotated[tuple[Iteration, ...], Len(0, MOST_ITEMS)]
EpochStarts = Annotated[tuple[WeightsVersion, ...], Len(0, MOST_ITEMS)]
AttemptOf = Annotated[tuple[Annotated[int, Interval(ge=0, le=1 << 62)], ...], Len(1, MOST_STAGES + 2)]
"""See `messages`: never empty."""

Addresses = Annotated[tuple[Annotated[str, Len(1, 300)], ...], Len(0, 32)]
Flows = Annotated[tuple[Name, ...], Len(0, MOST_MICROBATCHES)]
RouteName = Annotated[str, Len(0, 2048)]
Counts = Annotated[Mapping[Name, Count], Len(0, MOST_PEERS)]
Costs = Annotated[Mapping[Annotated[str, Len(1, 128)], Microseconds], Len(0, MOST_PEERS)]
PeerCosts = Annotated[Mapping[Peer, Microseconds], Len(0, MOST_PEERS)]
Figures = Annotated[Mapping[RouteName, Number], Len(0, 64)]
