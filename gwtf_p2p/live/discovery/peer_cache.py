"""Peers that could be dialled lately, kept on disk, so that a peer finds its run again when its initial peers are down.

One JSON file per identity, beside it: addresses by run, each with the time when it was last good (wall clock, seconds). Only
addresses that anybody can dial are kept; the newest `MOST` of a run. A file that cannot be read counts as empty: it is a help,
not a record of anything.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable

from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.live.libp2p.maddrs import InitialPeer, parse_initial_peer
from gwtf_p2p.protocol.errors import InputError
from gwtf_p2p.protocol.ids import RunId

logger = logging.getLogger(__name__)

MOST = 32


class PeerCache:
    """Of one identity and run; bootstrap peers have the run ''."""

    def __init__(self, identity: Identity, run_id: RunId | None) -> None:
        self.path = identity.path.with_suffix(".peers.json")
        self._run = str(run_id or "")
        self._own = identity.peer_id
        self._known = self._read().get(self._run, {})

    def peers(self) -> tuple[InitialPeer, ...]:
        """The newest first."""
        found = []
        for text in sorted(self._known, key=lambda maddr: -self._known[maddr]):
            try:
                found.append(parse_initial_peer(text, str(self.path)))
            except InputError as error:
                logger.info("%s", error)
        return tuple(found)

    def note(self, maddrs: Iterable[str]) -> None:
        """These addresses, with peer ids, are good now. Writes the file when one of them is new or an hour has passed."""
        now = time.time()
        news = {m for m in maddrs if now - self._known.get(m, 0.0) > 3600 and not m.endswith(f"/p2p/{self._own}")}
        if not news:
            return
        self._known.update(dict.fromkeys(news, now))
        kept = sorted(self._known, key=lambda maddr: -self._known[maddr])[:MOST]
        self._known = {maddr: self._known[maddr] for maddr in kept}
        self._write({**self._read(), self._run: self._known})

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            plain = json.loads(self.path.read_text())
            return {str(run): {str(m): float(at) for m, at in known.items()} for run, known in plain["runs"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return {}

    def _write(self, runs: dict[str, dict[str, float]]) -> None:
        """By renaming, so that a reader never sees half a file."""
        draft = self.path.with_suffix(".new")
        try:
            draft.write_text(json.dumps({"version": 1, "runs": runs}, indent=1))
            draft.replace(self.path)
        except OSError as error:
            logger.info("peer cache: %s", error)
