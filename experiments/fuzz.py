"""Strange input by the thousand: messages in simulated runs, bytes at everything that decodes them.

`python -m experiments.fuzz messages --seeds 0-9999` sends any well-formed message from outsiders, from stage peers and from
anybody to anybody, at any moment of a small run, one run of each kind for a seed. `python -m experiments.fuzz bytes --inputs
1000000` gives random and damaged bytes to the decoders of frames, headers and records. Exit code 1 when anything but a refusal
leaves a handler or a decoder, when a promise is broken, or when training does not go on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import msgpack

from experiments.support.strange_messages import SENDERS, Pools, draw, strange_run
from gwtf_p2p.live.discovery.order_book import read_order
from gwtf_p2p.live.discovery.signing import read_owned
from gwtf_p2p.live.rpc.api import pack, unpack
from gwtf_p2p.live.rpc.frames import FRAME_HEADER, Frame, FrameStream
from gwtf_p2p.live.state.manifest import Manifest
from gwtf_p2p.live.state.packing import PLANES_ZSTD, packed, unpacked
from gwtf_p2p.protocol.errors import RemoteProtocolError
from gwtf_p2p.protocol.exchange.stated import decode_stated, unpack_marks
from gwtf_p2p.protocol.ids import MicrobatchId, PeerId, RunId, Stage
from gwtf_p2p.protocol.view.contributions import Contributions
from gwtf_p2p.protocol.wire.contribution_record import decode_contributions
from gwtf_p2p.protocol.wire.messages import from_header, to_header
from gwtf_p2p.protocol.wire.records import PeerState, StageRecord, decode_run, decode_stage, encode
from gwtf_p2p.protocol.wire.signed import decode_notice

OF_ONE = 20
"""Inputs that are made of one message: drawing it costs far more than damaging it."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    messages = verbs.add_parser("messages")
    messages.add_argument("--seeds", default="0-99")
    octets = verbs.add_parser("bytes")
    octets.add_argument("--inputs", type=int, default=100_000)
    octets.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if chosen.verb == "bytes":
        return fuzz_bytes(chosen.inputs, chosen.seed)
    first, _, last = str(chosen.seeds).partition("-")
    return fuzz_messages(range(int(first), int(last or first) + 1))


def fuzz_messages(seeds: range) -> int:
    """One run of each kind of sender for each seed."""
    began, failed, sent = time.perf_counter(), 0, 0
    for seed in seeds:
        for senders in SENDERS:
            try:
                sent += strange_run(seed, senders).sent
            except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
                failed += 1
                print(f"seed {seed}, {senders}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
    runs = len(seeds) * len(SENDERS)
    print(f"{runs} runs, {sent} messages, {failed} failed, {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


class _Nowhere:
    """A transport that leads nowhere, and hears the frames that come of it."""

    def __init__(self) -> None:
        self.transport = self
        self.frames = 0

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None: ...

    def get_protocol(self) -> None: ...

    def on_frame(self, kind: Frame, body: bytes) -> None:
        self.frames += 1
        if kind is Frame.CALL:
            _refused(_message, body)

    def on_lost(self, reason: str) -> None: ...


def fuzz_bytes(inputs: int, seed: int) -> int:
    """Raises what a decoder raises besides RemoteProtocolError. What is damaged is a message or a record, a new one for every
    `OF_ONE` inputs."""
    random, began, refused = Random(seed), time.perf_counter(), 0
    good = b""
    for number in range(inputs):
        if number % OF_ONE == 0:
            good = _good(random)
        data = _damaged(random, good)
        refused += sum(_refused(decode, data) for decode in DECODERS)
        _frames(random, data)
        refused += _refused(_chunk, _changed(random, PACKED))
    print(f"{inputs} inputs at {len(DECODERS) + 2} decoders, {refused} refused, {time.perf_counter() - began:.0f} s")
    return 0


def _good(random: Random) -> bytes:
    """A message, or every fourth time a peer's record."""
    pools = Pools([PeerId("a"), PeerId("b")], [MicrobatchId(PeerId("a"), 1, 0)], 1, 3)
    if random.randrange(4):
        return pack(to_header(draw(random, pools)))
    record = StageRecord(PeerId("a"), RunId("r"), Stage(random.randrange(4)), random.choice(list(PeerState)), 4)
    return encode(replace(record, weights_version=random.randrange(9), line_bytes_per_s=random.random()))


def _damaged(random: Random, good: bytes) -> bytes:
    match random.randrange(5):
        case 0:
            return random.randbytes(random.randrange(64))
        case 1:
            return good[: random.randrange(len(good) + 1)]
        case 2:
            return _changed(random, good)
        case 3:
            plain: dict[str, Any] = msgpack.unpackb(good)
            plain[random.choice(sorted(plain))] = random.choice((None, -1, 1 << 63, [], {}, "x" * 5000, b"x", 1.5, [[[[]]]]))
            return bytes(msgpack.packb({**plain, "wire_version": 2}))
        case _:
            return b"\x91" * random.randrange(2000)  # lists in lists


def _changed(random: Random, good: bytes) -> bytes:
    data = bytearray(good)
    for _ in range(random.randrange(1, 4)):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


def _frames(random: Random, data: bytes) -> None:
    nowhere = _Nowhere()
    stream = FrameStream(nowhere, nowhere)  # type: ignore[arg-type]
    whole = FRAME_HEADER.pack(random.randrange(14), len(data)) + data if random.random() < 0.7 else data
    while whole and not stream.is_closed:
        room = stream.get_buffer(-1)
        count = min(len(room), len(whole))
        room[:count], whole = whole[:count], whole[count:]
        stream.buffer_updated(count)


def _message(data: bytes) -> object:
    return from_header(unpack(data))


CHUNK = bytes(range(256)) * 8
PACKED = packed(memoryview(CHUNK)) or b""


def _chunk(data: bytes) -> None:
    """Of a state; it unpacks to as much as was declared, or not at all."""
    assert len(unpacked(PLANES_ZSTD, memoryview(data), len(CHUNK))) == len(CHUNK)


DECODERS: tuple[Callable[[bytes], object], ...] = (
    _message,
    decode_stage,
    decode_run,
    decode_notice,
    decode_stated,
    unpack_marks,
    decode_contributions,
    read_owned,
    read_order,
    lambda data: Manifest.from_plain(unpack(data)),
    Contributions.from_bytes,
)
"""Whatever bytes of others are given to, besides frames and packed chunks of states."""


def _refused(decode: Callable[[bytes], object], data: bytes) -> bool:
    try:
        decode(data)
    except RemoteProtocolError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
