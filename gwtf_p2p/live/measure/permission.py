"""Keeps asking whether this peer may work (`protocol/membership/permission`), and what its line has carried for its quotas.

What has passed is kept in a file beside the identity, so that a restart renews no quota. `ByHand` is what signals set.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from gwtf_p2p.live.measure.idle import MachineUse
from gwtf_p2p.protocol.core.line_cap import Line
from gwtf_p2p.protocol.membership.permission import MAY_WORK, Moment, Usage, Verdict, Wishes, left_bytes, verdict
from gwtf_p2p.training.state.epochs import replace_file

logger = logging.getLogger(__name__)

LOOK_S = 2.0
SAVE_S = 10.0
"""A crash forgets no more than what has passed since."""

IDLE_LOOK_S = 10.0
OnReport = Callable[[dict[str, Any]], None]


class ByHand:
    """Paused by its owner, or not; `changed` is set when that changes."""

    def __init__(self) -> None:
        self.paused = False
        self.changed = asyncio.Event()

    def set(self, paused: bool) -> None:
        self.paused = paused
        self.changed.set()


def moment_now() -> Moment:
    """By this machine's clock and its time zone."""
    local = time.localtime()
    return Moment(60 * local.tm_hour + local.tm_min, time.strftime("%Y-%m-%d", local), time.strftime("%Y-%m", local))


class Permission:
    """Of one peer. `file`: where its usage is kept."""

    def __init__(self, wishes: Wishes, line: Line, file: Path, by_hand: ByHand | None = None) -> None:
        self.wishes, self._line, self._file = wishes, line, file
        self.by_hand = by_hand or ByHand()
        self.moment: Callable[[], Moment] = moment_now
        self._counted = line.total_bytes
        self.usage = self._read()
        self._saved, self._save_at = self.usage, 0.0
        self._use = MachineUse() if wishes.only_when_idle else None
        self._in_use, self._used_look_at = "", -IDLE_LOOK_S
        self._writing = threading.Lock()

    def verdict(self) -> Verdict:
        """Now, with the machine's use as it was at the last look."""
        moment = self._count()
        return verdict(self.wishes, moment, self.usage, self.by_hand.paused, self._in_use)

    def left_bytes(self) -> float:
        """What may pass until a quota of its owner is used up; infinite where there is none."""
        if not self._has_quota:
            return inf
        return left_bytes(self.wishes, self._count(), self.usage)

    async def look(self) -> Verdict:
        """Now."""
        self._count()
        if self._is_due():
            await asyncio.to_thread(self._save, self.usage)
        now = time.monotonic()
        if self._use is not None and now >= self._used_look_at + IDLE_LOOK_S:
            self._used_look_at = now
            self._in_use = await asyncio.to_thread(self._use.look)
        return self.verdict()

    async def forbidden(self) -> None:
        """Return when this peer may not work any more."""
        while (await self.look()).may_work:
            await self._pause()

    async def allowed(self, on_report: OnReport) -> None:
        """Return when this peer may work. Why it waits is told, each reason once."""
        told = MAY_WORK
        while not (found := await self.look()).may_work:
            if found != told:
                told = found
                on_report({"name": "paused", "code": found.code, "text": found.text})
            await self._pause()
        if not told.may_work:
            on_report({"name": "resumed", "text": "goes on: it may work again"})

    def close(self) -> None:
        """What has passed until now is kept."""
        self._count()
        self._save_at = 0.0
        if self._is_due():
            self._save(self.usage)

    def _count(self) -> Moment:
        """What has passed until now, which is returned."""
        moment, total = self.moment(), self._line.total_bytes
        self.usage, self._counted = self.usage.more(total - self._counted, moment), total
        return moment

    async def _pause(self) -> None:
        """Until it is worth looking again: without wishes, when its owner's hand says so."""
        self.by_hand.changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S if self.wishes != Wishes() else None):
                await self.by_hand.changed.wait()

    def _read(self) -> Usage:
        try:
            plain = json.loads(self._file.read_text())
            day, month = str(plain["day"]), str(plain["month"])
            return Usage(day, max(0, int(plain["day_bytes"])), month, max(0, int(plain["month_bytes"])))
        except FileNotFoundError:
            return Usage()
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            logger.warning("%s is passed over, quotas are counted from now on: %s", self._file, error)
            return Usage()

    @property
    def _has_quota(self) -> bool:
        return bool(self.wishes.day_bytes or self.wishes.month_bytes)

    def _is_due(self) -> bool:
        """Whether to write now what has passed."""
        return self._has_quota and self.usage != self._saved and time.monotonic() >= self._save_at

    def _save(self, usage: Usage) -> None:
        """By renaming, so that a power cut leaves the file as it was. May wait for a disk; `close` waits for who writes."""
        draft = self._file.with_suffix(".new")
        with self._writing:
            self._save_at = time.monotonic() + SAVE_S
            try:
                replace_file(self._file, json.dumps(asdict(usage)).encode(), draft)
                self._saved = usage
            except OSError as error:
                logger.warning("%s: what has passed is not kept: %s", self._file, error)
