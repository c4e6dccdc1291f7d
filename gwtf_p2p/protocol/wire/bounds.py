"""How large, how many, how long: what a field of a message or a record may hold, as part of its type.

A field says it where it is declared (`iteration: Iteration`), `codec` checks it when a message or a record is read. So every
value that a state machine sees is one that the rest of the program can work with. What is out of bounds is the sender's fault
and costs the whole message; free text is the exception, it is cut.

Types only: nothing here says who may send what (`peer/authorisation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, Stage
from gwtf_p2p.protocol.limits import (
    MOST_ITEMS,
    MOST_ITERATIONS,
    MOST_MICROBATCHES,
    MOST_PEERS,
    MOST_STAGES,
    Cut,
    Items,
    Length,
    Within,
)

Iteration = Annotated[int, Within(0, MOST_ITERATIONS)]
"""An iteration, or a weights version."""

WeightsVersion = Annotated[int, Within(-1, MOST_ITERATIONS)]
"""-1 are weights that belong to no committed iteration."""

Epoch = Annotated[int, Within(0, 1 << 20)]
AttemptNumber = Annotated[int, Within(0, 1 << 50)]
StageNumber = Annotated[Stage, Within(0, MOST_STAGES + 1)]
"""S + 1 is the data peer's place at the end of the forward pass."""

Index = Annotated[int, Within(0, MOST_MICROBATCHES)]
Count = Annotated[int, Within(0, 1 << 40)]
Bytes = Annotated[int, Within(0, 1 << 60)]
Seconds = Annotated[float, Within(0.0, 1e9)]
Rate = Annotated[float, Within(0.0, 1e15)]
"""Bytes per second."""

Number = Annotated[float, Within(-1e30, 1e30)]
Microseconds = Annotated[int, Within(-(1 << 60), 1 << 60)]
Name = Annotated[str, Length(0, 256)]
Text = Annotated[str, Cut(500)]
Digest = Annotated[str, Length(0, 128)]

Peer = Annotated[PeerId, Length(1, 128)]
NoPeer = Annotated[PeerId, Length(0, 128)]
"""Empty where a place in a list has nobody."""

Peers = Annotated[tuple[Peer, ...], Items(0, MOST_PEERS, distinct=True)]
Route = Annotated[tuple[Peer, ...], Items(0, MOST_STAGES)]
Credited = Annotated[tuple[NoPeer, ...], Items(0, MOST_STAGES)]
Microbatches = Annotated[tuple[MicrobatchId, ...], Items(0, MOST_MICROBATCHES, distinct=True)]
Versions = Annotated[tuple[Iteration, ...], Items(0, MOST_ITEMS)]
EpochStarts = Annotated[tuple[WeightsVersion, ...], Items(0, MOST_ITEMS)]
AttemptOf = Annotated[tuple[Annotated[int, Within(0, 1 << 62)], ...], Items(1, MOST_STAGES + 2)]
"""See `messages`: never empty."""

Addresses = Annotated[tuple[Annotated[str, Length(1, 300)], ...], Items(0, 32)]
Flows = Annotated[tuple[Name, ...], Items(0, MOST_MICROBATCHES)]
RouteName = Annotated[str, Length(0, 2048)]
Counts = Annotated[Mapping[Name, Count], Items(0, MOST_PEERS)]
Costs = Annotated[Mapping[Annotated[str, Length(1, 128)], Microseconds], Items(0, MOST_PEERS)]
PeerCosts = Annotated[Mapping[Peer, Microseconds], Items(0, MOST_PEERS)]
Figures = Annotated[Mapping[RouteName, Number], Items(0, 64)]
