"""Run records on this disk, so that a run outlives its DHT: beside the checkpoints, and beside the identity.

A power cut ends every peer and with them every record. What a peer needs to bring the run back is the run record alone, which
it then publishes under its own key, as data peers do all the time. A file that cannot be read, or is no run record, counts as
none: it is said, and nobody is ended by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from gwtf_p2p.live.libp2p.identity import Identity
from gwtf_p2p.protocol.errors import InputError, RemoteProtocolError
from gwtf_p2p.protocol.ids import RunId
from gwtf_p2p.protocol.wire.codec import from_plain, to_plain
from gwtf_p2p.protocol.wire.records import WIRE_VERSION, RunRecord

logger = logging.getLogger(__name__)

FILE = "run.json"
MOST_BYTES = 1 << 16


class KeptRuns:
    """Of one peer. `checkpoint_folder` None: only what is beside the identity."""

    def __init__(self, identity: Identity, checkpoint_folder: Path | None) -> None:
        self._beside_identity = identity.path.with_suffix(".runs")
        self._checkpoint_folder = checkpoint_folder

    def read(self, run_id: RunId) -> RunRecord | None:
        """The record of this run; None if it is not here."""
        found = (self._read(path) for path in self._paths(run_id))
        return next((run for run in found if run is not None and run.run_id == run_id), None)

    def keep(self, run: RunRecord) -> None:
        """Write it to both places, where it is not there already."""
        for path in self._paths(run.run_id):
            if self._read(path) == run:
                continue
            draft = path.with_suffix(".new")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                draft.write_text(json.dumps(to_plain(run), indent=1))
                draft.replace(path)
            except (OSError, TypeError, ValueError) as error:
                logger.warning("%s: the run record is not kept here: %s", path, error)

    def _paths(self, run_id: RunId) -> Iterable[Path]:
        if self._checkpoint_folder is not None:
            yield self._checkpoint_folder / FILE
        yield self._beside_identity / f"{run_id}.json"

    def _read(self, path: Path) -> RunRecord | None:
        try:
            with path.open("rb") as file:
                plain = json.loads(file.read(MOST_BYTES))
            if not isinstance(plain, dict) or plain.get("wire_version") != WIRE_VERSION:
                raise RemoteProtocolError(f"no run record of wire version {WIRE_VERSION}")
            run: RunRecord = from_plain(RunRecord, plain, FILE)
            run.validate(str(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, RemoteProtocolError, InputError) as error:
            logger.warning("%s is passed over: %s", path, error)
            return None
        return run
