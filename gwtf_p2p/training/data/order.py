"""Which windows a data peer reads: one global order, dealt by iteration. Whole numbers and hashes alone, no state on disk.

- The windows of an epoch are visited in an order drawn from (seed, epoch): a permutation that is computed, not stored, so it
  costs no memory and is the same under every release of numpy.
- Microbatch numbers count through the whole run: iteration i begins where i - 1 ended, and the k-th microbatch of shard s of n
  is number k * n + s of its iteration; where shares differ, they are dealt in the same turns to those who still get some. So
  the number of data peers may change at any iteration, and still no window is read twice or never in an epoch. What it was
  earlier has to be known: from the run record, or because this process dealt it.
- A mixture gives every run of 1,024 windows to its datasets by weight, in a drawn order; each dataset has epochs of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from gwtf_p2p.protocol.errors import InputError

DATASET = "dataset"
SHARES = 1024
"""Windows in a turn of a mixture; a weight is met to within one of so many."""

_ROUNDS = 4


class Permutation:
    """A bijection of 0 to `size` - 1, drawn from a name: a Feistel network of four hashed rounds (Luby and Rackoff 1988).

    The network permutes the next power of four; what falls outside goes round again, four times at the worst on average.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        self._half_bits = max((max(size - 1, 1).bit_length() + 1) // 2, 1)
        self._key = hashlib.blake2b(name.encode(), digest_size=32).digest()

    def __call__(self, number: int) -> int:
        """Where `number` goes. It has to be in 0 to `size` - 1."""
        assert 0 <= number < self.size, f"{number} is not below {self.size}"
        while True:
            number = self._network(number)
            if number < self.size:
                return number

    def _network(self, number: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = number >> self._half_bits, number & mask
        for turn in range(_ROUNDS):
            text = turn.to_bytes(1, "little") + right.to_bytes(8, "little")
            digest = hashlib.blake2b(text, key=self._key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        return left << self._half_bits | right


class Deal:
    """Counts microbatches through the run, while the number of data peers may change from one iteration to the next.

    `before` holds pairs (iteration, data peers before it), rising. What comes after the last is learnt from who asks. `shares`
    are those of each shard (`RunRecord.elastic_shares`) where they differ; the data peers before had equal ones.
    """

    def __init__(self, per_data_peer: int, before: Sequence[tuple[int, int]] = (), shares: Sequence[int] = ()) -> None:
        self._per_data_peer, self._shares = per_data_peer, shares
        self._since: list[tuple[int, int, int]] = []  # first iteration, its first microbatch, data peers
        first = number = 0
        for until, data_peers in before:
            self._since.append((first, number, data_peers))
            number += (until - first) * data_peers * per_data_peer
            first = until
        self._open = (first, number)  # from there on it is not known yet
        self._latest = -1

    def microbatch(self, iteration: int, index: int, shard: int, shards: int) -> int:
        """Number in the run of a shard's microbatch. Raises InputError: the iteration was dealt to another number of peers."""
        if not 0 <= shard < shards:
            raise InputError(DATASET, "shard", f"expected 0 to {shards - 1}, got {shard}")
        first, number, dealt = self._entry(iteration, shards)
        if dealt != shards:
            expected = f"expected {dealt} in iteration {iteration}, to which its windows were dealt, got {shards}"
            raise InputError(DATASET, "data_peers", expected)
        self._latest = max(self._latest, iteration)
        begins = number + (iteration - first) * self._per_data_peer * shards
        return begins + (self._turn(index, shard) if len(self._shares) == shards else index * shards + shard)

    def _turn(self, index: int, shard: int) -> int:
        """How many microbatches of an iteration are dealt before this one."""
        if index >= self._shares[shard]:
            raise InputError(DATASET, "elastic_shares", f"expected a microbatch below {self._shares[shard]}, got {index}")
        turns = sum(min(share, index) for share in self._shares)
        return turns + sum(share > index for share in self._shares[:shard])

    def _entry(self, iteration: int, shards: int) -> tuple[int, int, int]:
        first, number = self._open
        if iteration >= first and (not self._since or self._since[-1][0] != first):
            self._since.append((first, number, shards))
        entry = next(entry for entry in reversed(self._since) if entry[0] <= iteration)
        if entry[2] != shards and entry is self._since[-1] and iteration > self._latest:
            start, number, dealt = entry
            self._open = (iteration, number + (iteration - start) * dealt * self._per_data_peer)
            self._since.append((*self._open, shards))
            return self._since[-1]
        return entry


class Shares:
    """Deals the windows of a mixture to its datasets, by weight."""

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        self._seed = seed
        self.shares = _whole_shares(weights)
        self._turn = lru_cache(maxsize=4)(self._drawn)

    def of(self, ordinal: int) -> tuple[int, int]:
        """Number of the dataset that a window comes from, and its ordinal among that dataset's windows."""
        turn, at = divmod(ordinal, SHARES)
        dataset, rank = self._turn(turn)[at]
        return dataset, turn * self.shares[dataset] + rank

    def _drawn(self, turn: int) -> list[tuple[int, int]]:
        owners = [dataset for dataset, share in enumerate(self.shares) for _ in range(share)]
        order = Permutation(f"{self._seed}/mixture/{turn}", SHARES)
        seen = [0] * len(self.shares)
        drawn = []
        for at in range(SHARES):
            dataset = owners[order(at)]
            drawn.append((dataset, seen[dataset]))
            seen[dataset] += 1
        return drawn


def _whole_shares(weights: Sequence[float]) -> list[int]:
    """Largest remainders, at least one each: the sum is `SHARES`."""
    total = sum(weights)
    exact = [SHARES * weight / total for weight in weights]
    shares = [max(int(share), 1) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: (shares[k] - exact[k], k))
    while (missing := SHARES - sum(shares)) != 0:
        for k in by_remainder if missing > 0 else reversed(by_remainder):
            if missing > 0 or shares[k] > 1:
                shares[k] += 1 if missing > 0 else -1
                break
        by_remainder = sorted(range(len(weights)), key=lambda k: (shares[k] - exact[k], k))
    return shares
