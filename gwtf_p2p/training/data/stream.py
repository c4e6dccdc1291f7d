"""A dataset that is read as training goes on: no copy on disk, and any window can be had again.

- The stream is twelve lanes. With twelve files or more a lane has files of its own, else it has every twelfth row of all. With
  1, 2, 3, 4, 6 or 12 data peers a data peer reads its own lanes alone, with another number of them all.
- A lane's files come in an order drawn anew for every epoch. Its windows come in blocks of 128, each in a drawn order, so what
  has to be read for any window is one block. The windows of an epoch of a lane are visited once each.
- The place where a block begins (epoch, file, row, token) is kept, in memory and in `<cache>/streams`, so that a data peer that
  returns reads on from there, and not from the beginning.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.training.data.documents import Documents, Fragment, MaskArray
from gwtf_p2p.training.data.order import DATASET, Permutation
from gwtf_p2p.training.data.token_cache import cache_folder
from gwtf_p2p.training.data.tokenizer import TokenArray

LANES = 12
BLOCK_WINDOWS = 128
_KEPT_BLOCKS = 3
_KEPT_PLACES = 64


class Window(NamedTuple):
    """Up to T + 1 ids, and 1 for each that is learnt (None: all)."""

    ids: TokenArray
    mask: MaskArray | None


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a window begins: a lane's epoch, the file and row in its order, and the token of that row's document."""

    epoch: int = 0
    file: int = 0
    row: int = 0
    token: int = 0


class Stream:
    """Windows of a dataset by lane and position. `name`: the run's seed and the dataset's number; `length`: T."""

    lanes = LANES

    def __init__(self, documents: Documents, name: tuple[int, str], length: int) -> None:
        self._documents, self._name, self._length = documents, f"{name[0]}/{name[1]}", length
        digest = hashlib.sha256(f"{self._name}/{length}/{documents.part.packed}/{documents.fingerprint}".encode())
        self._places = _Places(cache_folder() / "streams" / f"{digest.hexdigest()[:32]}.json")
        self._readers: dict[int, tuple[int, Iterator[tuple[Window, Place]]]] = {}
        self._blocks: dict[int, dict[int, list[Window]]] = {lane: {} for lane in range(LANES)}

    def window(self, lane: int, position: int) -> Window:
        """Raises InputError when the lane has no text, OSError when the network fails; asking again reads anew."""
        block, at = divmod(position, BLOCK_WINDOWS)
        windows = self._blocks[lane].get(block) or self._read(lane, block)
        return windows[Permutation(f"{self._name}/block/{lane}/{block}", BLOCK_WINDOWS)(at)]

    def _read(self, lane: int, wanted: int) -> list[Window]:
        """Read the lane's blocks up to the wanted one, from the nearest place that is known."""
        block, reader = self._readers.pop(lane, (-1, None))
        known, place = self._places.before(lane, wanted)
        if reader is None or not known <= block <= wanted:
            block, reader = known, self._windows(lane, place)
        while True:
            found = list(itertools.islice(reader, BLOCK_WINDOWS))
            block += 1
            self._places.keep(lane, block, found[-1][1])
            if block > wanted:
                break
        self._readers[lane] = (block, reader)  # only now: a broken stream is not asked again
        kept = self._blocks[lane]
        kept[wanted] = [window for window, _ in found]
        while len(kept) > _KEPT_BLOCKS:
            del kept[next(iter(kept))]
        return kept[wanted]

    def _windows(self, lane: int, place: Place) -> Iterator[tuple[Window, Place]]:
        """A lane's windows from a place on, without end, each with the place where the next one begins."""
        packer, epoch = _Packer(self._length, packed=self._documents.part.packed), place.epoch
        for row, document in self._rows(lane, place):
            if row.epoch > epoch:
                if epoch > place.epoch and packer.is_fruitless:
                    raise self._nothing(lane)
                packer, epoch = packer.next_epoch(), row.epoch
            skip = place.token if row == _row(place) else 0
            token = 0
            for fragment in document:
                drop = min(max(skip - token, 0), len(fragment.ids))
                token += len(fragment.ids)
                if drop < len(fragment.ids):
                    mask = None if fragment.mask is None else fragment.mask[drop:]
                    at = Place(row.epoch, row.file, row.row, token - len(fragment.ids) + drop)
                    yield from packer.add(at, Window(fragment.ids[drop:], mask))
            yield from packer.end_document(Place(row.epoch, row.file, row.row + 1))

    def _rows(self, lane: int, place: Place) -> Iterator[tuple[Place, Iterator[Fragment]]]:
        """A lane's documents from a place on, without end. Raises InputError for a lane without any."""
        files = self._documents.files
        by_file = len(files) >= LANES
        own = [file for number, file in enumerate(files) if not by_file or number % LANES == lane]
        for epoch in itertools.count(place.epoch):
            order, found = Permutation(f"{self._name}/files/{lane if by_file else 0}/{epoch}", len(own)), False
            for number in range(len(own)):
                if (epoch, number) < (place.epoch, place.file):
                    continue
                for row, document in enumerate(self._documents.of_file(own[order(number)])):
                    start = Place(epoch, number, row)
                    if start >= _row(place) and (by_file or (number + row) % LANES == lane):
                        found = True
                        yield start, document
            if not found and epoch > place.epoch:
                raise self._nothing(lane)

    def _nothing(self, lane: int) -> InputError:
        expected = f"expected text in each of the {LANES} parts that it is read in, found none in part {lane}"
        return InputError(DATASET, self._documents.part.path, f"{expected}; streaming = false reads it as a whole")


