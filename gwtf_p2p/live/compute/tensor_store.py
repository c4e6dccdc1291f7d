"""The tensors that a peer holds of its microbatches, and how much memory they may take.

What is done is kept until the iteration commits, because a neighbour's loss may have it done again. Above `limit_bytes` the
oldest tensors go to the disk, in a thread of its own, and are read back when they are asked for: first of what is done (which
only a repair asks for), then of what waits. Without a folder nothing is spilled, and the protocol refuses work instead
(`Context.memory_limit_bytes`).

Buffers come from the event loop and from the compute thread, so the bookkeeping is under a lock; files are written outside it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gwtf_p2p.protocol.core.backoff import Backoff
from gwtf_p2p.protocol.events import Slot
from gwtf_p2p.protocol.ids import MicrobatchId

logger = logging.getLogger(__name__)

Key = tuple[MicrobatchId, Slot]

SPILL_RETRY_S, MOST_SPILL_RETRY_S = 10.0, 600.0
"""After a disk has refused what was spilled."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """`limit_bytes` 0: no limit. `folder` None: nothing is spilled. The folder must be this peer's own."""

    limit_bytes: int = 0
    folder: Path | None = None


NO_LIMIT = MemoryLimit()


class TensorStore:
    """Wire bytes by microbatch and slot."""

    def __init__(self, limit: MemoryLimit = NO_LIMIT) -> None:
        self.limit = limit
        self.held_bytes = 0
        self.most_held_bytes = 0
        self.spilled_bytes = 0
        self._in_memory: dict[Key, memoryview] = {}
        self._on_disk: dict[Key, Path] = {}
        self._done: dict[MicrobatchId, None] = {}
        self._lock = threading.Lock()
        self._writer: ThreadPoolExecutor | None = None
        self._files = 0
        self._disk = Backoff(SPILL_RETRY_S, MOST_SPILL_RETRY_S)

    def put(self, microbatch: MicrobatchId, slot: Slot, buffer: memoryview) -> None:
        """Replaces what was there."""
        with self._lock:
            self._forget((microbatch, slot))
            self._in_memory[microbatch, slot] = buffer
            self.held_bytes += buffer.nbytes
            self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)
        self._spill_soon()

    def get(self, microbatch: MicrobatchId, slot: Slot) -> memoryview:
        """Raises KeyError when the slot is empty: our bug."""
        key = (microbatch, slot)
        with self._lock:
            buffer, path = self._in_memory.get(key), self._on_disk.get(key)
        if buffer is not None:
            return buffer
        if path is None:
            raise KeyError(key)
        return memoryview(bytearray(path.read_bytes()))

    def done(self, microbatch: MicrobatchId) -> None:
        """It is computed; its tensors are only kept for others from now on."""
        with self._lock:
            self._done[microbatch] = None
        self._spill_soon()

    def discard(self, microbatch: MicrobatchId) -> None:
        with self._lock:
            self._done.pop(microbatch, None)
            for slot in Slot:
                self._forget((microbatch, slot))

    def close(self) -> None:
        """Remove what was spilled."""
        if self._writer is not None:
            self._writer.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for key in list(self._on_disk):
                self._forget(key)

    def _forget(self, key: Key) -> None:
        buffer, path = self._in_memory.pop(key, None), self._on_disk.pop(key, None)
        if buffer is not None:
            self.held_bytes -= buffer.nbytes
        if path is not None:
            self.spilled_bytes -= path.stat().st_size
            path.unlink()

    # ---- to the disk

    @property
    def _is_over(self) -> bool:
        return 0 < self.limit.limit_bytes < self.held_bytes

    def _spill_soon(self) -> None:
        if self._is_over and self.limit.folder is not None:
            if self._writer is None:
                self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spill")
            self._writer.submit(self._spill, self.limit.folder)

    def _spill(self, folder: Path) -> None:
        """The oldest, until the rest fits. A disk that refuses is left alone for a while, which grows."""
        if not self._disk.may_try(time.monotonic()):
            return
        while (key := self._next_to_spill()) is not None:
            with self._lock:
                buffer = self._in_memory.get(key)
            if buffer is None:
                continue
            self._files += 1
            path = folder / f"{self._files}.tensor"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(buffer)
            except OSError as error:
                with suppress(OSError):
                    path.unlink()
                pause_s = self._disk.failed(time.monotonic())
                logger.error("%s: nothing is spilled for %.0f s: %s", folder, pause_s, error.strerror or error)
                return
            self._disk.succeeded()
            with self._lock:
                if self._in_memory.get(key) is not buffer:
                    path.unlink()  # discarded, or replaced, while it was written
                    continue
                del self._in_memory[key]
                self._on_disk[key] = path
                self.held_bytes -= buffer.nbytes
                self.spilled_bytes += buffer.nbytes

    def _next_to_spill(self) -> Key | None:
        with self._lock:
            if not self._is_over:
                return None
            kept = ((microbatch, slot) for microbatch in self._done for slot in Slot)
            done = next((key for key in kept if key in self._in_memory), None)
            return done or next(iter(self._in_memory), None)


def resident_bytes() -> int:
    """How much memory this process takes, as the kernel counts it; 0 where it does not say (it is read from /proc)."""
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)  # it is asked for all the time: a tenth of what a file object takes
        try:
            pages = int(os.read(file, 256).split()[1])
        finally:
            os.close(file)
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
