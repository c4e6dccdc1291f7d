"""Statements as tests make them: signed by nobody."""

from __future__ import annotations

from gwtf_p2p.protocol.exchange.alive import sign_of_life
from gwtf_p2p.protocol.exchange.stated import Mark, Stated, short
from gwtf_p2p.protocol.exchange.table import Statement
from gwtf_p2p.protocol.ids import PeerId, RunId, Stage
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord, encode

NOW = 1000.0
SECRET = b"0123456789abcdef"


def peer(number: int) -> PeerId:
    return PeerId(f"Qm{number:044d}")


def record(number: int, sequence_number: int = 1, stage: int = 1, capacity: int = 4) -> StageRecord:
    state = PeerState.ONLINE
    return StageRecord(peer(number), RunId("r"), Stage(stage), state, capacity, sequence_number=sequence_number, exchanges=True)


def statement(of: StageRecord, expires_at: float = NOW + 30, step_s: float = 10.0) -> Statement:
    packed = encode(of)
    return Statement(b"signed " + packed, Stated(packed, expires_at, step_s, sign_of_life(SECRET, 0)), of)


def life(number: int, index: int, sequence_number: int = 1) -> Mark:
    return Mark(short(peer(number)), sequence_number, index, sign_of_life(SECRET, index))