def _row(place: Place) -> Place:
    return Place(place.epoch, place.file, place.row)


class _Packer:
    """Cuts windows of T tokens and one more out of what is added, and knows the place of every token that is left."""

    def __init__(self, length: int, *, packed: bool) -> None:
        self._length, self._packed = length, packed
        self._rest: Window | None = None
        self._spans: deque[tuple[Place, int]] = deque()  # where tokens that are left come from, and how many in a row
        self._kept = self._dropped = 0

    @property
    def is_fruitless(self) -> bool:
        """Whether all that was read of this epoch gave no window, and will not next time either."""
        return self._kept == 0 and (self._dropped > 0 or not self._packed)

    def next_epoch(self) -> _Packer:
        """Go on with what is left, counting anew."""
        self._kept = self._dropped = 0
        return self

    def add(self, at: Place, more: Window) -> Iterator[tuple[Window, Place]]:
        """Tokens that come next, the first of them from `at`."""
        rest = self._rest
        if rest is not None:
            mask = None if rest.mask is None or more.mask is None else np.concatenate([rest.mask, more.mask])
            self._rest = Window(np.concatenate([rest.ids, more.ids]), mask)
        else:
            self._rest = more
        self._spans.append((at, len(more.ids)))
        while len(self._rest.ids) > self._length:
            found, self._rest = self._cut(self._rest)
            if self._is_learnt(found):
                yield found, self._spans[0][0]

    def end_document(self, after: Place) -> Iterator[tuple[Window, Place]]:
        """Where documents are not packed, what is left of this one is a window, and the next one begins at `after`."""
        if self._packed or self._rest is None:
            return
        found, self._rest = self._rest, None
        self._spans.clear()
        if len(found.ids) > 1 and self._is_learnt(found):
            yield found, after

    def _cut(self, window: Window) -> tuple[Window, Window]:
        length, mask = self._length, window.mask
        self._advance(length)
        first = Window(window.ids[: length + 1], None if mask is None else mask[: length + 1])
        return first, Window(window.ids[length:], None if mask is None else mask[length:])

    def _advance(self, tokens: int) -> None:
        while tokens:
            place, count = self._spans.popleft()
            if count > tokens:
                self._spans.appendleft((Place(place.epoch, place.file, place.row, place.token + tokens), count - tokens))
            tokens -= min(count, tokens)

    def _is_learnt(self, window: Window) -> bool:
        learnt = window.mask is None or bool(window.mask[1:].any())
        self._kept, self._dropped = self._kept + learnt, self._dropped + (not learnt)
        return learnt


class _Places:
    """Where the blocks of each lane begin, the newest of them on disk as well, if that can be had."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[int, dict[int, Place]] = {lane: {0: Place()} for lane in range(LANES)}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            for lane, blocks in json.loads(path.read_text()).items():
                self._known[int(lane) % LANES] |= {int(block): _place(plain) for block, plain in blocks.items()}

    def before(self, lane: int, block: int) -> tuple[int, Place]:
        """The last block up to this one whose place is known, and its place."""
        known = max(number for number in self._known[lane] if number <= block)
        return known, self._known[lane][known]

    def keep(self, lane: int, block: int, place: Place) -> None:
        """Remember a place; the file is replaced as a whole, so another process reads the old one or the new one."""
        places = self._known[lane]
        places[block] = place
        while len(places) > _KEPT_PLACES:
            del places[sorted(places)[1]]  # the first is where everything begins
        plain = {str(number): {str(b): astuple(p) for b, p in blocks.items()} for number, blocks in self._known.items()}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            making = self._path.with_suffix(f".{os.getpid()}")
            making.write_text(json.dumps(plain))
            making.replace(self._path)


def _place(plain: list[int]) -> Place:
    """Raises ValueError or TypeError for what is no place."""
    if len(plain) != 4 or not all(type(number) is int and number >= 0 for number in plain):
        raise ValueError(f"no place: {plain!r:.80}")
    return Place(*plain)
