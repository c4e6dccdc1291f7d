"""What an outsider does that is no message: silent streams, frames that stay half, bombs, floods, records of nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hivemind.utils.timed_storage import get_dht_time

from gwtf_p2p.live.discovery.dht import Dht
from gwtf_p2p.live.discovery.dht_validation import make_validator
from gwtf_p2p.live.discovery.run_trust import ANYBODY
from gwtf_p2p.live.discovery.signing import own
from gwtf_p2p.live.libp2p.daemon import Daemon
from gwtf_p2p.live.libp2p.dialling import StreamRefused
from gwtf_p2p.live.libp2p.identity import Identity, create_identity
from gwtf_p2p.live.rpc.api import RpcFailed
from gwtf_p2p.live.rpc.frames import FRAME_HEADER, MAX_CONTROL_BYTES, Frame, FrameStream
from gwtf_p2p.live.rpc.greeting import Purpose, open_frames, protocol_name
from gwtf_p2p.live.rpc.rpc import Rpc
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.ids import PeerId, Stage
from gwtf_p2p.protocol.wire.messages import Inquire, to_header
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord, encode
from gwtf_p2p.protocol.wire.signed import run_key, stage_key

STREAMS, CALLS, GHOSTS = 40, 200, 24
"""For each peer and round; ghosts are made once."""

CALL_S, OPEN_S, LIFETIME_S = 1.0, 4.0, 45.0


@dataclass
class Place:
    """Where an outsider stands: joined, with an identity of its own, in a folder."""

    identity: Identity
    daemon: Daemon
    dht: Dht
    rpc: Rpc
    folder: Path
    kept: list[FrameStream] = field(default_factory=list)
    ghosts: list[Identity] = field(default_factory=list)

    def on_frame(self, kind: Frame, body: bytes) -> None:
        """Whatever is answered."""

    def on_lost(self, reason: str) -> None:
        """As it should be."""

    async def opened(self, to: StageRecord, purpose: Purpose = Purpose.TRANSFER) -> FrameStream | None:
        """None when it is refused."""
        try:
            async with asyncio.timeout(OPEN_S):
                name = protocol_name(to.run_id)
                frames, _ = await open_frames(self.daemon.control_path, to.peer, name, purpose, self)
        except (StreamRefused, OSError, TimeoutError):
            return None
        return frames

    async def frames(self, to: StageRecord, data: bytes, purpose: Purpose = Purpose.TRANSFER) -> int:
        """So many streams to a peer, each with these bytes, kept open; returns how many were tried."""
        for opened in await asyncio.gather(*(self.opened(to, purpose) for _ in range(STREAMS))):
            if opened is not None:
                opened._transport.write(data)
                self.kept.append(opened)
        return STREAMS


Act = Callable[[Place, Sequence[StageRecord]], Awaitable[int]]
"""One round; returns how many things it did."""


async def silent_streams(place: Place, records: Sequence[StageRecord]) -> int:
    """Streams on which nothing is ever said, and watches."""
    done = sum([await place.frames(record, b"") for record in records])
    return done + sum([await place.frames(record, b"", Purpose.WATCH) for record in records])


async def half_frames(place: Place, records: Sequence[StageRecord]) -> int:
    """Each takes a megabyte at its receiver, for one byte sent."""
    begun = FRAME_HEADER.pack(Frame.CALL, MAX_CONTROL_BYTES) + b"x"
    return sum([await place.frames(record, begun) for record in records])


async def bombs(place: Place, records: Sequence[StageRecord]) -> int:
    """Headers of a megabyte that say next to nothing: lists in lists, and a million nils."""
    nested, nils = b"\x91" * MAX_CONTROL_BYTES, b"\xdd\x00\x0f\xff\xf0" + b"\xc0" * (MAX_CONTROL_BYTES - 5)
    data = b"".join(FRAME_HEADER.pack(Frame.CALL, MAX_CONTROL_BYTES) + body for body in (nested, nils))
    done = 0
    for record in records:
        frames = await place.opened(record)
        if frames is not None:
            frames._transport.write(data)
            place.kept.append(frames)
        done += 2
    return done


async def flood(place: Place, records: Sequence[StageRecord]) -> int:
    """Questions that anybody may ask, as many as go through."""

    async def ask(record: StageRecord) -> None:
        with suppress(RpcFailed, RemoteProtocolError):
            await place.rpc.call(record.peer, to_header(Inquire(record.weights_version, 1)), CALL_S)

    for record in records:
        for _ in range(CALLS // 10):
            await asyncio.gather(*(ask(record) for _ in range(10)))
    return CALLS * len(records)


async def second_run(place: Place, records: Sequence[StageRecord]) -> int:
    """Another run record under the same id, signed by the outsider as its owner, and one that looks sealed."""
    run_id = records[0].run_id
    found = await place.dht.read_run(run_id, ANYBODY) if not place.ghosts else None
    if found is not None:
        place.ghosts.append(place.identity)  # from now on there are two, and nobody can say which one to read
        await place.dht.publish_run(own(place.identity, replace(found.record, seed=found.record.seed + 1)))
        return 1
    await publish_as(place, place.identity, run_key(run_id), b"gwtf-sealed-1:" + bytes(64))
    return 1


async def ghosts(place: Place, records: Sequence[StageRecord]) -> int:
    """Records of peers that there are not, in every stage, ONLINE, with room for many microbatches and fast lines."""
    while len(place.ghosts) < GHOSTS:
        path = place.folder / f"ghost{len(place.ghosts)}.key"
        place.ghosts.append(await asyncio.to_thread(create_identity, path))
    example, now = records[0], int(time.time() * 10)
    for number, ghost in enumerate(place.ghosts):
        record = replace(
            example,
            peer=PeerId(ghost.peer_id),
            stage=Stage(number % (1 + max(each.stage for each in records))),
            state=PeerState.ONLINE,
            capacity=64,
            links=(),
            maddrs=(),
            sequence_number=now,
        )
        await publish_as(place, ghost, stage_key(record.run_id, record.stage), encode(record))
    return len(place.ghosts)


async def publish_as(place: Place, identity: Identity, key: str, value: bytes) -> None:
    """Under the key of this identity, through the one DHT peer that the outsider has."""
    node = place.dht._node
    before = node.protocol.record_validator
    node.protocol.record_validator, owner = make_validator(identity.key, None)
    try:
        await node.store(key, value, get_dht_time() + LIFETIME_S, subkey=owner)
    finally:
        node.protocol.record_validator = before


ACTS: dict[str, Act] = {
    "silent_streams": silent_streams,
    "half_frames": half_frames,
    "bombs": bombs,
    "flood": flood,
    "second_run": second_run,
    "ghosts": ghosts,
}
