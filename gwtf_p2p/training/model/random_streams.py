"""Streams of random numbers that are named, so that every part of a model draws its own.

The draws are torch's on the CPU in float32, whatever device the part goes to: bit for bit equal wherever the same torch release
runs with the same vector instructions; elsewhere they may differ in the last place, which the state hash shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Within the block torch's CPU generator stands at the start of the stream (seed, name); afterwards as it was found."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also reseed every accelerator, and nothing restores those.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield
