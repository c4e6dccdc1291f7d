"""Where `gwtf top` gets its runs from: the records in a swarm's DHT, or the JSON API of a monitor.

`watch` blocks until it is told to stop and is called in a thread of its own; `look` and `trouble` are called from there.
"""

from __future__ import annotations

import gzip
import json
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from gwtf_p2p.monitor.top.shown import Shown, WrongAnswer, losses, run_ids, shown

LOOK_S = 2.0
ANSWER_S = 10.0
MOST_BYTES = 16 << 20
"""A longer answer is cut off, and refused: it would fill this machine's memory."""

POINTS = 120

OnShown = Callable[[Shown, list[float]], None]
"""Hears of a run as it is now, with the losses of its iterations, evenly thinned."""

OnTrouble = Callable[[str], None]
"""Hears why nothing new is seen; an empty text: all is well again."""


class Source(Protocol):
    """`name`: where it is from, for people."""

    name: str

    def watch(self, look: OnShown, trouble: OnTrouble, stop: threading.Event) -> None:
        """Until `stop` is set."""

    def details(self, run_id: str, peer: str) -> Mapping[str, Any] | None:
        """All that is known of one peer; None when nothing is."""


class ApiSource:
    """A monitor's JSON API, at the address of its page. `run_id` "": all runs of that monitor."""

    def __init__(self, url: str, run_id: str = "") -> None:
        self.name = url
        self._api = url.rstrip("/") + "/api/v1/runs"
        self._run_id = run_id
        self._losses: dict[str, tuple[int, list[float]]] = {}

    def watch(self, look: OnShown, trouble: OnTrouble, stop: threading.Event) -> None:
        """Asks every two seconds. A monitor that is away or answers nonsense is told as trouble, and asked again."""
        while not stop.is_set():
            try:
                for run_id in [self._run_id] if self._run_id else run_ids(self._get("")):
                    state = shown(self._get(f"/{quote(run_id, safe='')}/state"))
                    look(state, self._losses_of(state))
                trouble("")
            except (OSError, WrongAnswer, ValueError) as error:
                trouble(f"{self.name} does not answer as a monitor does: {error}")
            stop.wait(LOOK_S)

    def details(self, run_id: str, peer: str) -> Mapping[str, Any] | None:
        try:
            found = self._get(f"/{quote(run_id, safe='')}/peers/{quote(peer, safe='')}")
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _losses_of(self, state: Shown) -> list[float]:
        """Asked for again only when there is a new iteration."""
        known = self._losses.get(state.run_id)
        if known is None or known[0] != state.iterations:
            told = losses(self._get(f"/{quote(state.run_id, safe='')}/history?points={POINTS}"))
            known = self._losses[state.run_id] = state.iterations, told
        return known[1]

    def _get(self, path: str) -> Any:
        """Raises OSError, ValueError (what is no JSON, or is too long)."""
        request = urllib.request.Request(self._api + path, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            body = answer.read(MOST_BYTES + 1)
            if answer.headers.get("Content-Encoding") == "gzip":
                body = _unpacked(body)
        if len(body) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MB")
        return json.loads(body)


def _unpacked(body: bytes) -> bytes:
    """At most a byte more than is allowed, however far it would unpack. Raises ValueError."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(body, MOST_BYTES + 1)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(str(error)) from error


class SwarmSource:
    """The records of runs in a DHT. `observe` looks at them until it is told to stop (`observing.observe_until`)."""

    def __init__(self, name: str, runs: Any, observe: Callable[[Callable[..., bool], threading.Event], str]) -> None:
        self.name, self._runs, self._observe = name, runs, observe

    def watch(self, look: OnShown, trouble: OnTrouble, stop: threading.Event) -> None:
        """What the monitor's own page is made of, without the page."""

        def on_look(state: Any, changes: list[Any]) -> bool:
            self._runs.look(state, changes)
            run = self._runs.by_id[state.run.run_id]
            look(shown(run.feed.document), losses(self._runs.series(run, None, None, POINTS)))
            return stop.is_set()

        why = self._observe(on_look, stop)
        if why:
            trouble(why)

    def details(self, run_id: str, peer: str) -> Mapping[str, Any] | None:
        run = self._runs.by_id.get(run_id)
        found: Mapping[str, Any] | None = None if run is None else self._runs.peer(run, peer)
        return found
