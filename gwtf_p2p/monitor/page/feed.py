"""What has changed in a run's document, told to browsers as server-sent events.

A browser fetches the document once, which has an `id`, and follows the changes after it; each event has the id that it leads
to, so a browser that was away goes on where it was. One that was away for longer than `KEPT` changes is told to fetch anew.
A change is made and serialised once, however many follow. Rows of tables are compared field by field.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

KEPT = 60
KEEP_ALIVE_S = 15.0
"""Proxies close connections on which nothing is sent for half a minute or so."""

TABLES = {"peers": "n", "flows": "id", "hops": "id"}
"""Lists of the document that are compared row by row, and the field that names a row."""

RESET = "event: reset\ndata: {}\n\n"

Document = Mapping[str, Any]


def difference(before: Document, after: Document) -> dict[str, Any]:
    """What leads from one document to the next: `set` for whole values, `tables` for rows, `changes` for new events."""
    told: dict[str, Any] = {}
    tables = {name: found for name, key in TABLES.items() if (found := _rows(before[name], after[name], key))}
    if tables:
        told["tables"] = tables
    whole = {k: v for k, v in after.items() if k not in TABLES and k not in ("changes", "seen_at") and before.get(k) != v}
    if whole:
        told["set"] = whole
    old = {(c["at"], c["text"]) for c in before["changes"]}
    new = [c for c in after["changes"] if (c["at"], c["text"]) not in old]
    if new:
        told["changes"] = new
    return told


def _rows(before: Sequence[Document], after: Sequence[Document], key: str) -> dict[str, Any]:
    if before is after:
        return {}
    old, new = {row[key]: row for row in before}, {row[key]: row for row in after}
    rows = []
    for name, row in new.items():
        former = old.get(name)
        if former is None:
            rows.append(row)
        elif former is not row and former != row:
            rows.append({key: name, **{field: value for field, value in row.items() if former[field] != value}})
    gone = [name for name in old if name not in new]
    return {**({"rows": rows} if rows else {}), **({"gone": gone} if gone else {})}


class Feed:
    """The changes of one run. `publish` and `close` are called by the observer's thread, `follow` in the web server's loop."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._number = 0
        self._document: Document | None = None
        self._packed: bytes | None = None
        self._events: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._closed = False

    @property
    def newest(self) -> str:
        """The id of the document as it is now."""
        return f"{self._boot}-{self._number}"

    @property
    def document(self) -> Document | None:
        """As it is now; None before the first look."""
        return self._document

    def packed(self) -> bytes | None:
        """The document as JSON, made when it is first asked for."""
        with self._lock:
            if self._packed is None and self._document is not None:
                self._packed = json.dumps({"id": self.newest, **self._document}, separators=(",", ":")).encode()
            return self._packed

    def publish(self, document: Document, samples: Sequence[Sequence[Any]]) -> None:
        """The document after a look, and the points of the charts that the look has brought."""
        with self._lock:
            change = difference(self._document, document) if self._document is not None else {}
            if samples:
                change["samples"] = samples
            self._document, self._packed = document, None
            change["seen_at"] = document["seen_at"]
            self._number += 1
            data = json.dumps(change, separators=(",", ":"))
            self._events.append((self._number, f"id: {self.newest}\nevent: change\ndata: {data}\n\n"))
        self._wake()

    def close(self) -> None:
        """Ends all followers."""
        self._closed = True
        self._wake()

    def since(self, after: str) -> tuple[list[str], str] | None:
        """The events after an id and the id that they lead to; None when they are not all here."""
        boot, _, number = after.partition("-")
        with self._lock:
            if boot != self._boot or not number.isdecimal() or int(number) > self._number:
                return None
            if self._number - int(number) > len(self._events):
                return None
            return [event for n, event in self._events if n > int(number)], self.newest

    async def follow(self, after: str) -> AsyncIterator[str]:
        """Server-sent events from that id on, until the feed is closed; a comment now and then while nothing changes."""
        waiter = asyncio.get_running_loop(), asyncio.Event()
        self._waiting.add(waiter)
        try:
            yield "retry: 2000\n\n"
            while not self._closed:
                waiter[1].clear()
                found = self.since(after)
                if found is None:
                    after = self.newest
                    yield RESET
                else:
                    events, after = found
                    for event in events:
                        yield event
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await waiter[1].wait()
                except TimeoutError:
                    yield ": nothing new\n\n"
        finally:
            self._waiting.discard(waiter)

    def _wake(self) -> None:
        for loop, event in tuple(self._waiting):
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
